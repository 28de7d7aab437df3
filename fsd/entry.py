"""The ``fsd`` program: which of its two command lines is meant.

``containers-storage`` as the program's name, ``fsd storage`` and the verbs only that tool has lead to
:mod:`fsd.storage_cli`, everything else to :mod:`fsd.cli`. Neither is imported unless it runs.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line of this process; the exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["storage"]:
        return storage_main(arguments[1:])
    if sys.argv[0].rpartition("/")[2].startswith("containers-storage"):
        return storage_main(arguments)
    from fsd import storage_cli

    if (found := storage_cli.after_the_word(arguments)) is not None:
        return storage_cli.main(*found)
    if storage_cli.is_meant(arguments):
        return storage_cli.main(arguments)
    from fsd.cli import main as fsd_main

    return fsd_main(arguments)


def storage_main(arguments: list[str] | None = None) -> int:
    """Run the command line of containers-storage; the exit code."""
    from fsd.storage_cli import main as run

    return run(arguments)
