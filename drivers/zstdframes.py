"""Follows the frame structure of a zstd stream (RFC 8878 section 3.1), to know where it may end.

The decoder we use stops quietly when its input ends inside a frame; an archive cut short must be an
error instead. Only frame and block headers are looked at, a few bytes in every 128 KiB.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

from drivers.errors import MalformedArchive

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50
_DICTIONARY_ID = (0, 1, 2, 4)
_CONTENT_SIZE = (0, 2, 4, 8)
_RLE = 1


class _Source:
    """The compressed bytes as a parser wants them."""

    def __init__(self) -> None:
        self.data = b""
        self.at = 0

    def read(self, size: int) -> Generator[None, None, int]:
        """``size`` bytes as a little-endian number; waits by yielding."""
        while len(self.data) - self.at < size:
            yield
        value = int.from_bytes(self.data[self.at : self.at + size], "little")
        self.at += size
        return value

    def skip(self, size: int) -> Generator[None, None, None]:
        """Pass over ``size`` bytes, of which nothing is kept."""
        while size > len(self.data) - self.at:
            size -= len(self.data) - self.at
            self.at = len(self.data)
            yield
        self.at += size

    def feed(self, chunk: bytes) -> None:
        """Append what arrived, and drop what was read."""
        self.data = self.data[self.at :] + chunk
        self.at = 0


class _Parser:
    def __init__(self) -> None:
        self.source = _Source()
        self.between_frames = True
        self._steps = self._run()

    def feed(self, chunk: bytes) -> None:
        self.source.feed(chunk)
        next(self._steps)

    @property
    def may_end(self) -> bool:
        return self.between_frames and self.source.at == len(self.source.data)

    def _run(self) -> Generator[None, None, None]:
        source = self.source
        while True:
            self.between_frames = True
            magic = yield from source.read(4)
            self.between_frames = False
            if magic & 0xFFFFFFF0 == _SKIPPABLE:
                yield from source.skip((yield from source.read(4)))
            elif magic == _MAGIC:
                yield from self._frame()
            else:
                raise MalformedArchive("zstd stream is damaged: garbage between frames")

    def _frame(self) -> Generator[None, None, None]:
        source = self.source
        descriptor = yield from source.read(1)
        single = descriptor >> 5 & 1
        content_size = _CONTENT_SIZE[descriptor >> 6] or single
        yield from source.skip(1 - single + _DICTIONARY_ID[descriptor & 3] + content_size)
        last = 0
        while not last:
            block = yield from source.read(3)
            last = block & 1
            yield from source.skip(1 if block >> 1 & 3 == _RLE else block >> 3)
        yield from source.skip(4 * (descriptor >> 2 & 1))


def checked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass ``chunks`` on unchanged.

    Raises:
        MalformedArchive: they end inside a frame, or something that is no frame follows one.
    """
    parser = _Parser()
    for chunk in chunks:
        parser.feed(chunk)
        yield chunk
    if not parser.may_end:
        raise MalformedArchive("zstd stream is truncated")
