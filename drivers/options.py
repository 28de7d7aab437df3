"""Values of driver options: sizes with units, truth values, and unknown keys.

Sizes follow docker's ``units.RAMInBytes``, which containers/storage uses: a decimal number, an optional
space, and a binary unit ``k m g t p`` in either case, with ``b``, ``iB`` or nothing after it.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING

from drivers.errors import BadOption

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgtp])i?)?b?", re.IGNORECASE | re.ASCII)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false"})
SIZE_MAX = 2**63 - 1


def parse_size(text: str, option: str = "size") -> int:
    """Bytes of ``10g``, ``1.5T``, ``512 MiB`` or ``4096``; a fraction of a byte is dropped.

    Raises:
        BadOption: not a size, negative, or beyond 2**63 - 1; the text names ``option``.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadOption(f"{option}={text!r} is not a size such as 10g, 1.5T or 4096")
    size = int(Decimal(match[1]) * 1024 ** _POWER[(match[2] or "").lower()])
    if size > SIZE_MAX:
        raise BadOption(f"{option}={text!r} is more than {SIZE_MAX} bytes")
    return size


def parse_bool(text: str, option: str) -> bool:
    """Truth of ``true``, ``1``, ``t`` or ``false``, ``0``, ``f`` (Go's ``strconv.ParseBool``)."""
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise BadOption(f"{option}={text!r} is neither true nor false")


def reject_unknown(driver: str, options: Mapping[str, str], known: Collection[str]) -> None:
    """Raise ``BadOption`` for the first key of ``options`` that is not ``known``."""
    for key in options:
        if key not in known:
            allowed = ", ".join(f"{driver}.{name}" for name in sorted(known)) or "none"
            raise BadOption(f"unknown option {driver}.{key}; known are {allowed}")
