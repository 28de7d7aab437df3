"""Files that are made when they are read: known size, opened as often as needed, read from any place."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO, cast

from store.placed import Placed

PIECE = 1 << 20
Opener = Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class VirtualFile:
    """``size`` bytes, which every :meth:`open` gives from the start; the stream is seekable."""

    size: int
    _opener: Opener

    def open(self) -> BinaryIO:
        """A new stream over the content; close it when done."""
        return self._opener()

    def read(self) -> bytes:
        """The whole content, for small files."""
        with self.open() as stream:
            return stream.read()


def of_bytes(data: bytes) -> VirtualFile:
    """A file of these bytes."""
    return VirtualFile(len(data), lambda: io.BytesIO(data))


def of_stream(size: int, opener: Opener) -> VirtualFile:
    """A file whose content ``opener`` gives as a stream that can only be read forward."""
    return VirtualFile(size, lambda: _buffered(_Rewinding(size, opener)))


def concatenated(parts: Sequence[VirtualFile]) -> VirtualFile:
    """A file that is others in a row."""
    return VirtualFile(sum(part.size for part in parts), lambda: _buffered(_Concatenation(parts)))


def _buffered(raw: io.RawIOBase) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(raw, 1 << 16))


class _Rewinding(Placed):
    """Seeks forward by reading, and backward by opening the stream again."""

    def __init__(self, size: int, opener: Opener) -> None:
        super().__init__(size)
        self._opener = opener
        self._stream: BinaryIO | None = None
        self._reached = 0

    def read_piece(self, at: int, size: int) -> bytes:
        if self._stream is None or at < self._reached:
            self._drop()
            self._stream = self._opener()
        while self._reached < at:
            self._take(self._stream, min(PIECE, at - self._reached))
        return self._take(self._stream, size)

    def _take(self, stream: BinaryIO, size: int) -> bytes:
        piece = stream.read(size)
        if not piece:
            raise EOFError(f"content ended after {self._reached} of {self._size} bytes")
        self._reached += len(piece)
        return piece

    def _drop(self) -> None:
        stream, self._stream, self._reached = self._stream, None, 0
        if stream is not None:
            stream.close()

    def close(self) -> None:
        self._drop()
        super().close()


class _Concatenation(Placed):
    """Opens one part at a time."""

    def __init__(self, parts: Sequence[VirtualFile]) -> None:
        self._parts = [part for part in parts if part.size]
        self._starts = [0, *accumulate(part.size for part in self._parts)]
        super().__init__(self._starts[-1])
        self._open: tuple[int, BinaryIO] | None = None

    def read_piece(self, at: int, size: int) -> bytes:
        number = bisect_right(self._starts, at) - 1
        if self._open is None or self._open[0] != number:
            self._drop()
            self._open = number, self._parts[number].open()
        stream = self._open[1]
        within = at - self._starts[number]
        if stream.tell() != within:
            stream.seek(within)
        return stream.read(min(size, self._starts[number + 1] - at))

    def _drop(self) -> None:
        current, self._open = self._open, None
        if current is not None:
            current[1].close()

    def close(self) -> None:
        self._drop()
        super().close()
