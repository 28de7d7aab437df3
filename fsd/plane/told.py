"""What the data plane tells: events, and the snapshots it took."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from fsd.plane import _plane

OPERATIONS = {
    4: "setattr",
    6: "symlink",
    8: "mknod",
    9: "mkdir",
    10: "unlink",
    11: "rmdir",
    12: "rename",
    13: "link",
    14: "open",
    21: "setxattr",
    24: "removexattr",
    35: "create",
    39: "ioctl",
    43: "fallocate",
    45: "rename",
    51: "create",
}


class Kind(enum.IntEnum):
    """What an event is about."""

    PARKED = _plane.lib.FSD_PARKED
    """A mutation waits for :meth:`Plane.resume`."""
    REFUSED = _plane.lib.FSD_REFUSED
    """A mutation was refused with ``error``."""
    NUMBER = _plane.lib.FSD_NUMBER
    """A request met a nested subvolume that has no number yet, and waits."""
    ENDED = _plane.lib.FSD_ENDED
    """The mount is gone."""
    OPENED = _plane.lib.FSD_OPENED
    """The :data:`~fsd.plane.TOLD` directory ``nodeid`` was opened."""
    TAKEN = _plane.lib.FSD_TAKEN
    """A snapshot that was laid ready was taken; ``names`` are its holder and its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something Python is told. ``number`` is the export's, ``names`` the entries touched."""

    kind: Kind
    ticket: int
    nodeid: int
    number: int
    operation: str
    names: tuple[bytes, ...]
    pid: int
    uid: int
    gid: int
    error: int
    handle: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """All it takes to snapshot an export before the first write of a burst. Times are epoch seconds.

    ``holder`` names the directory to make it in. Earlier than ``not_before``, with content of the generation
    ``generation`` (0: none), or with less than the part ``needed`` of the filesystem free, Python is asked.
    Afterwards mutations pass until none came for ``quiet`` seconds, for ``longest`` seconds at most.
    """

    holder: str
    not_before: float
    quiet: float
    longest: float
    generation: int
    needed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A snapshot that was taken as it was laid ready; ``when_ns`` since the epoch."""

    holder: str
    name: str
    when_ns: int


def nanoseconds(seconds: float) -> int:
    """Seconds as C takes them; those without end are 146 years."""
    return int(min(seconds * 1e9, 2.0**62))


def preparation_of(given: Preparation | None) -> object:
    """A preparation as C takes it."""
    if given is None:
        return _plane.ffi.NULL
    made = _plane.ffi.new("fsd_preparation *")
    made.holder = os.fsencode(given.holder)
    made.not_before_ns = nanoseconds(given.not_before)
    made.quiet_ns, made.longest_ns = nanoseconds(given.quiet), nanoseconds(given.longest)
    made.generation, made.needed = given.generation, given.needed
    return made


def taken_of(found: object) -> Taken:
    """An ``fsd_taken`` as Python sees it."""
    holder, name = (_text(getattr(found, field)) for field in ("holder", "name"))
    return Taken(holder=holder, name=name, when_ns=found.when_ns)  # type: ignore[attr-defined]


def _text(chars: object) -> str:
    return os.fsdecode(_plane.ffi.string(chars))


def event_of(found: object) -> Event:
    """An ``fsd_event`` as Python sees it."""
    names = [_plane.ffi.string(found.name[at]) for at in range(found.names)]  # type: ignore[attr-defined]
    return Event(
        kind=Kind(found.kind),  # type: ignore[attr-defined]
        ticket=found.ticket,  # type: ignore[attr-defined]
        nodeid=found.nodeid,  # type: ignore[attr-defined]
        number=found.number,  # type: ignore[attr-defined]
        operation=OPERATIONS.get(found.opcode, str(found.opcode)),  # type: ignore[attr-defined]
        names=tuple(names),
        pid=found.pid,  # type: ignore[attr-defined]
        uid=found.uid,  # type: ignore[attr-defined]
        gid=found.gid,  # type: ignore[attr-defined]
        error=found.error,  # type: ignore[attr-defined]
        handle=bytes(_plane.ffi.buffer(found.handle, found.handle_length)),  # type: ignore[attr-defined]
    )
