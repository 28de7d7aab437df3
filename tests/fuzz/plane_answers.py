"""What an answer must look like, so that the kernel takes it (fuse(4)): else its request waits for ever."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER: Final = struct.Struct("<IiQ")
ENTRY, ATTR, OPEN, STATX = 128, 104, 16, 288
ERROR_MAX: Final = 511
"""The kernel refuses larger ones."""
EXACT: Final = {
    **dict.fromkeys((1, 6, 8, 9, 13), ENTRY),
    **dict.fromkeys((3, 4), ATTR),
    **dict.fromkeys((14, 27), OPEN),
    **dict.fromkeys((35, 51), ENTRY + OPEN),
    **dict.fromkeys((10, 11, 12, 18, 20, 21, 24, 25, 29, 30, 43, 45, 50), 0),
    **dict.fromkeys((16, 40, 46, 47), 8),
    17: 80,
    52: STATX,
}
SIZED: Final = {15: 16, 28: 16, 44: 16, 22: 0, 23: 0}
"""Answers of any length up to a size the request names: where in its arguments."""
ENTRIES: Final = (1, 6, 8, 9, 13, 35, 51)


def asked_size(opcode: int, request: bytes) -> int:
    """How much a request that names a size has room for."""
    size: int = struct.unpack_from("<I", request, 40 + SIZED[opcode])[0]
    return size


def fault(opcode: int, request: bytes, answer: memoryview) -> str:
    """What is wrong with an answer of the plane's own; empty if nothing is."""
    length, error, _ = ANSWER.unpack_from(answer)
    body = length - ANSWER.size
    if length != len(answer):
        return f"says {length} bytes and has {len(answer)}"
    if not -ERROR_MAX <= error <= 0:
        return f"error {error}"
    if error:
        return "an error with a payload" if body else ""
    if opcode in EXACT:
        return "" if body == EXACT[opcode] else f"{body} bytes instead of {EXACT[opcode]}"
    if opcode in SIZED:
        room = asked_size(opcode, request)
        fits = body == 8 if opcode in (22, 23) and not room else body <= room
        return "" if fits else f"{body} bytes for {room}"
    if opcode == 5:
        return "" if body < 4096 else f"a symlink of {body} bytes"
    if opcode == 39:
        return "" if body in (16, 20, 44) else f"{body} bytes for an ioctl"
    return f"opcode {opcode} succeeded"


def listed(body: memoryview, plus: bool) -> Iterator[int]:
    """Node ids a listing brings along; raises ``ValueError`` where it does not add up."""
    head = ENTRY if plus else 0
    at = 0
    while at < len(body):
        if at + head + 24 > len(body):
            raise ValueError("an entry is cut off")
        length = struct.unpack_from("<I", body, at + head + 16)[0]
        if not 1 <= length <= 255:
            raise ValueError(f"a name of {length} bytes")
        if plus:
            yield struct.unpack_from("<Q", body, at)[0]
        at += (head + 24 + length + 7) & ~7
    if at != len(body):
        raise ValueError("the last entry is cut off")


def nodes_in(opcode: int, body: memoryview) -> Iterator[int]:
    """Node ids whose lookups an answer counted."""
    if opcode in ENTRIES and len(body) >= 8:
        yield struct.unpack_from("<Q", body)[0]
    elif opcode in (28, 44):
        yield from listed(body, opcode == 44)


def handle_in(opcode: int, body: memoryview) -> int:
    """The handle of a file an answer opened; 0 for none."""
    at = {14: 0, 35: ENTRY, 51: ENTRY}.get(opcode)
    return 0 if at is None else int(struct.unpack_from("<Q", body, at)[0])


def handle_of(request: bytes) -> int:
    """The handle a whole RELEASE names."""
    return int(struct.unpack_from("<Q", request, 40)[0]) if len(request) >= 64 else 0
