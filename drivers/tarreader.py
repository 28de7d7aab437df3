"""Walks an archive entry by entry and keeps the raw bytes between contents.

What a :class:`TarReader` saw since the last :meth:`TarReader.take_raw` is exactly the archive's bytes
other than file content: that is what tar-split records.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from drivers import tarformat as tar
from drivers.errors import HostileArchive, MalformedArchive
from drivers.tarformat import BLOCK, Entry, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers.archive_input import Window
    from drivers.limits import Limits

_ZERO = bytes(BLOCK)
_PIECE = 1 << 20
_SPECIAL = frozenset((tar.PAX, tar.PAX_GLOBAL, tar.GNU_LONGNAME, tar.GNU_LONGLINK))


class TarReader:
    """Entries of the archive in ``window``.

    Call :meth:`next`, then consume the entry's content through :meth:`content` to its end.
    """

    def __init__(self, window: Window, limits: Limits) -> None:
        self._window = window
        self._limits = limits
        self._raw = bytearray()
        self._left = 0
        self._pad = 0
        self._last = b""

    def take_raw(self) -> bytes:
        """Archive bytes seen since the last call that were not content."""
        raw = bytes(self._raw)
        self._raw.clear()
        return raw

    def skipped(self, pad: int) -> None:
        """The caller consumed entries by itself; ``pad`` bytes of padding are still ahead."""
        self._last = b""
        self._pad = pad

    @property
    def padding_ahead(self) -> int:
        """Bytes of the last entry's padding not yet read."""
        return self._pad

    def next(self) -> Entry | None:
        """The next entry, or ``None`` at the end-of-archive marker or the end of the bytes.

        Raises:
            MalformedArchive: damaged or truncated; HostileArchive: beyond the limits.
        """
        try:
            entry = self._next()
        except MalformedArchive as error:
            if not self._last:
                raise
            raise MalformedArchive(f"{error} (after entry {show(self._last)})") from None
        if entry is not None:
            self._last = entry.name
        return entry

    def _next(self) -> Entry | None:
        self._read_raw(self._pad)
        self._pad = 0
        records: list[tuple[bytes, bytes]] = []
        longname = longlink = None
        pending = 0
        while (block := self._header_block()) is not None:
            entry = tar.parse_block(block)
            if entry.type not in _SPECIAL:
                return self._complete(entry, block, records, longname, longlink)
            pending += 1
            body = self._special(entry)
            if pending > 16:
                raise HostileArchive("more than 16 extension headers before one entry")
            if entry.type == tar.PAX:
                records = tar.parse_pax(body)
            elif entry.type == tar.PAX_GLOBAL:
                # containers/storage does not apply global records either (FORMAT 5); the same
                # layer must give the same tree whichever tool unpacks it.
                tar.parse_pax(body)
                pending -= 1
            elif entry.type == tar.GNU_LONGNAME:
                longname = body.split(b"\0", 1)[0]
            else:
                longlink = body.split(b"\0", 1)[0]
        if pending:
            raise MalformedArchive("the archive ends after an extension header")
        return None

    def _header_block(self) -> bytes | None:
        if not self._window.fill(BLOCK):
            if self._window.available:
                raise MalformedArchive("the archive is truncated within a header")
            return None
        block = self._read_raw(BLOCK)
        if block != _ZERO:
            return block
        if self._window.fill(BLOCK):
            second = self._read_raw(BLOCK)
            if second != _ZERO:
                raise MalformedArchive("a single zero block in the middle of the archive")
        return None

    def _special(self, entry: Entry) -> bytes:
        if entry.size > tar.SPECIAL_MAX:
            raise HostileArchive(f"an extension header of {entry.size} bytes ({show(entry.name)})")
        body = self._read_raw(entry.size)
        self._read_raw(tar.padding(entry.size))
        return body

    def _complete(
        self,
        entry: Entry,
        block: bytes,
        records: list[tuple[bytes, bytes]],
        longname: bytes | None,
        longlink: bytes | None,
    ) -> Entry:
        if longname:
            entry = replace(entry, name=longname)
        if longlink:
            entry = replace(entry, linkname=longlink)
        if records:
            entry = tar.apply_pax(entry, records)
        if entry.type == tar.OLD_REGULAR and entry.name.endswith(b"/"):
            entry = replace(entry, type=tar.DIRECTORY, size=0)
        if max(entry.size, entry.real_size) > self._limits.file_size:
            raise HostileArchive(f"{show(entry.name)}: a size of {max(entry.size, entry.real_size)} bytes")
        stored = entry.size
        if entry.type == tar.GNU_SPARSE:
            entry = self._old_sparse(entry, block)
        elif entry.sparse_map_in_content:
            entry = self._sparse_1_0(entry)
        self._left = entry.size
        self._pad = tar.padding(stored)
        return entry

    # -- sparse maps stored in the archive -----------------------------------------------------------

    def _old_sparse(self, entry: Entry, block: bytes) -> Entry:
        pairs, more, real = tar.parse_old_sparse(block)
        while more:
            extension = self._read_raw(BLOCK)
            pairs += tar.parse_sparse_slots(extension[:504])
            more = bool(extension[504])
            if len(pairs) > self._limits.entries:
                raise HostileArchive(f"{show(entry.name)}: a sparse map of more than {len(pairs)} parts")
        return replace(
            entry, real_size=real, sparse=tar.check_sparse(tuple(pairs), real, entry.size, entry.name)
        )

    def _sparse_1_0(self, entry: Entry) -> Entry:
        """The map precedes the content: decimal lines, padded to a block."""
        start = len(self._raw)
        numbers: list[int] = []
        wanted, text = 1, b""
        while len(numbers) < wanted:
            if len(self._raw) - start + BLOCK > entry.size:
                raise MalformedArchive(f"{show(entry.name)}: the sparse map is truncated")
            *lines, text = (text + self._read_raw(BLOCK)).split(b"\n")
            for line in lines:
                if len(numbers) < wanted:
                    numbers.append(_map_number(line, entry.name))
                    wanted = 1 + 2 * numbers[0]
            if wanted > self._limits.entries:
                raise HostileArchive(f"{show(entry.name)}: a sparse map of {wanted} numbers")
        pairs = tuple(zip(numbers[1::2], numbers[2::2], strict=True))
        stored = entry.size - (len(self._raw) - start)
        return replace(
            entry, size=stored, sparse=tar.check_sparse(pairs, entry.real_size, stored, entry.name)
        )

    # -- bytes ---------------------------------------------------------------------------------------

    def content(self) -> Iterator[bytes]:
        """The current entry's content in pieces of at most 1 MiB."""
        while self._left:
            piece = self._window.some(min(self._left, _PIECE))
            if not piece:
                raise MalformedArchive(f"{show(self._last)}: the archive ends {self._left} bytes too early")
            self._left -= len(piece)
            yield piece

    def rest(self) -> Iterator[bytes]:
        """Everything after the end-of-archive marker, to the end of the stream."""
        while piece := self._window.some(_PIECE):
            yield piece

    def _read_raw(self, size: int) -> bytes:
        data = self._window.take(size) if size else b""
        self._raw += data
        return data


def _map_number(line: bytes, name: bytes) -> int:
    if not line.isdigit() or len(line) > 20:
        raise MalformedArchive(f"{show(name)}: the sparse map is not decimal")
    return int(line)
