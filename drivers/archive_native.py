"""Typed face of ``drivers._archive``, and its only importer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from drivers import _archive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drivers.idmap import IDMap, IDMappings

_lib: Any = _archive.lib
_ffi: Any = _archive.ffi
ENTRY: int = _lib.FSD_ENTRY
"""Mark: an entry of the archive being applied."""
PARENT: int = _lib.FSD_PARENT
"""Mark: a directory above such an entry."""
LINK: int = _lib.FSD_LINK
"""Mark: a symbolic link the archive made."""


def crc64(data: bytes, crc: int = 0) -> int:
    """CRC-64/ISO of ``data`` (reflected polynomial 0xD8…, all ones in and out), continuing from ``crc``."""
    return int(_lib.fsd_crc64(crc, _ffi.from_buffer(data), len(data)))


class Seen:
    """Marks on paths in about 16 bytes each; keyed hashes, so false answers cannot be provoked."""

    def __init__(self) -> None:
        self.pointer = _ffi.gc(_lib.fsd_seen_new(os.urandom(16)), _lib.fsd_seen_free)
        if not self.pointer:
            raise MemoryError

    def add(self, kind: int, path: bytes) -> bool:
        """Mark ``path``; false if it was marked already."""
        result = _lib.fsd_seen_add(self.pointer, kind, path, len(path))
        if result < 0:
            raise MemoryError
        return bool(result)

    def has(self, kind: int, path: bytes) -> bool:
        """Whether ``path`` is marked."""
        return bool(_lib.fsd_seen_has(self.pointer, kind, path, len(path)))

    def drop(self, kind: int, path: bytes) -> None:
        """Take a mark away."""
        _lib.fsd_seen_drop(self.pointer, kind, path, len(path))


class Loop:
    """The compiled loop over plain entries; see ``_archive.h`` for what it takes and what it leaves."""

    MORE: int = _lib.FSD_MORE
    OTHER: int = _lib.FSD_OTHER

    def __init__(
        self,
        root: int,
        seen: Seen,
        mappings: IDMappings,
        *,
        record: bool,
        leave_new_directories: bool = False,
    ) -> None:
        self._seen = seen
        self._state = _ffi.gc(_lib.fsd_unpack_new(root, seen.pointer, record), _lib.fsd_unpack_free)
        if not self._state:
            raise MemoryError
        if leave_new_directories:
            _lib.fsd_unpack_leave_new_directories(self._state)
        self._progress = _ffi.new("fsd_progress *")
        uids, gids = _ranges(mappings.uids), _ranges(mappings.gids)
        if _lib.fsd_unpack_map(self._state, uids, len(uids), gids, len(gids)) < 0:
            raise MemoryError

    def run(self, data: bytes, start: int, padding: int, entries_max: int, position: int) -> int:
        """Take plain entries from ``data[start:]``; returns ``MORE`` or ``OTHER``.

        The results are the attributes below, until the next call.
        """
        progress = self._progress
        progress.padding, progress.position = padding, position
        view = _ffi.from_buffer(data)
        return int(_lib.fsd_unpack_run(self._state, view + start, len(data) - start, entries_max, progress))

    @property
    def consumed(self) -> int:
        """Bytes of the input that are done with."""
        return int(self._progress.consumed)

    @property
    def padding(self) -> int:
        """Bytes of the last entry's padding still ahead."""
        return int(self._progress.padding)

    @property
    def wanted(self) -> int:
        """After ``MORE``: bytes the next entry needs from ``consumed`` on."""
        return int(self._progress.wanted)

    @property
    def entries(self) -> int:
        """Entries taken."""
        return int(self._progress.entries)

    @property
    def content(self) -> int:
        """Sum of their sizes."""
        return int(self._progress.content)

    @property
    def position(self) -> int:
        """Number of the next tar-split line."""
        return int(self._progress.position)

    @property
    def lines(self) -> bytes:
        """tar-split lines of the entries taken."""
        return bytes(_ffi.buffer(self._progress.lines, self._progress.lines_size))

    def forget(self) -> None:
        """Drop cached directory descriptors, after directories were removed or changed."""
        _lib.fsd_unpack_forget(self._state)

    def add_time(self, path: bytes, seconds: int, nanoseconds: int) -> None:
        """Note the time the directory ``path`` gets from :meth:`set_times`."""
        if _lib.fsd_unpack_add_time(self._state, path, seconds, nanoseconds) < 0:
            raise MemoryError

    def set_times(self) -> None:
        """Set the noted times in order; directories that are gone are skipped."""
        result = _lib.fsd_unpack_set_times(self._state)
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    def owners(self) -> tuple[set[int], set[int]]:
        """Users and groups of the entries taken, as in the archive."""
        return self._owners(0), self._owners(1)

    def _owners(self, groups: int) -> set[int]:
        count = _lib.fsd_unpack_owners(self._state, groups, _ffi.NULL, 0)
        out = _ffi.new("uint32_t[]", count)
        _lib.fsd_unpack_owners(self._state, groups, out, count)
        return set(out)


class Reassembly:
    """Turns tar-split lines into archive bytes; see ``_archive.h`` for what it leaves to the caller."""

    DONE = 0
    MORE: int = _lib.FSD_MORE
    OTHER: int = _lib.FSD_OTHER

    def __init__(self, root: int, room: int) -> None:
        self._state = _ffi.gc(_lib.fsd_unpack_new(root, _ffi.NULL, 0), _lib.fsd_unpack_free)
        if not self._state:
            raise MemoryError
        self._room = room
        self._out = _ffi.new("uint8_t[]", room)
        self._result = _ffi.new("fsd_reassembly *")

    def run(self, lines: bytes, start: int) -> int:
        """Take lines from ``lines[start:]``; returns ``DONE``, ``MORE`` or ``OTHER``."""
        view = _ffi.from_buffer(lines)
        return int(
            _lib.fsd_assemble_run(
                self._state, view + start, len(lines) - start, self._out, self._room, self._result
            )
        )

    @property
    def consumed(self) -> int:
        """Bytes of the lines that are done with."""
        return int(self._result.consumed)

    def output(self) -> bytes:
        """Archive bytes of those lines."""
        return bytes(_ffi.buffer(self._out, self._result.produced))

    @property
    def sparse(self) -> bool:
        """Whether the last segment holds a sparse map; set it for a segment handled elsewhere."""
        return bool(self._result.sparse)

    @sparse.setter
    def sparse(self, value: bool) -> None:
        self._result.sparse = value


class Indexing:
    """Describes tar-split lines, many at a time."""

    _PIECES = 4096

    def __init__(self, room: int) -> None:
        self._room = room
        self._out = _ffi.new("uint8_t[]", room)
        self._pieces = _ffi.new("fsd_piece[]", self._PIECES)
        self._result = _ffi.new("fsd_reassembly *")

    def run(self, lines: bytes, start: int) -> tuple[int, list[tuple[bool, int, int, int]], bytes]:
        """Consumed bytes, ``(is a file, size, crc, stored)`` of each piece, and what they store.

        Nothing consumed means that the next line is incomplete or the caller's.
        """
        view = _ffi.from_buffer(lines)
        result = self._result
        _lib.fsd_index_run(
            view + start, len(lines) - start, self._out, self._room, self._pieces, self._PIECES, result
        )
        found = [
            (bool(p.file), p.size, p.crc, p.stored) for p in (self._pieces[n] for n in range(result.pieces))
        ]
        return int(result.consumed), found, bytes(_ffi.buffer(self._out, result.produced))


def _ranges(maps: Sequence[IDMap]) -> Any:
    return _ffi.new("fsd_range[]", [(r.container_id, r.host_id, r.size) for r in maps])
