"""Compressed streams: detection by magic, decoding and encoding in constant memory.

Magic numbers: RFC 1952 (gzip), RFC 8878 (zstd), the bzip2 and xz file formats. All four allow several
streams in a row, and so do we. Nothing here holds more than about a megabyte of decoded bytes however
far a stream expands.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, BinaryIO, cast

import zstandard

from drivers import zstdframes
from drivers.base import Compression
from drivers.errors import HostileArchive, MalformedArchive
from drivers.limits import DEFAULT_LIMITS

PIECE = 1 << 20
"""Most decoded bytes in one piece."""
MAGIC_SIZE = 6
_MAGIC = (
    (b"BZh", Compression.BZIP2),
    (b"\x1f\x8b\x08", Compression.GZIP),
    (b"\xfd7zXZ\0", Compression.XZ),
    (b"\x28\xb5\x2f\xfd", Compression.ZSTD),
)


def detect(head: bytes) -> Compression:
    """The compression of a stream that starts with ``head`` (at least 6 bytes unless it is shorter)."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    return Compression.NONE


def decompress(
    kind: Compression, chunks: Iterable[bytes], window: int = DEFAULT_LIMITS.window
) -> Iterator[bytes]:
    """Decode ``chunks`` to pieces of at most 1 MiB.

    Raises:
        MalformedArchive: the stream is damaged, truncated, or followed by garbage.
        HostileArchive: decoding needs more than ``window`` bytes of history.
    """
    if kind is Compression.NONE:
        return (chunk for chunk in chunks if chunk)
    if kind is Compression.ZSTD:
        return _unzstd(chunks, window)
    return _decode(_CODECS[kind], chunks, window)


class _Zlib:
    name = "gzip"

    def __init__(self, window: int) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self._inner.eof:
            yield self._inner.decompress(data, PIECE)
            data = self._inner.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


class _Pulled:
    """bz2 and lzma keep undecoded input themselves."""

    name = ""
    _inner: bz2.BZ2Decompressor | lzma.LZMADecompressor

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self._inner.decompress(data, PIECE)
        while not self._inner.eof and not self._inner.needs_input:
            yield self._inner.decompress(b"", PIECE)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


class _Bzip2(_Pulled):
    name = "bzip2"

    def __init__(self, window: int) -> None:
        self._inner = bz2.BZ2Decompressor()


class _Xz(_Pulled):
    name = "xz"

    def __init__(self, window: int) -> None:
        self._inner = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=window)


_CODECS: dict[Compression, Any] = {
    Compression.GZIP: _Zlib,
    Compression.BZIP2: _Bzip2,
    Compression.XZ: _Xz,
}


def _decode(codec: Any, chunks: Iterable[bytes], window: int) -> Iterator[bytes]:
    decoder: Any = codec(window)
    started = False
    for chunk in chunks:
        data = chunk
        while data:
            if decoder.eof:
                decoder, started = codec(window), False
            if not started:
                # Zero padding between and after streams: xz demands it, tapes add it.
                data = data.lstrip(b"\0")
                started = bool(data)
                if not data:
                    break
            try:
                yield from filter(None, decoder.feed(data))
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise _bad_stream(codec.name, error) from error
            data = decoder.unused_data if decoder.eof else b""
    if started and not decoder.eof:
        raise MalformedArchive(f"{codec.name} stream is truncated")


def _bad_stream(name: str, error: Exception) -> Exception:
    if "Memory usage limit" in str(error):
        return HostileArchive(f"{name} stream needs too much memory to decode")
    return MalformedArchive(f"{name} stream is damaged: {error}")


class _ChunkFile(io.RawIOBase):
    """A readable file over an iterator of chunks; closing it closes a generator."""

    def __init__(self, chunks: Iterable[bytes], on_close: Callable[[], None] | None = None) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")
        self._on_close = on_close

    def close(self) -> None:
        if self.closed:
            return
        try:
            if isinstance(self._chunks, Generator):
                self._chunks.close()
        finally:
            super().close()
            if self._on_close is not None:
                self._on_close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        taken = min(len(buffer), len(self._rest))
        memoryview(buffer).cast("B")[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken


def _unzstd(chunks: Iterable[bytes], window: int) -> Iterator[bytes]:
    decoder = zstandard.ZstdDecompressor(max_window_size=window)
    source = cast("Any", _ChunkFile(zstdframes.checked(chunks)))
    reader = decoder.stream_reader(source, read_size=PIECE, read_across_frames=True)
    try:
        while piece := reader.read(PIECE):
            yield piece
    except zstandard.ZstdError as error:
        if "memory" in str(error):
            raise HostileArchive("zstd stream needs too much memory to decode") from error
        raise MalformedArchive(f"zstd stream is damaged: {error}") from error


# -- encoding ----------------------------------------------------------------------------------


def compress(kind: Compression, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Encode ``chunks`` with the format's usual level; the bytes are not those of any other encoder."""
    if kind is Compression.NONE:
        yield from chunks
        return
    encoder = _encoder(kind)
    for chunk in chunks:
        if out := encoder.compress(chunk):
            yield out
    yield encoder.flush()


def _encoder(kind: Compression) -> Any:
    if kind is Compression.GZIP:
        return zlib.compressobj(wbits=31)
    if kind is Compression.BZIP2:
        return bz2.BZ2Compressor()
    if kind is Compression.XZ:
        return lzma.LZMACompressor()
    return zstandard.ZstdCompressor().compressobj()


def chunks_of(stream: BinaryIO, size: int = PIECE) -> Iterator[bytes]:
    """What ``stream`` holds, in pieces of at most ``size`` bytes."""
    while piece := stream.read(size):
        yield piece


def reader_of(chunks: Iterable[bytes], on_close: Callable[[], None] | None = None) -> io.BufferedReader:
    """A readable stream over chunks, for callers that want a file; ``on_close`` runs once at its close."""
    return io.BufferedReader(_ChunkFile(chunks, on_close), PIECE)
