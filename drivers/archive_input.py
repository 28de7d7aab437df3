"""An archive on its way in: read, decompressed, measured and hashed ahead of whoever unpacks it.

A thread of its own does all of that. ``read``, zlib, lzma, zstd and SHA-256 release the GIL, so on two
processors the digests and the decompression cost the unpacking next to nothing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, BinaryIO

from drivers.ahead import Ahead
from drivers.base import Compression
from drivers.compress import MAGIC_SIZE, PIECE, decompress, detect
from drivers.errors import HostileArchive, MalformedArchive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers.limits import Limits


END = bytes(1024)
"""The two zero blocks that a tar ends with (POSIX, pax interchange format)."""


class Meter:
    """SHA-256, count and end of the bytes that passed."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._tail = b""
        self.size = 0

    def add(self, data: bytes) -> None:
        """Count and hash ``data``."""
        self._hash.update(data)
        self._tail = (self._tail + data[-len(END) :])[-len(END) :]
        self.size += len(data)

    @property
    def ended(self) -> bool:
        """Whether the last bytes are a tar's end."""
        return self._tail == END

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of everything so far."""
        return f"sha256:{self._hash.hexdigest()}"


class ArchiveInput:
    """Pieces of the uncompressed archive, in order; take them all, then read the results.

    Raises (from :meth:`next`):
        MalformedArchive: the compressed stream is damaged or truncated.
        HostileArchive: it expands beyond ``limits``.
    """

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self.compression = Compression.NONE
        self.given = Meter()
        self.plain = self.given
        self._ahead = Ahead(self._pieces(), "archive-input")
        self.next = self._ahead.next

    def __enter__(self) -> ArchiveInput:
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.close()

    # -- in the reading thread -----------------------------------------------------------------------

    def _pieces(self) -> Iterator[bytes]:
        head = self._head()
        self.compression = detect(head)
        if self.compression is Compression.NONE:
            pieces = self._chunks(head)
        else:
            self.plain = Meter()
            pieces = decompress(self.compression, self._chunks(head), self._limits.window)
        for piece in pieces:
            if self.plain is not self.given:
                self.plain.add(piece)
            self._check()
            yield piece

    def _head(self) -> bytes:
        head = b""
        while len(head) < MAGIC_SIZE and (more := self._stream.read(PIECE)):
            head += more
        return head

    def _chunks(self, head: bytes) -> Iterator[bytes]:
        chunk = head
        while chunk:
            self.given.add(chunk)
            yield chunk
            chunk = self._stream.read(PIECE)

    def _check(self) -> None:
        limits, size = self._limits, self.plain.size
        if size > limits.size:
            raise HostileArchive(f"the archive holds more than {limits.size} bytes")
        if size > limits.ratio_floor and size > limits.ratio * self.given.size:
            raise HostileArchive(f"the archive expands more than {limits.ratio} times: {size} bytes so far")


class Window:
    """Sequential access to an :class:`ArchiveInput` with as much look-ahead as asked for."""

    def __init__(self, source: ArchiveInput) -> None:
        self._source = source
        self.data = b""
        self.at = 0

    @property
    def available(self) -> int:
        """Bytes in memory and not yet taken."""
        return len(self.data) - self.at

    def fill(self, size: int) -> bool:
        """Have at least ``size`` bytes in memory; false if the archive ends before."""
        while self.available < size:
            piece = self._source.next()
            if not piece:
                return False
            self.data = self.data[self.at :] + piece if self.available else piece
            self.at = 0
        return True

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes; ``MalformedArchive`` if the archive ends before."""
        if not self.fill(size):
            raise MalformedArchive(f"the archive ends {size - self.available} bytes too early")
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def some(self, limit: int) -> bytes:
        """Between 1 and ``limit`` bytes, what is at hand; ``b""`` at the end of the archive."""
        if not self.fill(1):
            return b""
        piece = self.data[self.at : self.at + limit]
        self.at += len(piece)
        return piece
