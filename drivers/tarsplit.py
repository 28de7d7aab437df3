"""tar-split: what a layer's tree cannot give back of the archive it came from (FORMAT 5).

A list of JSON lines: *segments* hold raw archive bytes (headers, padding, the end), *file* lines stand
for the content of one file of the tree, with its CRC-64/ISO. Read in order they are the archive again.

Content the tree cannot reproduce (sparse maps, a file the same archive replaces later) is written as
segments, which every reader of the format understands.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from drivers.ahead import Ahead, run_ahead
from drivers.archive_native import Reassembly, crc64
from drivers.compress import reader_of
from drivers.confine import Root
from drivers.errors import IntegrityError, MalformedArchive
from drivers.tarformat import clamp_name, show

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from drivers.tarindex import SeekableDiff

_PIECE = 1 << 20
_CHUNK = 1 << 18
_ROOM = 1 << 19
"""Archive bytes made at once; more would leave the processor's cache on the way to the reader."""
SPARSE = b"GNU.sparse."
"""What a pax header with a sparse map holds."""
_LINE_MAX = 8 << 20
"""Longest JSON line accepted; a segment of 1 MiB takes 1.4 MB."""
FILE, SEGMENT = 1, 2
_HTML = ((b"&", b"\\u0026"), (b"<", b"\\u003c"), (b">", b"\\u003e"))


def _name_fields(name: bytes) -> bytes:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return b'"name_raw":"%s",' % base64.b64encode(name)
    if not text:
        return b""
    raw = json.dumps(text, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    out = raw.encode()
    for plain, escaped in _HTML:
        out = out.replace(plain, escaped)
    return b'"name":%s,' % out


class TarSplitWriter:
    """Writes the lines to ``out`` as archive bytes arrive in order."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.position = 0

    def segment(self, raw: bytes) -> None:
        """Raw archive bytes; split into lines of at most 1 MiB."""
        for at in range(0, len(raw), _PIECE):
            payload = base64.b64encode(raw[at : at + _PIECE])
            self._line(b'{"type":2,"payload":"%s"' % payload)

    def file(self, name: bytes, size: int, crc: int) -> None:
        """An entry whose ``size`` content bytes are those of the file ``name`` (as in the archive)."""
        fields = _name_fields(name)
        if size:
            payload = base64.b64encode(crc.to_bytes(8, "big"))
            self._line(b'{"type":1,%s"size":%d,"payload":"%s"' % (fields, size, payload))
        else:
            self._line(b'{"type":1,%s"payload":null' % fields)

    def ready(self, lines: bytes, position: int) -> None:
        """Lines made elsewhere from the current position on; the next one is number ``position``."""
        self._out.write(lines)
        self.position = position

    def _line(self, start: bytes) -> None:
        self._out.write(b'%s,"position":%d}\n' % (start, self.position))
        self.position += 1


# -- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """One line: raw bytes if ``raw`` is not ``None``, else ``size`` bytes of file ``name``."""

    raw: bytes | None
    name: bytes
    size: int
    crc: int


def pieces(lines: BinaryIO) -> Iterator[Piece]:
    """Parse uncompressed tar-split lines.

    Raises:
        MalformedArchive: a line is not what FORMAT 5 describes.
    """
    while line := lines.readline(_LINE_MAX):
        if line.strip():
            yield parse_line(line)


def parse_line(line: bytes) -> Piece:
    """One line; ``MalformedArchive``."""
    try:
        return _parse(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedArchive(f"tar-split line {line[:60]!r} is not valid: {error}") from None


class LineBuffer:
    """Whole lines of a stream, a large piece of text at a time; ``lines`` is read in another thread."""

    def __init__(self, lines: BinaryIO) -> None:
        self._ahead = Ahead(iter(lambda: lines.read(_CHUNK), b""), "tar-split-input")
        self.text = b""
        self.at = 0

    def __enter__(self) -> LineBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.close()

    def fill(self) -> bool:
        """Read on; false at the end, where the last line may lack its newline."""
        try:
            chunk = self._ahead.next()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise MalformedArchive(f"the tar-split file is damaged or truncated: {error}") from error
        if len(self.text) - self.at > _LINE_MAX:
            raise MalformedArchive("a tar-split line is too long")
        self.text = self.text[self.at :] + chunk
        self.at = 0
        return bool(chunk)

    def line(self) -> bytes | None:
        """The next complete line, or ``None`` if it is not all there."""
        end = self.text.find(b"\n", self.at)
        if end < 0:
            return None
        line, self.at = self.text[self.at : end + 1], end + 1
        return line

    def last(self) -> bytes:
        """What follows the last newline, at the end of the stream."""
        line, self.at = self.text[self.at :], len(self.text)
        return line


def _parse(record: dict[str, object]) -> Piece:
    payload = record.get("payload")
    raw = base64.b64decode(payload, validate=True) if isinstance(payload, str) else b""
    if record["type"] == SEGMENT:
        return Piece(raw, b"", 0, 0)
    if record["type"] != FILE:
        raise ValueError(f"type {record['type']!r}")
    size = record.get("size", 0)
    if not isinstance(size, int) or size < 0 or (size and len(raw) != 8):
        raise ValueError("size or checksum")
    return Piece(None, _parse_name(record), size, int.from_bytes(raw, "big"))


def _parse_name(record: dict[str, object]) -> bytes:
    encoded = record.get("name_raw")
    if isinstance(encoded, str) and encoded:
        return base64.b64decode(encoded, validate=True)
    name = record.get("name", "")
    if not isinstance(name, str):
        raise ValueError("name")
    return name.encode("utf-8", "surrogateescape")


def assemble(lines: BinaryIO, root: int | Path) -> BinaryIO:
    """The archive a layer came from, as a stream read in constant memory.

    Args:
        lines: uncompressed tar-split.
        root: the layer's tree, path or directory descriptor.

    Raises (while reading):
        IntegrityError: a file is missing, is of another size, or its content does not match.
        MalformedArchive: the tar-split itself is damaged.
    """
    tree = Root(root)
    return reader_of(run_ahead(_assemble(lines, tree), "tar-split-assemble"), tree.close)


def _assemble(lines: BinaryIO, root: Root) -> Generator[bytes, None, None]:
    """Plain lines are compiled code's; one that it leaves, and every error, is handled here."""
    with LineBuffer(lines) as buffer:
        native = Reassembly(root.fd, _ROOM)
        more = True
        while more or buffer.at < len(buffer.text):
            result = native.run(buffer.text, buffer.at)
            buffer.at += native.consumed
            if output := native.output():
                yield output
            elif result != Reassembly.DONE and (line := buffer.line()) is not None:
                yield from _one(root, native, line)
            elif more:
                more = buffer.fill()
            else:
                yield from _one(root, native, buffer.last())


def _one(root: Root, native: Reassembly, line: bytes) -> Iterator[bytes]:
    if not line.strip():
        return
    piece = parse_line(line)
    if piece.raw is None:
        if has_content(piece, sparse=native.sparse):
            yield from file_content(root, piece)
    elif piece.raw:
        native.sparse = SPARSE in piece.raw
        yield piece.raw


def has_content(piece: Piece, *, sparse: bool) -> bool:
    """Whether a file line stands for any bytes; ``sparse`` says the segment before it has a sparse map.

    containers/storage 1.43 records a hard link or directory with the size its header claims, although
    nothing follows (FORMAT 5); the checksum is that of no bytes then, which is zero.

    Raises:
        IntegrityError: it recorded a sparse file, whose map it loses.
    """
    if not piece.size or not piece.crc:
        return False
    if sparse:
        raise IntegrityError(f"{show(piece.name)}: a sparse file, recorded without its map")
    return True


def open_content(root: Root, name: bytes) -> int:
    """Descriptor of the file a tar-split line names; ``..`` and ``/`` stay inside the root."""
    try:
        return root.open_file(clamp_name(name))
    except OSError as error:
        raise IntegrityError(f"{show(name)}: cannot be read back: {error.strerror}") from error


def unlike(piece: Piece, text: str) -> IntegrityError:
    """The error for a file that is not what ``piece`` records."""
    return IntegrityError(f"{show(piece.name)}: {text}", name=piece.name)


def file_content(root: Root, piece: Piece) -> Iterator[bytes]:
    """Content of the file ``piece`` names, checked against its size and checksum."""
    fd = open_content(root, piece.name)
    try:
        actual = os.fstat(fd).st_size
        if actual != piece.size:
            raise unlike(piece, f"{actual} bytes, the layer's archive has {piece.size}")
        crc, left = 0, piece.size
        while left:
            data = os.read(fd, min(left, _PIECE))
            if not data:
                raise unlike(piece, "became shorter while it was read")
            crc = crc64(data, crc)
            left -= len(data)
            if not left and crc != piece.crc:
                raise unlike(piece, "content differs from the layer's archive")
            yield data
    finally:
        os.close(fd)


def open_index(path: str | os.PathLike[str], root: int | Path) -> SeekableDiff:
    """Random access to the archive; see :class:`drivers.tarindex.SeekableDiff`."""
    from drivers.tarindex import SeekableDiff

    return SeekableDiff(path, root)
