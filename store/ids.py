"""IDs of layers, images and containers (FORMAT 2.5)."""

from __future__ import annotations

import os
import re
from typing import Final

from store.errors import BadID

ID: Final = re.compile(r"[0-9a-f]{64}")
"""A full ID; other tools accept any text, and break on some of it."""

ID_LENGTH: Final = 64
_SHORT: Final = 12


def new_id() -> str:
    """A random ID; drawn again while its first 12 characters could be mistaken for a number."""
    while True:
        candidate = os.urandom(ID_LENGTH // 2).hex()
        if not candidate[:_SHORT].isdecimal():
            return candidate


def check_id(text: str) -> str:
    """``text`` if a new object may have it as its ID.

    Shorter IDs than 12 characters make ``podman ps`` fail, ``/`` and more than 255 bytes a layer that
    cannot exist, so only what the tools themselves draw is accepted.

    Raises:
        BadID: not 64 lower-case hex digits.
    """
    if not ID.fullmatch(text):
        raise BadID(f"{text[:80]!r} cannot be an ID: 64 lower-case hex digits are needed")
    return text
