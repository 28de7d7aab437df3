"""Layer archives on their way into the store: digests first, bytes second.

A layer's ID is made of the digest of its uncompressed archive, so an archive has to be read once
before its layer can be made. One that cannot be read twice is kept in an unnamed file meanwhile.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from drivers.archive_input import Meter
from drivers.base import Compression
from drivers.compress import MAGIC_SIZE, PIECE, decompress, detect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_END = "the archive has no end: it was cut off, or is no tar"
"""Text for an archive that does not end as a tar does."""
SPOOL = "fsd/tmp"
"""Directory below the graphroot in which unnamed files are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A layer archive that was read once: ``file`` stands at its start again.

    ``digest`` and ``size`` are of the bytes as given, ``diff_digest`` and ``diff_size`` of the
    uncompressed archive; sizes are bytes. ``ended``: it ends as a tar does, and was not cut off.
    """

    file: BinaryIO
    digest: str
    size: int
    diff_digest: str
    diff_size: int
    compression: Compression
    ended: bool


@contextmanager
def measured(archive: BinaryIO, graphroot: Path) -> Iterator[Blob]:
    """Read ``archive`` to its end and give it back as a :class:`Blob`.

    Raises:
        MalformedArchive, HostileArchive: it cannot be decompressed; OSError
    """
    if archive.seekable():
        start = archive.tell()
        blob = _measure(archive, archive)
        archive.seek(start)
        yield blob
        return
    with unnamed_file(graphroot) as spool:
        blob = _measure(_Copying(archive, spool), spool)
        spool.seek(0)
        yield blob


@contextmanager
def unnamed_file(graphroot: Path) -> Iterator[BinaryIO]:
    """A file on the store's filesystem that nobody sees and a crash leaves nothing of."""
    directory = graphroot / SPOOL
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w+b") as file:
        yield file


class _Copying:
    """A source whose reads are also written to a file."""

    def __init__(self, source: BinaryIO, copy: BinaryIO) -> None:
        self._source = source
        self._copy = copy

    def read(self, size: int) -> bytes:
        chunk = self._source.read(size)
        self._copy.write(chunk)
        return chunk


def _measure(source: BinaryIO | _Copying, file: BinaryIO) -> Blob:
    outer, inner = Meter(), Meter()
    chunks = _hashing(source, outer)
    head = b""
    while len(head) < MAGIC_SIZE and (chunk := next(chunks, b"")):
        head += chunk
    kind = detect(head)
    if kind is Compression.NONE:
        for _ in chunks:
            pass
        inner = outer
    else:
        for piece in decompress(kind, _prefixed(head, chunks)):
            inner.add(piece)
    return Blob(
        file=file,
        digest=outer.digest,
        size=outer.size,
        diff_digest=inner.digest,
        diff_size=inner.size,
        compression=kind,
        ended=inner.ended,
    )


def _hashing(source: BinaryIO | _Copying, total: Meter) -> Iterator[bytes]:
    for chunk in iter(lambda: source.read(PIECE), b""):
        total.add(chunk)
        yield chunk


def _prefixed(head: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks
