"""Compressed streams: several in a row, padding, truncation, garbage, bounded memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
import zstandard

from drivers.base import Compression
from drivers.compress import PIECE, compress, decompress, detect, reader_of
from drivers.errors import HostileArchive, MalformedArchive
from tests.support.features import lacking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = [Compression.GZIP, Compression.BZIP2, Compression.XZ, Compression.ZSTD]
PEERS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.GZIP: gzip.compress,
    Compression.BZIP2: bz2.compress,
    Compression.XZ: lzma.compress,
    Compression.ZSTD: zstandard.ZstdCompressor(write_checksum=True).compress,
}
TEXT = b"some text that compresses " * 4000 + os.urandom(5000)
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\0\0\0hello"


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def decode(kind: Compression, data: bytes, size: int = 1000) -> bytes:
    return b"".join(decompress(kind, chunked(data, size)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3, 997, 1 << 20])
def test_decompress_any_chunking_gives_the_text(kind: Compression, size: int) -> None:
    data = PEERS[kind](TEXT)
    assert detect(data) is kind
    assert decode(kind, data, size) == TEXT


@pytest.mark.parametrize("kind", KINDS)
def test_decompress_streams_in_a_row_are_joined(kind: Compression) -> None:
    assert decode(kind, PEERS[kind](b"first") + PEERS[kind](b"") + PEERS[kind](b"second")) == b"firstsecond"


@pytest.mark.parametrize("kind", [Compression.GZIP, Compression.BZIP2, Compression.XZ])
def test_decompress_zero_padding_is_ignored(kind: Compression) -> None:
    assert decode(kind, PEERS[kind](b"x") + bytes(4096) + PEERS[kind](b"y") + bytes(8)) == b"xy"


def test_decompress_zstd_skippable_frames_are_skipped() -> None:
    frame = PEERS[Compression.ZSTD](TEXT)
    assert decode(Compression.ZSTD, frame + SKIPPABLE + frame + SKIPPABLE, 7) == TEXT * 2


@pytest.mark.parametrize("kind", KINDS)
def test_decompress_every_cut_is_an_error(kind: Compression) -> None:
    data = PEERS[kind](b"a text of some length")
    for cut in range(1, len(data)):
        with pytest.raises(MalformedArchive, match=r"truncated|damaged"):
            decode(kind, data[:cut], 5)


@pytest.mark.parametrize("kind", KINDS)
def test_decompress_garbage_after_the_stream_is_an_error(kind: Compression) -> None:
    with pytest.raises(MalformedArchive, match=r"damaged|truncated"):
        decode(kind, PEERS[kind](b"x") + b"garbage")


@pytest.mark.parametrize("kind", KINDS)
def test_decompress_pieces_stay_small_however_far_it_expands(kind: Compression) -> None:
    pieces = decompress(kind, [PEERS[kind](bytes(64 << 20))])
    assert max(map(len, pieces)) <= PIECE


def test_decompress_window_limit_is_kept() -> None:
    data = lzma.compress(b"x", preset=9)
    with pytest.raises(HostileArchive, match="xz stream needs too much memory"):
        list(decompress(Compression.XZ, [data], window=1 << 20))
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=24)
    ).compressobj()
    data = wide.compress(os.urandom(100)) + wide.flush()
    with pytest.raises(HostileArchive, match="zstd stream needs too much memory"):
        list(decompress(Compression.ZSTD, [data], window=1 << 20))


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        (Compression.GZIP, "gzip"),
        (Compression.BZIP2, "bzip2"),
        (Compression.XZ, "xz"),
        (Compression.ZSTD, "zstd"),
    ],
)
def test_compress_is_read_by_the_usual_program(kind: Compression, command: str) -> None:
    data = b"".join(compress(kind, chunked(TEXT, 10_000)))
    assert decode(kind, data) == TEXT
    try:
        done = subprocess.run([command, "-dc"], input=data, capture_output=True, check=True)
    except FileNotFoundError:
        lacking(f"{command} is not installed")
    assert done.stdout == TEXT


def test_detect_short_and_plain_heads_are_no_compression() -> None:
    for head in (b"", b"B", b"\x1f\x8b", b"ustar", bytes(512)):
        assert detect(head) is Compression.NONE


def test_reader_of_closes_its_generator_once() -> None:
    events: list[str] = []

    def chunks() -> Iterator[bytes]:
        try:
            yield b"abc"
            yield b"def"
        finally:
            events.append("generator")

    reader = reader_of(chunks(), lambda: events.append("callback"))
    assert reader.read(4) == b"abcd"
    reader.close()
    reader.close()
    assert events == ["generator", "callback"]
