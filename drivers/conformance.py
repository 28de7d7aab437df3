"""Checks every graph driver passes.

A check is a function of a :class:`Harness`, collected by :func:`check` in the order of definition::

    for item in CHECKS:
        if item.applies(capabilities):
            item.run(Harness(factory, place))

``factory(graphroot, options)`` opens the driver; ``place`` is an empty directory on the filesystem under
test, and root is needed. A check fails with ``AssertionError``. What a driver cannot do it says in its
:class:`~drivers.base.Capabilities`; there is no other way out. The oracle is a plain directory on the same
filesystem that gets the same steps, or the documented rule (FORMAT 6).

``conformance_harness`` is the machinery, ``conformance_trees`` and ``conformance_archives`` what checks
build; the other modules hold the checks.
"""

from __future__ import annotations

from drivers import (
    conformance_content,
    conformance_diffs,
    conformance_extras,
    conformance_life,
)
from drivers.conformance_harness import CHECKS, Check, Factory, Harness, check, raises

__all__ = ["CHECKS", "MODULES", "Check", "Factory", "Harness", "check", "raises"]

MODULES = (conformance_content, conformance_life, conformance_diffs, conformance_extras)
"""Where the checks are; importing them collected them."""
