"""A layer's archive at any offset, without rendering what comes before.

tar-split is read once into an index: where in the archive each piece starts, and, in an unnamed temporary
file, the raw bytes and file names themselves. That costs about 24 bytes of memory for a piece and a second
for 100,000 files; afterwards a read touches only the files it covers.
"""

from __future__ import annotations

import os
import tempfile
import threading
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from drivers.archive_native import Indexing, crc64
from drivers.confine import Root
from drivers.tarsplit import SPARSE, LineBuffer, Piece, has_content, open_content, parse_line, unlike
from drivers.tarsplit_file import open_lines

if TYPE_CHECKING:
    from drivers.errors import IntegrityError

_PIECE = 1 << 20
_WHOLE_MAX = 16 << 20
"""Files up to this size are checked completely at the first touch, larger ones when read in order."""
_FILE = 1 << 31


class SeekableDiff:
    """Read-only random access to the archive that ``tar-split.gz`` and the layer's tree make up.

    Thread-safe. Close it after use, or use ``with``.

    Args:
        path: the layer's tar-split.
        root: the layer's tree, path or directory descriptor.

    Raises:
        MalformedArchive, IntegrityError, OSError: the tar-split cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], root: int | Path) -> None:
        self._root = Root(root)
        self._lock = threading.Lock()
        self._starts = array("Q")
        self._places = array("Q")
        self._stored = array("L")
        self._crcs = array("Q")
        self._checked: dict[int, tuple[int, int, int]] = {}
        self._running: tuple[int, int, int] = (-1, 0, 0)
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        try:
            with open_lines(path) as lines:
                self.size = self._build(lines)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SeekableDiff:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release descriptors."""
        self._spool.close()
        self._root.close()

    # -- index ---------------------------------------------------------------------------------------

    def _build(self, lines: BinaryIO) -> int:
        self._end, self._spooled, self._sparse = 0, 0, False
        with LineBuffer(lines) as buffer:
            self._read(Indexing(2 * _PIECE), buffer)
        self._spool.flush()
        return self._end

    def _read(self, native: Indexing, buffer: LineBuffer) -> None:
        more = True
        while more or buffer.at < len(buffer.text):
            consumed, found, data = native.run(buffer.text, buffer.at)
            buffer.at += consumed
            if consumed:
                self._add_all(found, data)
            elif (line := buffer.line()) is not None:
                self._add_line(line)
            elif more:
                more = buffer.fill()
            else:
                self._add_line(buffer.last())

    def _add_line(self, line: bytes) -> None:
        if line.strip():
            piece = parse_line(line)
            data = piece.name if piece.raw is None else piece.raw
            size = piece.size if piece.raw is None else len(data)
            self._add_all([(piece.raw is None, size, piece.crc, len(data))], data)

    def _add_all(self, found: list[tuple[bool, int, int, int]], data: bytes) -> None:
        at = 0
        for is_file, size, crc, stored in found:
            raw = data[at : at + stored]
            if not is_file and size:
                self._sparse = SPARSE in raw
            if is_file and not has_content(Piece(None, raw, size, crc), sparse=self._sparse):
                size = 0
            if size:
                self._starts.append(self._end)
                self._places.append(self._spooled + at)
                self._stored.append(stored | _FILE if is_file else stored)
                self._crcs.append(crc)
                self._end += size
            at += stored
        self._spool.write(data)
        self._spooled += len(data)

    # -- reading -------------------------------------------------------------------------------------

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on; fewer only at the end.

        Raises:
            IntegrityError: a file was altered; files beyond 16 MiB are known to be only when they are
                read in order to their end.
        """
        if offset < 0 or size < 0:
            raise ValueError("negative offset or size")
        end = min(offset + size, self.size)
        out = []
        with self._lock:
            while offset < end:
                piece = self._read_piece(offset, min(end - offset, _PIECE))
                out.append(piece)
                offset += len(piece)
        return b"".join(out)

    def _read_piece(self, offset: int, size: int) -> bytes:
        number = bisect_right(self._starts, offset) - 1
        start = self._starts[number]
        stop = self._starts[number + 1] if number + 1 < len(self._starts) else self.size
        size = min(size, stop - offset)
        if not self._stored[number] & _FILE:
            return os.pread(self._spool.fileno(), size, self._places[number] + offset - start)
        name = os.pread(self._spool.fileno(), self._stored[number] & ~_FILE, self._places[number])
        return self._read_file(
            number, Piece(None, name, stop - start, self._crcs[number]), offset - start, size
        )

    def _read_file(self, number: int, piece: Piece, offset: int, size: int) -> bytes:
        fd = open_content(self._root, piece.name)
        try:
            status = os.fstat(fd)
            if status.st_size != piece.size:
                raise unlike(piece, f"{status.st_size} bytes, the layer's archive has {piece.size}")
            version = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            if piece.size <= _WHOLE_MAX and self._checked.get(number) != version:
                self._check_whole(fd, piece)
                self._remember(number, version)
            data = os.pread(fd, size, offset)
        finally:
            os.close(fd)
        if len(data) != size:
            raise unlike(piece, "became shorter while it was read")
        if piece.size > _WHOLE_MAX:
            self._check_in_order(number, piece, offset, data)
        return data

    def _check_whole(self, fd: int, piece: Piece) -> None:
        crc, offset = 0, 0
        while data := os.pread(fd, _PIECE, offset):
            crc = crc64(data, crc)
            offset += len(data)
        if crc != piece.crc:
            raise _altered(piece)

    def _remember(self, number: int, version: tuple[int, int, int]) -> None:
        if len(self._checked) > 10_000:
            self._checked.clear()
        self._checked[number] = version

    def _check_in_order(self, number: int, piece: Piece, offset: int, data: bytes) -> None:
        known, next_offset, crc = self._running
        if offset and (known, next_offset) != (number, offset):
            return
        crc = crc64(data, crc if offset else 0)
        self._running = (number, offset + len(data), crc)
        if offset + len(data) == piece.size and crc != piece.crc:
            raise _altered(piece)


def _altered(piece: Piece) -> IntegrityError:
    return unlike(piece, "content differs from the layer's archive")
