"""Applies layer archives: decompress, unpack, digest and record tar-split in one pass (FORMAT 5, 6.1).

Three threads work on one archive. One reads, decompresses and hashes (:mod:`drivers.archive_input`),
the caller's unpacks, and the tar-split file compresses in a third (:mod:`drivers.tarsplit_file`).
Plain entries are taken by a compiled loop, a megabyte at a time; every other entry, and every error,
is :class:`~drivers.unpack.Unpacker`'s.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

from drivers.archive_input import ArchiveInput, Window
from drivers.archive_native import ENTRY, Loop, Seen, crc64
from drivers.base import Applied
from drivers.beneath import NOTHING, Beneath
from drivers.confine import Root
from drivers.idmap import IDMappings
from drivers.limits import DEFAULT_LIMITS, Limits
from drivers.rescue import Rescue
from drivers.tarformat import clean_name
from drivers.tarreader import TarReader
from drivers.tarsplit import TarSplitWriter
from drivers.tarsplit_file import TarSplitFile
from drivers.unpack import Target, Unpacker, is_whiteout

if TYPE_CHECKING:
    from pathlib import Path

    from drivers.tarformat import Entry

__all__ = ["Limits", "apply_archive"]


def apply_archive(
    root: int | Path,
    stream: BinaryIO,
    *,
    mappings: IDMappings | None = None,
    tar_split: BinaryIO | None = None,
    limits: Limits = DEFAULT_LIMITS,
    compiled: bool = True,
    beneath: Beneath = NOTHING,
    ignore_chown_errors: bool = False,
) -> Applied:
    """Unpack a layer archive into the tree ``root``.

    Args:
        root: the layer's directory, path or descriptor.
        stream: tar, plain or compressed with gzip, bzip2, xz or zstd; read to its end.
        mappings: owners in the archive are container IDs; they become host IDs.
        tar_split: receives uncompressed tar-split lines. A :class:`~drivers.tarsplit_file.TarSplitFile`
            is fastest; anything else is written when the archive has been read.
        limits: what the archive may ask for.
        compiled: take plain entries by the compiled loop; the result is the same without it.
        beneath: what the tree lies on, for a tree that holds changes only.
        ignore_chown_errors: leave an owner as it is where the system refuses to set it.

    Raises:
        MalformedArchive, HostileArchive: naming the entry; OSError. The tree is then undefined and the
        caller removes it; nothing outside it was touched.
    """
    with ExitStack() as stack:
        tree = stack.enter_context(Root(root))
        source = stack.enter_context(ArchiveInput(stream, limits))
        target = Target(
            root=tree,
            mappings=mappings or IDMappings(),
            beneath=beneath,
            ignore_chown_errors=ignore_chown_errors,
        )
        job = _Application(target, source, limits, record=tar_split is not None)
        stack.callback(job.close)
        if tar_split is None:
            job.run(None, compiled)
        elif isinstance(tar_split, TarSplitFile):
            job.run(tar_split, compiled)
            if job.rescue:
                tar_split.rewrite(job.rescue.rewrite)
        else:
            _spooled(job, tar_split, compiled)
        return job.applied()


def _spooled(job: _Application, tar_split: BinaryIO, compiled: bool) -> None:
    """Lines may have to be rewritten at the end, so they wait in a temporary file."""
    with tempfile.TemporaryFile() as spool:
        job.run(spool, compiled)
        spool.seek(0)
        if job.rescue:
            job.rescue.rewrite(spool, tar_split)
        else:
            shutil.copyfileobj(spool, tar_split, 1 << 20)


class _Application:
    """One archive on its way into one tree."""

    def __init__(self, target: Target, source: ArchiveInput, limits: Limits, *, record: bool) -> None:
        self._source = source
        self._compilable = target.beneath.plain
        self._limits = limits
        self._window = Window(source)
        self._reader = TarReader(self._window, limits)
        self._seen = Seen()
        self._loop = Loop(
            target.root.fd,
            self._seen,
            target.mappings,
            record=record,
            leave_new_directories=target.beneath.directories,
        )
        self.rescue = Rescue(target.root, self._seen, limits)
        self._unpacker = Unpacker(target, limits, self._seen, self._loop, self.rescue if record else None)

    def close(self) -> None:
        """Release descriptors and temporary files."""
        self._unpacker.close()
        self.rescue.close()

    def run(self, lines: BinaryIO | None, compiled: bool) -> None:
        """Unpack everything; tar-split goes to ``lines``."""
        writer = TarSplitWriter(lines) if lines is not None else None
        while True:
            if compiled and self._compilable:
                self._take_plain(writer)
            entry = self._reader.next()
            if entry is None:
                break
            self._take(entry, writer)
        self._take_rest(writer)
        self._unpacker.close()
        self._loop.set_times()

    def _take_plain(self, writer: TarSplitWriter | None) -> None:
        """Run the compiled loop until it meets an entry that is not plain."""
        window, loop, unpacker = self._window, self._loop, self._unpacker
        while True:
            position = writer.position if writer is not None else 0
            left = self._limits.entries - 1 - unpacker.entries
            padding = self._reader.padding_ahead
            result = loop.run(window.data, window.at, padding, max(left, 0), position)
            if loop.entries:
                window.at += loop.consumed
                self._reader.skipped(loop.padding)
                unpacker.entries += loop.entries
                unpacker.content_size += loop.content
                if writer is not None:
                    writer.ready(loop.lines, loop.position)
            if result != Loop.MORE or not window.fill(loop.wanted):
                return

    def _take(self, entry: Entry, writer: TarSplitWriter | None) -> None:
        path = clean_name(entry.name)
        raw = self._reader.take_raw()
        if writer is None:
            self._unpacker.apply(entry, path, self._reader.content())
            return
        writer.segment(raw)
        again = self._seen.has(ENTRY, path)
        if again or entry.sparse is not None or (entry.size and is_whiteout(path)):
            self.rescue.charge(entry.name, entry.size)
            self._unpacker.apply(entry, path, _copied(self._reader.content(), writer))
            if not again:
                # Other readers want to see each name once; its bytes are above.
                writer.file(entry.name, 0, 0)
            return
        total = _Checksum()
        self._unpacker.apply(entry, path, total.over(self._reader.content()))
        writer.file(entry.name, entry.size, total.crc)

    def _take_rest(self, writer: TarSplitWriter | None) -> None:
        raw = self._reader.take_raw()
        if writer is not None:
            writer.segment(raw)
        for piece in self._reader.rest():
            if writer is not None:
                writer.segment(piece)

    def applied(self) -> Applied:
        """What was learnt on the way."""
        source, unpacker = self._source, self._unpacker
        uids, gids = self._loop.owners()
        return Applied(
            diff_digest=source.plain.digest,
            diff_size=source.plain.size,
            compressed_digest=source.given.digest,
            compressed_size=source.given.size,
            compression=source.compression,
            content_size=unpacker.content_size,
            uids=tuple(sorted(uids | unpacker.uids)),
            gids=tuple(sorted(gids | unpacker.gids)),
            ended=source.plain.ended,
        )


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
