"""The Python face of the data plane.

The plane reads ``/dev/fuse``. Requests on nodes with bit 62 set (:data:`OURS`) are its own; all others
it hands to pyfuse3 through a socket pair, as if that were the device. Python exports directories, and
is told through a descriptor (:attr:`Plane.events_fd`) of what waits for it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import resource
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsd.plane import _plane
from fsd.plane.told import Event, event_of, nanoseconds, preparation_of, taken_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fsd.plane.told import Preparation, Taken

OURS = 1 << 62
"""Set in every node id of an exported tree."""
PUBLISHED_HANDLE = 1 << 63
"""In the handle of a directory that the plane opened; the rest of it is the node."""
INODE_BITS = 40
NUMBER_MAX = 1 << 21
THREADS = 4
SPIN = 400
"""How often a thread asks for the next request before it sleeps; a try takes 0.2 µs."""
QUIET = 60
"""Seconds after which what others wrote through a memory mapping is on disk: twice what the kernel waits
(``dirty_expire_centisecs``, proc_sys_vm(5))."""
IDLE = 60
"""Seconds without a request after which changes elsewhere are no longer followed: that costs whoever makes
them some microseconds a file."""
SLOTS_MAX = 4096
PLACES: int = _plane.lib.FSD_PLACES
"""Node ids in a group: an entry and its fixed entries (:mod:`fsd.inodes`)."""
RELEASED_MAX = 256
SWEPT_MAX = 256
"""How many deleted exports one :meth:`Plane.sweep` lets go of."""

ENTRY = struct.Struct("<QQq12I")
"""A published entry: ``fsd_entry`` of ``face.h``."""
ASKED: int = _plane.lib.FSD_ASKED
UNLOOKED: int = _plane.lib.FSD_UNLOOKED
LISTED: int = _plane.lib.FSD_LISTED
GUARDED: int = _plane.lib.FSD_GUARDED
TOLD: int = _plane.lib.FSD_TOLD
"""Its flags, as ``face.h`` says what they mean."""


class Mode(enum.IntEnum):
    """How the nodes of an export are reopened when no descriptor of them is kept."""

    BTRFS_HANDLE = _plane.lib.FSD_BTRFS_HANDLES
    """By a file handle made from the inode number: one call, and nothing kept per node."""
    HANDLE = _plane.lib.FSD_HANDLES
    """By a file handle kept for each node."""
    NAME = _plane.lib.FSD_NAMES
    """By the names that lead to it, where file handles cannot be opened: four calls an entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A directory that is shown: its number and the node id of its root."""

    number: int
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Figures since the start, and what is held now."""

    requests: int
    forwarded: int
    parked: int
    taken: int
    """Snapshots that were laid ready and taken."""
    refused: int
    nodes: int
    files: int
    exports: int
    descriptors: int
    backings: int
    pinned: int
    polls: int
    spins: int
    awakenings: int
    """How often processors were kept from sleeping, since requests came one after another."""
    malformed: int
    searches: int
    """How often a tree nobody changes was read in bulk."""
    watched: int
    """Trees that others change, of which the filesystem tells what they change."""
    unwatched: int
    """Those it does not tell of: the kernel asks again after a second."""
    watching: int
    """Filesystems that tell now; none when nobody looked for a while."""
    lost: int
    """How often more changed elsewhere than could be followed, so that everything was asked for again."""
    published: int
    held: int
    """Published entries the kernel holds."""
    answered: int
    """Requests on synthetic nodes that Python did not see."""
    passthrough: bool
    ended: bool
    threads: int
    minor: int
    operations: dict[int, int]
    """How often each opcode of the FUSE protocol was asked for."""
    asked: dict[int, int]
    """How often Python was."""


_FIGURES = tuple(name for name, kind in Stats.__annotations__.items() if kind == "int")


def number_of(node: int) -> int:
    """The number of the tree a node id belongs to."""
    return node >> INODE_BITS & NUMBER_MAX - 1


class Plane:
    """One running data plane. Methods may be called from any thread and do not block for long.

    Args:
        device: a FUSE device descriptor that is, or is about to be, mounted; it is taken over.
        passthrough: let the kernel read and write real files itself where it can.
        noise: shell patterns of names whose changes pass gates unnoticed.
        quiet: how many seconds a small file that others may change must have been left alone for its data to
            be kept.
        idle: how many seconds after the last request changes elsewhere are followed.
        keep_awake: let idle processors of a virtual machine poll as long as requests come one after another.
        descriptors: how many directories may be kept open.
    """

    def __init__(
        self,
        device: int,
        *,
        passthrough: bool = True,
        noise: Sequence[str] = (),
        threads: int = THREADS,
        spin: int = SPIN,
        quiet: int = QUIET,
        idle: int = IDLE,
        keep_awake: bool = True,
        descriptors: int | None = None,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setblocking(True)
            _enlarge(end)
        self._ours, self._theirs = ours, theirs
        self._device = device
        noise_text = _plane.ffi.new("char[]", "\n".join(noise).encode())
        settings = _plane.ffi.new("fsd_settings *")
        settings.device, settings.socket = device, ours.fileno()
        settings.threads, settings.spin = threads, spin
        settings.quiet, settings.idle = quiet, idle
        settings.keep_awake = keep_awake
        settings.descriptors = _default_slots() if descriptors is None else descriptors
        settings.passthrough = passthrough
        settings.noise = noise_text
        self._c = _plane.lib.fsd_start(settings)
        if not self._c:
            number = _plane.ffi.errno
            self._close()
            raise OSError(number, f"the data plane did not start: {os.strerror(number)}")
        self._event = _plane.ffi.new("fsd_event *")

    def hand_over(self) -> str:
        """The mount point to give to pyfuse3: its end of the socket pair, which it will close."""
        return f"/dev/fd/{self._theirs.detach()}"

    @property
    def events_fd(self) -> int:
        """Readable while :meth:`events` may have something."""
        number: int = _plane.lib.fsd_event_fd(self._c)
        return number

    def export(
        self,
        path: Path,
        number: int,
        *,
        read_only: bool,
        frozen: bool = False,
        gated: bool = False,
        sealed: bool = False,
        by_name: bool = False,
        owner: int = 0,
        userns: int = 0,
    ) -> Export:
        """Show the directory ``path`` under a number; showing it again changes its flags.

        Args:
            frozen: nobody changes it any more, so the kernel may cache all of it for good.
            gated: mutations wait while it is armed, which it is from the start.
            sealed: nothing in it may change before :meth:`exchange`; it has to be gated.
            by_name: reopen nodes by name, as without the privilege to use file handles.
            owner: whose removals :meth:`deny` can forbid.
            userns: descriptor of a user namespace; what it maps from is on disk, what to is shown.

        Raises:
            OSError: the directory cannot be opened, or the number is out of range; ``EOPNOTSUPP`` where
                owners cannot be mapped.
        """
        lib = _plane.lib
        flags = (
            read_only * lib.FSD_READ_ONLY
            | frozen * lib.FSD_FROZEN
            | by_name * lib.FSD_BY_NAME
            | gated * lib.FSD_GATED
            | sealed * lib.FSD_SEALED
        )
        node = _plane.lib.fsd_export(self._c, os.fsencode(path), number, flags, owner, userns)
        return Export(number=number, node=_checked(node, path))

    def unexport(self, number: int) -> None:
        """Show it no more. Nodes the kernel holds go on working as long as their inodes exist."""
        _plane.lib.fsd_unexport(self._c, number)

    def exchange(self, number: int, path: Path) -> None:
        """Go over from the subvolume a sealed export shows to a snapshot of it, under the same nodes.

        Raises:
            OSError: EOPNOTSUPP where nodes are not reopened by btrfs handles.
        """
        _checked(_plane.lib.fsd_exchange(self._c, number, os.fsencode(path)), path)

    def writers(self, number: int) -> int:
        """How many files of an export are open for writing."""
        return int(_plane.lib.fsd_writers(self._c, number))

    def sweep(self) -> list[int]:
        """Let go of exports whose directory was deleted, by whoever; their numbers.

        What the kernel still holds of them fails with ESTALE; files that are open stay so.
        """
        numbers = _plane.ffi.new("uint32_t[]", SWEPT_MAX)
        found = _plane.lib.fsd_sweep(self._c, numbers, SWEPT_MAX)
        return list(numbers[0:found])

    def knows(self, number: int) -> bool:
        """Whether anything is shown under that number, or the kernel still holds something of it."""
        return bool(_plane.lib.fsd_mode(self._c, number) >= 0)

    def mode(self, number: int) -> Mode:
        """How nodes of an export are reopened.

        Raises:
            OSError: nothing is shown under that number.
        """
        return Mode(_checked(_plane.lib.fsd_mode(self._c, number)))

    def arm(self, number: int) -> None:
        """Make the next mutation of an export wait."""
        _plane.lib.fsd_arm(self._c, number)

    def disarm(self, number: int, *, quiet: float, until: float) -> None:
        """Let mutations pass until none came for ``quiet`` seconds, or until a time (since the epoch)."""
        _plane.lib.fsd_disarm(self._c, number, nanoseconds(quiet), nanoseconds(until))

    def prepare_in(self, directory: Path) -> None:
        """Say in which directory the holders of snapshots are.

        Raises:
            OSError: it cannot be opened.
        """
        _checked(_plane.lib.fsd_prepare_in(self._c, os.fsencode(directory)), directory)

    def prepare(self, number: int, preparation: Preparation | None) -> None:
        """Lay the next snapshot of an export ready, or take back what was; nothing happens if it is gone."""
        _plane.lib.fsd_prepare(self._c, number, preparation_of(preparation))

    def unwritten(self) -> int:
        """How many snapshots were taken so and are not :meth:`written` down."""
        return int(_plane.lib.fsd_unwritten(self._c)) if self._c else 0

    def first_taken(self) -> Taken | None:
        """The oldest of them."""
        found = _plane.ffi.new("fsd_taken *")
        return taken_of(found) if _plane.lib.fsd_first_taken(self._c, found) else None

    def written(self) -> None:
        """The oldest of them is written down."""
        _plane.lib.fsd_written(self._c)

    def await_taking(self, holder: str = "") -> None:
        """Wait, with others running, while one of that holder, or any, is being taken."""
        if self._c:
            _plane.lib.fsd_await_taking(self._c, os.fsencode(holder))

    def events(self) -> Iterator[Event]:
        """What happened since the last call, oldest first."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.events_fd, 8)
        while _plane.lib.fsd_next_event(self._c, self._event):
            yield event_of(self._event)

    def resume(self, ticket: int, error: int = 0) -> None:
        """Let a parked request go on, or fail it with an errno."""
        _plane.lib.fsd_resume(self._c, ticket, error)

    def give_number(self, export: int, handle: bytes, number: int) -> None:
        """Tell the number of a nested subvolume; the request that asked still has to be resumed."""
        _plane.lib.fsd_number(self._c, export, handle, len(handle), number)

    def deny(self, pid: int, started: int, owner: int) -> None:
        """Refuse removals in an owner's exports to a process, known by pid and start time (clock ticks)."""
        _plane.lib.fsd_deny(self._c, pid, started, owner)

    # -- the synthetic tree ------------------------------------------------------------------------

    def follow(self, directory: Path, pattern: str) -> None:
        """Let every change of a file of that shell pattern outdate what is published.

        Raises:
            OSError: the directory is not there, or the system's inotify limits are reached.
        """
        _checked(_plane.lib.fsd_follow(self._c, os.fsencode(directory), pattern.encode()), directory)

    def generation(self) -> int:
        """What is rendered after this call may be published with this number."""
        number: int = _plane.lib.fsd_generation(self._c)
        return number

    def outdate(self) -> None:
        """What is published is not so any more: something it shows has changed."""
        if self._c:
            _plane.lib.fsd_outdate(self._c)

    def expire(self, node: int) -> None:
        """The same of one object."""
        if self._c:
            _plane.lib.fsd_expire(self._c, node)

    def child(self, parent: int, name: bytes) -> int:
        """Node of an entry of a directory of a real tree; 0 when there is none."""
        return int(_plane.lib.fsd_child(self._c, parent, name))

    def failed(self, nodes: Sequence[int]) -> None:
        """Nodes that have the extended attribute ``user.fsd.error``; all others of Python's have none."""
        _plane.lib.fsd_failed(self._c, nodes, len(nodes))

    def publish(
        self,
        entries: bytearray,
        text: bytes,
        *,
        parent: int,
        owner: int,
        generation: int,
        lasts: float,
        guard: tuple[str, int] | None = None,
    ) -> bool:
        """Answer for an object without asking Python; false when that came too late. Either way
        :meth:`released` tells when its nodes are not needed any more.

        Args:
            entries: :data:`ENTRY` of the object, of its entries, of theirs, level by level.
            text: their names and targets.
            parent: node of the directory it is listed in.
            owner: whose removals are denied to a process that lists it, as in :meth:`deny`; 0 for none.
            generation: from before it was rendered.
            lasts: seconds it may be shown at most.
            guard: a btrfs subvolume and the transaction that changed it last; :data:`GUARDED` entries hold as
                long as that is so.

        Raises:
            OSError: EEXIST, one of the nodes is published already; EINVAL, ENOMEM.
        """
        ffi = _plane.ffi
        rows, chars = ffi.from_buffer("fsd_entry[]", entries), ffi.from_buffer("char[]", text)
        path, transaction = guard or ("", 0)
        subvolume = ffi.new("char[]", os.fsencode(path)) if path else ffi.NULL
        given = (
            rows,
            chars,
            len(rows),
            len(text),
            parent,
            owner,
            generation,
            nanoseconds(lasts),
            subvolume,
            transaction,
        )
        error: int = _plane.lib.fsd_publish(self._c, ffi.new("fsd_object *", given))
        return error != -errno.ESTALE and _checked(error) == 0

    def retract(self, node: int) -> None:
        """Answer no more for an object; lookups of it that the kernel holds go on being counted."""
        _plane.lib.fsd_retract(self._c, node)

    def released(self) -> list[int]:
        """A node id of each group that was, or was to be, published, and of which now nothing is.

        Nor is anything of them held by the kernel, as far as that was counted here. Each is told once.
        """
        released: list[int] = []
        if self._c:
            ids = _plane.ffi.new("uint64_t[]", RELEASED_MAX)
            while found := _plane.lib.fsd_released(self._c, ids, RELEASED_MAX):
                released.extend(ids[0:found])
        return released

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Make the kernel look a name up again."""
        _plane.lib.fsd_invalidate_entry(self._c, parent, name)

    def stats(self) -> Stats:
        """Figures of now."""
        found = _plane.ffi.new("fsd_stats *")
        _plane.lib.fsd_stats_read(self._c, found)
        values = {name: int(getattr(found, name)) for name in _FIGURES}
        operations = {code: int(n) for code, n in enumerate(found.operations) if n}
        asked = {code: int(n) for code, n in enumerate(found.asked) if n}
        return Stats(
            operations=operations,
            asked=asked,
            **values,
            passthrough=bool(found.passthrough),
            ended=bool(found.ended),
        )

    def describe(self) -> str:
        """One line on how data gets in and out, and what is held."""
        now = self.stats()
        how = "passthrough" if now.passthrough else "reads and writes by request (no passthrough)"
        return f"{how}, {now.nodes} nodes, {now.files} open files, {now.requests} requests"

    def stop(self) -> None:
        """End all threads, let go of everything and close the device. Idempotent."""
        if self._c:
            _plane.lib.fsd_stop(self._c)
            self._c = _plane.ffi.NULL
            self._close()

    def _close(self) -> None:
        os.close(self._device)
        self._ours.close()
        self._theirs.close()


def _checked(result: int, path: Path | None = None) -> int:
    """The result of a call; the ``OSError`` of one that is a negated errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), None if path is None else str(path))
    return result


def _enlarge(end: socket.socket) -> None:
    """Room for a few whole requests: with privilege as much as wanted, else what the system allows."""
    force = 32  # SO_SNDBUFFORCE, socket(7)
    try:
        end.setsockopt(socket.SOL_SOCKET, force, 4 << 20)
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)


def _default_slots() -> int:
    """A quarter of the descriptors the process may have; open files need the others."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return SLOTS_MAX if soft == resource.RLIM_INFINITY else max(16, min(SLOTS_MAX, soft // 4))
