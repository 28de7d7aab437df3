"""The tar format: headers in and out, with the pax, GNU and base-256 extensions.

Sources: POSIX.1-2017 pax "ustar Interchange Format" and "pax Extended Header"; GNU tar manual,
"Basic Tar Format" and "Storing Sparse Files". Where they leave room, this module reads what Go's
``archive/tar`` reads, because the tools that share a store with us are built on it.

Names stay ``bytes`` throughout: a tar has no encoding.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field, replace

from drivers.errors import HostileArchive, MalformedArchive

BLOCK = 512
SPECIAL_MAX = 1 << 20
"""Longest pax header or GNU long name in bytes; Go's archive/tar has the same limit."""
INT64_MAX = (1 << 63) - 1
NS = 1_000_000_000

REGULAR, OLD_REGULAR, HARDLINK, SYMLINK, CHARDEV, BLOCKDEV, DIRECTORY, FIFO, CONTIGUOUS = b"0\x001234567"
PAX, PAX_GLOBAL, GNU_LONGNAME, GNU_LONGLINK, GNU_SPARSE = b"xgLKS"
HEADER_ONLY = frozenset((HARDLINK, SYMLINK, CHARDEV, BLOCKDEV, DIRECTORY, FIFO))
"""Types without content, whatever their size field says (POSIX lets readers ignore it)."""
FILES = frozenset((REGULAR, OLD_REGULAR, CONTIGUOUS, GNU_SPARSE))

XATTR_PREFIX = b"SCHILY.xattr."
_CHECKSUM = slice(148, 156)
_PAX_TIME = re.compile(rb"([+-]?)([0-9]{1,19})(?:\.([0-9]{0,40}))?")
_NO_CHECKSUM = sum(b" " * 8)


class Magic(enum.Enum):
    """Which dialect a header block speaks; it decides what its last 167 bytes mean."""

    V7 = "v7"
    USTAR = "ustar"
    STAR = "star"
    GNU = "gnu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One archive member with all its extension headers applied.

    ``size`` is the number of content bytes that follow in the archive (before padding), ``header_size``
    what the size field said. For a sparse file ``sparse`` lists ``(offset, length)`` of the data and
    ``real_size`` is the file's length. ``uid`` and ``gid`` are as written, not mapped. Times are
    nanoseconds since the epoch.
    """

    name: bytes
    type: int
    linkname: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    header_size: int = 0
    mtime_ns: int = 0
    uname: bytes = b""
    gname: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: tuple[tuple[int, int], ...] | None = None
    sparse_map_in_content: bool = False
    real_size: int = 0

    @property
    def is_file(self) -> bool:
        """Whether the entry is a regular file in any of its spellings."""
        return self.type in FILES


def show(name: bytes, limit: int = 200) -> str:
    """A name for an error text: escaped, and cut when it is absurdly long."""
    text = ascii(name.decode("utf-8", "surrogateescape")) if _plain(name) else repr(name)[1:]
    return text if len(text) <= limit else f"{text[:limit]}…' ({len(name)} bytes)"


def _plain(name: bytes) -> bool:
    try:
        name.decode("ascii")
    except UnicodeDecodeError:
        return False
    return True


# -- numbers -----------------------------------------------------------------------------------


def parse_number(raw: bytes, what: str) -> int:
    """A numeric header field: octal text, or base-256 when its top bit is set (GNU, star).

    Raises:
        MalformedArchive: not a number, or outside a signed 64-bit integer.
    """
    if raw and raw[0] & 0x80:
        return _base256(raw, what)
    text = raw.strip(b" \0")
    text = text.split(b"\0", 1)[0]
    if not text:
        return 0
    try:
        if text.strip(b"01234567"):
            raise ValueError
        value = int(text, 8)
    except ValueError:
        raise MalformedArchive(f"{what} field {raw!r} is not an octal number") from None
    return value


def _base256(raw: bytes, what: str) -> int:
    value = int.from_bytes(raw, "big", signed=False)
    bits = 8 * len(raw)
    value &= (1 << (bits - 1)) - 1
    if raw[0] & 0x40:
        value -= 1 << (bits - 1)
    if not -INT64_MAX - 1 <= value <= INT64_MAX:
        raise MalformedArchive(f"{what} field does not fit in 64 bits")
    return value


def format_number(value: int, width: int) -> bytes | None:
    """``value`` as zero-padded octal with a NUL in ``width`` bytes, or ``None`` if it does not fit."""
    if value < 0 or value >= 1 << (3 * (width - 1)):
        return None
    return b"%0*o\0" % (width - 1, value)


def parse_pax_time(raw: bytes) -> int:
    """A pax time, decimal seconds, as nanoseconds (rounded down); ``MalformedArchive`` if it is not one."""
    match = _PAX_TIME.fullmatch(raw)
    if match is None:
        raise MalformedArchive(f"pax time {raw[:64]!r} is not a decimal number")
    sign, whole, digits = match[1], int(match[2]), match[3] or b""
    fraction = int(digits[:9].ljust(9, b"0"))
    if sign != b"-":
        return whole * NS + fraction
    return -whole * NS - fraction - bool(digits[9:].strip(b"0"))


def _pax_int(raw: bytes, key: bytes) -> int:
    try:
        text = raw.decode("ascii")
        if not text.removeprefix("-").isdigit() or len(text) > 20:
            raise ValueError
        value = int(text)
    except ValueError:
        raise MalformedArchive(f"pax record {show(key)} is {raw[:64]!r}, not a number") from None
    if not -INT64_MAX - 1 <= value <= INT64_MAX:
        raise MalformedArchive(f"pax record {show(key)} does not fit in 64 bits")
    return value


# -- blocks ------------------------------------------------------------------------------------


def checksum(block: bytes) -> tuple[int, int]:
    """Sums of a header block's bytes, unsigned and signed, the checksum field counted as spaces."""
    unsigned = sum(block) - sum(block[_CHECKSUM]) + _NO_CHECKSUM
    high = sum(1 for b in block[:148] if b > 127) + sum(1 for b in block[156:] if b > 127)
    return unsigned, unsigned - 256 * high


def _cstr(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def magic_of(block: bytes) -> Magic:
    """The dialect of a header block."""
    if block[257:265] == b"ustar  \0":
        return Magic.GNU
    if block[257:263] == b"ustar\0":
        return Magic.STAR if block[508:512] == b"tar\0" else Magic.USTAR
    return Magic.V7


def parse_block(block: bytes) -> Entry:
    """Read one 512-byte header block.

    Raises:
        MalformedArchive: the checksum does not match, or a field is not a number.
    """
    if len(block) != BLOCK:
        raise MalformedArchive(f"header block of {len(block)} bytes")
    stated = parse_number(block[_CHECKSUM], "checksum")
    if stated not in checksum(block):
        raise MalformedArchive("header checksum does not match: this is not a tar archive, or it is damaged")
    magic = magic_of(block)
    name = _cstr(block[:100])
    prefix = _prefix(block, magic)
    if prefix:
        name = prefix + b"/" + name
    size = parse_number(block[124:136], "size")
    if size < 0:
        raise MalformedArchive(f"{show(name)}: negative size {size}")
    kind = block[156]
    has_ids = magic is not Magic.V7
    return Entry(
        name=name,
        type=kind,
        linkname=_cstr(block[157:257]),
        mode=parse_number(block[100:108], "mode") & 0o7777,
        uid=parse_number(block[108:116], "uid"),
        gid=parse_number(block[116:124], "gid"),
        size=0 if kind in HEADER_ONLY else size,
        header_size=size,
        mtime_ns=parse_number(block[136:148], "mtime") * NS,
        uname=_cstr(block[265:297]) if has_ids else b"",
        gname=_cstr(block[297:329]) if has_ids else b"",
        major=parse_number(block[329:337], "device major") if has_ids and kind in b"34" else 0,
        minor=parse_number(block[337:345], "device minor") if has_ids and kind in b"34" else 0,
    )


def _prefix(block: bytes, magic: Magic) -> bytes:
    if magic is Magic.USTAR:
        return _cstr(block[345:500])
    if magic is Magic.STAR:
        return _cstr(block[345:476])
    if magic is Magic.GNU and not _has_gnu_times(block):
        # Go's writer before 1.8 put a prefix here although GNU headers have none.
        prefix = _cstr(block[345:500])
        return prefix if _plain(prefix) else b""
    return b""


def _has_gnu_times(block: bytes) -> bool:
    """Whether access and change time are numbers, as they are in a true GNU header."""
    try:
        for field in (block[345:357], block[357:369]):
            if field[0]:
                parse_number(field, "time")
    except MalformedArchive:
        return False
    return True


def padding(size: int) -> int:
    """Zero bytes that follow ``size`` bytes of content."""
    return -size % BLOCK


# -- pax ---------------------------------------------------------------------------------------


def parse_pax(body: bytes) -> list[tuple[bytes, bytes]]:
    """The ``length key=value\\n`` records of a pax header, in order; ``MalformedArchive``."""
    records: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 21)
        digits = body[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise MalformedArchive(f"pax record without a length at byte {at}")
        end = at + int(digits)
        if end > len(body) or end <= space + 1 or body[end - 1] != 0x0A:
            raise MalformedArchive(f"pax record at byte {at} has a wrong length")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise MalformedArchive(f"pax record at byte {at} is not key=value")
        if b"\0" in key or (b"\0" in value and not key.startswith((XATTR_PREFIX, b"LIBARCHIVE."))):
            raise MalformedArchive(f"pax record {show(key)} holds a NUL")
        records.append((key, value))
        at = end
    return records


def format_pax(records: dict[bytes, bytes]) -> bytes:
    """pax records, sorted by key as Go writes them."""
    out = []
    for key in sorted(records):
        body = b" " + key + b"=" + records[key] + b"\n"
        size = len(body) + len(str(len(body)))
        size = len(body) + len(str(size))
        out.append(str(size).encode() + body)
    return b"".join(out)


def apply_pax(entry: Entry, records: list[tuple[bytes, bytes]]) -> Entry:
    """``entry`` with its pax records in force; GNU.sparse.* keys included.

    An empty value deletes an earlier record of the same key.
    """
    latest: dict[bytes, bytes] = dict(records)
    values: dict[str, object] = {}
    for key, value in latest.items():
        if value or key.startswith(XATTR_PREFIX):
            _apply_record(entry, values, key, value)
    result = replace(entry, **values)  # type: ignore[arg-type]
    if "header_size" in values:
        result = replace(result, size=0 if entry.type in HEADER_ONLY else result.header_size)
    return _apply_sparse(result, latest, records)


def _apply_record(entry: Entry, values: dict[str, object], key: bytes, value: bytes) -> None:
    if key in (b"path", b"linkpath"):
        values["name" if key == b"path" else "linkname"] = value
    elif key == b"size":
        size = _pax_int(value, key)
        if size < 0:
            raise MalformedArchive(f"{show(entry.name)}: negative size {size}")
        values["header_size"] = size
    elif key in (b"uid", b"gid"):
        values[key.decode()] = _pax_int(value, key)
    elif key in (b"uname", b"gname"):
        values[key.decode()] = value
    elif key == b"mtime":
        values["mtime_ns"] = parse_pax_time(value)
    elif key.startswith(XATTR_PREFIX):
        xattrs = values.setdefault("xattrs", {})
        assert isinstance(xattrs, dict)
        xattrs[key[len(XATTR_PREFIX) :]] = value


# -- sparse files ------------------------------------------------------------------------------


def _apply_sparse(entry: Entry, latest: dict[bytes, bytes], records: list[tuple[bytes, bytes]]) -> Entry:
    """GNU sparse formats 0.0, 0.1 and 1.0, which live in pax records."""
    if entry.type not in FILES:
        return entry
    name = latest.get(b"GNU.sparse.name") or entry.name
    if latest.get(b"GNU.sparse.major") == b"1" and latest.get(b"GNU.sparse.minor") == b"0":
        real = _pax_int(latest.get(b"GNU.sparse.realsize") or b"", b"GNU.sparse.realsize")
        return replace(entry, name=name, real_size=real, sparse=(), sparse_map_in_content=True)
    if not (
        latest.get(b"GNU.sparse.map") or latest.get(b"GNU.sparse.offset") or b"GNU.sparse.size" in latest
    ):
        return entry
    numbers = _sparse_numbers(latest, records)
    size_key = b"GNU.sparse.size" if b"GNU.sparse.size" in latest else b"GNU.sparse.realsize"
    real = _pax_int(latest.get(size_key) or b"", size_key)
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    return replace(entry, name=name, real_size=real, sparse=check_sparse(pairs, real, entry.size, name))


def _sparse_numbers(latest: dict[bytes, bytes], records: list[tuple[bytes, bytes]]) -> list[int]:
    key = b"GNU.sparse.map"
    if latest.get(key):
        numbers = [_pax_int(part, key) for part in latest[key].split(b",")]
    else:
        wanted = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        found = [(k, v) for k, v in records if k in wanted]
        if any(k != wanted[n % 2] for n, (k, _) in enumerate(found)):
            raise MalformedArchive("sparse map: offsets and sizes do not alternate")
        numbers = [_pax_int(v, k) for k, v in found]
    if len(numbers) % 2:
        raise MalformedArchive("sparse map: an offset has no size")
    return numbers


def check_sparse(
    pairs: tuple[tuple[int, int], ...], real: int, stored: int, name: bytes
) -> tuple[tuple[int, int], ...]:
    """``pairs`` if they ascend, stay below ``real`` and add up to ``stored``; else ``MalformedArchive``."""
    end = total = 0
    for offset, length in pairs:
        if offset < end or length < 0 or offset + length > real:
            raise MalformedArchive(f"{show(name)}: sparse map is out of order or beyond the end of the file")
        end = offset + length
        total += length
    if real < 0 or real > INT64_MAX or total != stored:
        raise MalformedArchive(f"{show(name)}: sparse map covers {total} bytes, the archive holds {stored}")
    return pairs


def parse_old_sparse(block: bytes) -> tuple[list[tuple[int, int]], bool, int]:
    """Map, *extended* flag and real size in an old GNU sparse header block (type ``S``)."""
    return (
        parse_sparse_slots(block[386:482]),
        bool(block[482]),
        parse_number(block[483:495], "sparse real size"),
    )


def parse_sparse_slots(raw: bytes) -> list[tuple[int, int]]:
    """The 24-byte ``offset, size`` slots of an old GNU sparse map, up to the first empty one."""
    slots = []
    for at in range(0, len(raw) - 23, 24):
        if not raw[at]:
            break
        offset = parse_number(raw[at : at + 12], "sparse offset")
        slots.append((offset, parse_number(raw[at + 12 : at + 24], "sparse size")))
    return slots


# -- names -------------------------------------------------------------------------------------


def clean_name(name: bytes) -> bytes:
    """A path relative to the layer's root without ``.``, ``..`` or empty components; ``b""`` is the root.

    Raises:
        HostileArchive: the name is absolute, climbs above the root, or is too long for any path.
        MalformedArchive: the name is empty.
    """
    if not name:
        raise MalformedArchive("an entry has no name")
    if len(name) > 4095 or b"\0" in name:
        raise HostileArchive(f"{show(name)}: no path can have this name")
    if name.startswith(b"/"):
        raise HostileArchive(f"{show(name)}: absolute name")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise HostileArchive(f"{show(name)}: reaches outside the layer")
            parts.pop()
        elif part and part != b".":
            if len(part) > 255:
                raise HostileArchive(f"{show(name)}: a component has {len(part)} bytes, 255 are possible")
            parts.append(part)
    return b"/".join(parts)


def clamp_name(name: bytes) -> bytes:
    """Like :func:`clean_name`, but ``/`` and ``..`` stay at the root as they do inside a chroot."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part and part != b".":
            parts.append(part)
    return b"/".join(parts)
