"""Keeps content an archive replaces itself, so that the archive can still be reassembled.

An archive may hold one path twice, or remove what it brought: containers/storage then refuses the layer
or produces a tar-split that no longer matches (FORMAT 5). Here the content is set aside before it goes,
and its tar-split line is rewritten as raw bytes, which every reader of the format takes.
"""

from __future__ import annotations

import os
import stat
import tempfile
from typing import TYPE_CHECKING, BinaryIO

from drivers.archive_native import ENTRY, Seen
from drivers.errors import HostileArchive
from drivers.tarformat import clamp_name, show
from drivers.tarsplit import TarSplitWriter, pieces

if TYPE_CHECKING:
    from drivers.confine import Root
    from drivers.limits import Limits

_PIECE = 1 << 20


class Rescue:
    """Content set aside, by clean path; close it after use."""

    def __init__(self, root: Root, seen: Seen, limits: Limits) -> None:
        self._root = root
        self._seen = seen
        self._limit = limits.stored
        self._file: BinaryIO | None = None
        self._places: dict[bytes, tuple[int, int]] = {}
        self._aliases: dict[bytes, bytes] = {}
        self._stored = 0

    def close(self) -> None:
        """Give up what was set aside."""
        if self._file is not None:
            self._file.close()

    def __bool__(self) -> bool:
        return bool(self._places)

    def alias(self, canonical: bytes, path: bytes) -> None:
        """The archive names ``canonical`` as ``path``, through a symbolic link."""
        self._aliases[canonical] = path

    def charge(self, name: bytes, size: int) -> None:
        """Count bytes tar-split will have to carry; ``HostileArchive`` beyond the limit."""
        self._stored += size
        if self._stored > self._limit:
            raise HostileArchive(f"{show(name)}: more than {self._limit} bytes the layer cannot give back")

    def save(self, path: bytes) -> None:
        """Set aside every file of this archive at or below ``path``, which is about to be removed."""
        todo = [path]
        while todo:
            here = todo.pop()
            parent, _, name = here.rpartition(b"/")
            directory = self._root.open_directory(parent)
            try:
                self._look(directory, name, here, todo)
            finally:
                os.close(directory)

    def _look(self, directory: int, name: bytes, path: bytes, todo: list[bytes]) -> None:
        status = os.lstat(name, dir_fd=directory)
        if stat.S_ISDIR(status.st_mode):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                todo.extend(path + b"/" + os.fsencode(child) for child in os.listdir(fd))
            finally:
                os.close(fd)
        elif stat.S_ISREG(status.st_mode) and status.st_size:
            self._save_file(directory, name, path, status.st_size)

    def _save_file(self, directory: int, name: bytes, path: bytes, size: int) -> None:
        named = self._aliases.get(path, path)
        if not self._seen.has(ENTRY, named) or named in self._places:
            return
        self.charge(path, size)
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        start = self._file.seek(0, os.SEEK_END)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            while piece := os.read(fd, _PIECE):
                self._file.write(piece)
        finally:
            os.close(fd)
        self._places[named] = (start, size)

    def rewrite(self, lines: BinaryIO, out: BinaryIO) -> None:
        """Copy tar-split, content set aside taking the place of the lines that name it."""
        writer = TarSplitWriter(out)
        for piece in pieces(lines):
            place = self._places.get(clamp_name(piece.name)) if piece.raw is None and piece.size else None
            if piece.raw is not None:
                writer.segment(piece.raw)
            elif place is not None:
                self._copy(place, writer)
            else:
                writer.file(piece.name, piece.size, piece.crc)

    def _copy(self, place: tuple[int, int], writer: TarSplitWriter) -> None:
        assert self._file is not None
        start, left = place
        self._file.seek(start)
        while left:
            data = self._file.read(min(left, _PIECE))
            writer.segment(data)
            left -= len(data)
