"""Applies layer archives: decompress, unpack, digest and record tar-split in one pass (FORMAT 5, 6.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from drivers.archive_input import ArchiveInput, Window
from drivers.base import Applied
from drivers.confine import Root
from drivers.limits import DEFAULT_LIMITS, Limits
from drivers.tarreader import TarReader
from drivers.tarsplit import TarSplitWriter, crc64
from drivers.unpack import Unpacker

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.idmap import IDMappings
    from drivers.tarformat import Entry

__all__ = ["Limits", "apply_archive"]


def apply_archive(
    root: int | Path,
    stream: BinaryIO,
    *,
    mappings: IDMappings | None = None,
    tar_split: BinaryIO | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Applied:
    """Unpack a layer archive into the tree ``root``.

    Args:
        root: the layer's directory, path or descriptor.
        stream: tar, plain or compressed with gzip, bzip2, xz or zstd; read to its end.
        mappings: owners in the archive are container IDs; they become host IDs.
        tar_split: receives uncompressed tar-split lines.
        limits: what the archive may ask for.

    Raises:
        MalformedArchive, HostileArchive: naming the entry; OSError. The tree is then undefined and the
        caller removes it; nothing outside it was touched.
    """
    with Root(root) as tree, ArchiveInput(stream, limits) as source:
        unpacker = Unpacker(tree, mappings, limits)
        try:
            _unpack(TarReader(Window(source), limits), unpacker, tar_split)
            unpacker.finish()
        finally:
            unpacker.close()
        return Applied(
            diff_digest=source.plain.digest,
            diff_size=source.plain.size,
            compressed_digest=source.given.digest,
            compressed_size=source.given.size,
            compression=source.compression,
            content_size=unpacker.content_size,
            uids=tuple(sorted(unpacker.uids)),
            gids=tuple(sorted(unpacker.gids)),
        )


def _unpack(reader: TarReader, unpacker: Unpacker, tar_split: BinaryIO | None) -> None:
    writer = TarSplitWriter(tar_split) if tar_split is not None else None
    while (entry := reader.next()) is not None:
        if writer is None:
            reader.take_raw()
            unpacker.apply(entry, reader.content())
        else:
            _record(reader, unpacker, writer, entry)
    if writer is not None:
        writer.segment(reader.take_raw())
    for piece in reader.rest():
        if writer is not None:
            writer.segment(piece)


def _record(reader: TarReader, unpacker: Unpacker, writer: TarSplitWriter, entry: Entry) -> None:
    writer.segment(reader.take_raw())
    if entry.sparse is not None:
        unpacker.apply(entry, _copied(reader.content(), writer))
        return
    total = _Checksum()
    unpacker.apply(entry, total.over(reader.content()))
    writer.file(entry.name, entry.size, total.crc)


def _copied(content: Iterable[bytes], writer: TarSplitWriter) -> Iterator[bytes]:
    for piece in content:
        writer.segment(piece)
        yield piece


class _Checksum:
    def __init__(self) -> None:
        self.crc = 0

    def over(self, content: Iterable[bytes]) -> Iterator[bytes]:
        for piece in content:
            self.crc = crc64(piece, self.crc)
            yield piece
