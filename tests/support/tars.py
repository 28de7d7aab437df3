"""Archives made byte by byte, so that every field can be wrong on purpose.

Written against POSIX and the GNU tar manual, independent of ``drivers.tarformat``.
"""

from __future__ import annotations

BLOCK = 512
END = bytes(2 * BLOCK)
MTIME = 1_600_000_000
USTAR = b"ustar\x0000"
GNU = b"ustar  \0"


def octal(value: int, width: int) -> bytes:
    """A NUL-terminated octal field."""
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """A binary field (GNU, star)."""
    raw = bytearray((value & ((1 << (8 * width)) - 1)).to_bytes(width, "big"))
    raw[0] |= 0x80
    return bytes(raw)


def pad(content: bytes) -> bytes:
    """Content filled up to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def header(
    name: bytes,
    kind: bytes = b"0",
    size: int | bytes = 0,
    *,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = MTIME,
    link: bytes = b"",
    magic: bytes = USTAR,
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    tail: bytes | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One header block. A ``bytes`` value fills a number's field as it is; ``tail`` replaces bytes 345 on."""

    def field(value: int | bytes, width: int) -> bytes:
        return value.ljust(width, b"\0")[:width] if isinstance(value, bytes) else octal(value, width)

    head = name[:100].ljust(100, b"\0") + field(mode, 8) + field(uid, 8) + field(gid, 8)
    head += field(size, 12) + field(mtime, 12)
    rest = kind + link[:100].ljust(100, b"\0") + magic + bytes(64) + field(major, 8) + field(minor, 8)
    rest += prefix[:155].ljust(155, b"\0") + bytes(12) if tail is None else tail.ljust(167, b"\0")
    total = sum(head) + sum(rest) + 8 * 32
    block = head + (b"%06o\0 " % total if checksum is None else checksum) + rest
    assert len(block) == BLOCK, len(block)
    return block


def entry(name: bytes, content: bytes = b"", kind: bytes = b"0", **fields: object) -> bytes:
    """Header and padded content."""
    size = fields.pop("size", len(content))
    return header(name, kind, size, **fields) + pad(content)  # type: ignore[arg-type]


def directory(name: bytes, **fields: object) -> bytes:
    """A directory entry, mode 0755 unless told."""
    return entry(name, kind=b"5", **{"mode": 0o755, **fields})


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    """A symbolic link entry."""
    return entry(name, kind=b"2", link=target, **{"mode": 0o777, **fields})


def hardlink(name: bytes, target: bytes, **fields: object) -> bytes:
    """A hard link entry."""
    return entry(name, kind=b"1", link=target, **fields)


def record(key: bytes, value: bytes) -> bytes:
    """One pax record."""
    size = len(key) + len(value) + 3
    total = size + len(str(size))
    total = size + len(str(total))
    return b"%d %s=%s\n" % (total, key, value)


def pax(records: dict[bytes, bytes] | bytes, kind: bytes = b"x") -> bytes:
    """A pax extended header from records, or from raw bytes."""
    body = records if isinstance(records, bytes) else b"".join(record(k, v) for k, v in records.items())
    return entry(b"PaxHeaders/x", body, kind)


def longname(name: bytes, kind: bytes = b"L") -> bytes:
    """A GNU long name (``L``) or long link (``K``) header."""
    return entry(b"././@LongLink", name + b"\0", kind, magic=GNU)


def sparse_old(name: bytes, parts: list[tuple[int, bytes]], real: int) -> bytes:
    """An old GNU sparse file of up to 4 parts in the header and 21 in each extension block."""
    slots = [octal(at, 12) + octal(len(data), 12) for at, data in parts]
    tail = bytes(41) + b"".join(slots[:4]).ljust(96, b"\0")
    tail += (b"\1" if slots[4:] else b"\0") + octal(real, 12)
    content = b"".join(data for _, data in parts)
    out = header(name, b"S", len(content), magic=GNU, tail=tail)
    rest = slots[4:]
    while rest:
        now, rest = rest[:21], rest[21:]
        out += b"".join(now).ljust(504, b"\0") + (b"\1" if rest else b"\0") + bytes(7)
    return out + pad(content)


def sparse_pax(name: bytes, parts: list[tuple[int, bytes]], real: int, version: str) -> bytes:
    """A sparse file in one of the pax versions 0.0, 0.1 and 1.0 of GNU tar."""
    content = b"".join(data for _, data in parts)
    numbers = [n for at, data in parts for n in (at, len(data))]
    if version == "1.0":
        table = pad(b"".join(b"%d\n" % n for n in [len(parts), *numbers]))
        records = {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": name,
            b"GNU.sparse.realsize": b"%d" % real,
        }
        return pax(records) + entry(b"GNUSparseFile.0/" + name, table + content)
    raw = record(b"GNU.sparse.size", b"%d" % real) + record(b"GNU.sparse.numblocks", b"%d" % len(parts))
    if version == "0.1":
        raw += record(b"GNU.sparse.name", name)
        raw += record(b"GNU.sparse.map", b",".join(b"%d" % n for n in numbers))
        return pax(raw) + entry(b"GNUSparseFile.0/" + name, content)
    for at, data in parts:
        raw += record(b"GNU.sparse.offset", b"%d" % at) + record(b"GNU.sparse.numbytes", b"%d" % len(data))
    return pax(raw) + entry(name, content)


def expanded(parts: list[tuple[int, bytes]], real: int) -> bytes:
    """What a sparse file reads as."""
    out = bytearray(real)
    for at, data in parts:
        out[at : at + len(data)] = data
    return bytes(out)


PARTS = [(0, b"start"), (70_000, b"x" * 600), (200_000, b"end")]
MANY_PARTS = [(n * 8192, b"%04d" % n) for n in range(60)]
REAL = 500_000

ODD: dict[str, bytes] = {
    "empty stream": b"",
    "trailer only": END,
    "no trailer": entry(b"a", b"1"),
    "one zero block": entry(b"a", b"1") + bytes(BLOCK),
    "garbage after the end": entry(b"a", b"1") + END + b"garbage" * 100,
    "long tail of zeros": entry(b"a", b"1") + END + bytes(3_000_000),
    "nonzero padding": header(b"a", size=3) + b"abc" + b"p" * 509 + END,
    "root entry": directory(b"./", mode=0o700, uid=7) + entry(b"./a", b"1") + END,
    "no leading dot": directory(b"d/") + entry(b"d/a", b"1") + END,
    "implicit parents": entry(b"x/y/z", b"deep", uid=5) + END,
    "dots inside": directory(b"d") + entry(b"d/./e/../f", b"1") + entry(b".//g", b"2") + END,
    "v7 header": header(b"old", size=3, magic=bytes(8)) + pad(b"abc") + END,
    "v7 directory by slash": header(b"olddir/", b"\0", magic=bytes(8), mode=0o755) + END,
    "old regular type": entry(b"r", b"abc", b"\0") + END,
    "contiguous type": entry(b"c", b"abc", b"7") + END,
    "ustar prefix": entry(b"n" * 90, b"abc", prefix=b"p" * 150) + END,
    "star prefix": header(
        b"n", size=1, tail=b"pp".ljust(131, b"\0") + octal(1, 12) + octal(1, 12) + b"\0" * 8 + b"tar\0"
    )
    + pad(b"1")
    + END,
    "gnu prefix ignored": entry(b"n", b"1", magic=GNU, prefix=b"notaprefix") + END,
    "gnu long names": longname(b"l/" * 90 + b"f")
    + entry(b"short", b"1", magic=GNU)
    + longname(b"t" * 200, b"K")
    + symlink(b"s", b"short", magic=GNU)
    + END,
    "pax path and link": pax({b"path": b"q" * 240, b"mtime": b"1600000000.123456789"})
    + entry(b"q", b"1")
    + pax({b"linkpath": b"w" * 300})
    + symlink(b"s", b"short")
    + END,
    "pax owner": pax({b"uid": b"3000000", b"gid": b"4000000"}) + entry(b"o", b"1") + END,
    "pax size": pax({b"size": b"5"}) + header(b"o", size=0) + pad(b"hello") + END,
    "one global header": pax({b"comment": b"x"}, b"g") + entry(b"a", b"1") + END,
    "two global headers": pax({b"comment": b"x"}, b"g") * 2 + entry(b"a", b"1") + END,
    "global header inside": entry(b"a", b"1") + pax({b"comment": b"x"}, b"g") + entry(b"b", b"2") + END,
    "xattrs": pax({b"SCHILY.xattr.user.a": b"v\0w", b"SCHILY.xattr.user.e": b""})
    + entry(b"x", b"1")
    + pax({b"SCHILY.xattr.user.d": b"dir"})
    + directory(b"xd")
    + END,
    "capability": pax({b"SCHILY.xattr.security.capability": b"\1\0\0\2\0\4\0\0" + bytes(12)})
    + entry(b"ping", b"1", mode=0o4755)
    + END,
    "selinux label skipped": pax({b"SCHILY.xattr.security.selinux": b"x\0"}) + entry(b"x", b"1") + END,
    "devices": entry(b"null", kind=b"3", major=1, minor=3, mode=0o666)
    + entry(b"sda", kind=b"4", major=8, minor=0)
    + entry(b"pipe", kind=b"6")
    + END,
    "hard link": entry(b"a", b"12345", mode=0o755) + hardlink(b"b", b"./a", mode=0o755) + END,
    "hard link with size": entry(b"a", b"hello") + hardlink(b"b", b"a", size=5) + END,
    "hard link changes mode": entry(b"a", b"1") + hardlink(b"b", b"a", mode=0o700, mtime=5) + END,
    "hard link to a symlink": symlink(b"s", b"nowhere") + hardlink(b"b", b"s") + END,
    "directory with size": directory(b"d", size=4096) + entry(b"d/a", b"1") + END,
    "non-UTF-8 name": entry(b"raw-\xff\xfe", b"abc") + entry("gr\u00fc\u00dfe \u2028".encode(), b"1") + END,
    "names JSON escapes": entry(b'a<&>"\\b', b"1") + entry(b"tab\tnl\n\x7f\x01", b"2") + END,
    "base-256 fields": entry(
        b"big", b"1", uid=base256(3_000_000_000, 8), mtime=base256(5_000_000_000, 12), magic=GNU
    )
    + END,
    "spaces in numbers": entry(b"s", b"abc", mode=b"   644 \0", uid=b"    12 \0") + END,
    "special mode bits": entry(b"suid", b"1", mode=0o6755, uid=3, gid=4) + directory(b"t", mode=0o3777) + END,
    "setgid directory": directory(b"g", mode=0o2775, gid=42) + entry(b"g/f", b"1") + directory(b"g/d") + END,
    "file before directory": entry(b"d/f", b"1") + directory(b"d", mode=0o700, mtime=1) + END,
    "file of several pieces": entry(b"m", bytes(range(256)) * 20_000) + entry(b"n", b"1") + END,
    "empty file": entry(b"e") + END,
    "same directory twice": directory(b"d") + entry(b"d/a", b"1") + directory(b"d", mode=0o700) + END,
    "trailing slash on a file": entry(b"f/", b"1") + END,
}
"""Archives every implementation should take; what is in them is FORMAT 5's and 6.1's odd cases."""

REPEATED: dict[str, bytes] = {
    "same file twice": entry(b"a", b"first") + entry(b"./a", b"second one") + END,
    "file then directory": entry(b"a", b"first") + directory(b"a") + entry(b"a/b", b"1") + END,
    "directory then file": directory(b"a") + entry(b"a/b", b"inside") + entry(b"a", b"2") + END,
    "file then whiteout": entry(b"d/a", b"first") + entry(b"d/.wh.a") + END,
    "directory then whiteout": entry(b"d/e/a", b"first") + entry(b".wh.d") + END,
    "three times": b"".join(entry(b"a", b"%d" % n * n) for n in (1, 2, 3)) + END,
    "hard link replaced": entry(b"a", b"1234") + hardlink(b"b", b"a") + entry(b"a", b"new") + END,
    "replaced by a link": entry(b"a", b"1234") + entry(b"b", b"56") + hardlink(b"b", b"a") + END,
    "whiteout twice": entry(b".wh.x") + entry(b".wh.x") + END,
    "whiteout with content": entry(b".wh.x", b"content") + END,
    "large and replaced": entry(b"a", b"z" * 5_000_000) + entry(b"a", b"y") + END,
}
"""Archives that replace what they brought; containers/storage refuses most of them."""

SPARSE: dict[str, bytes] = {
    "old GNU": sparse_old(b"s", PARTS, REAL) + entry(b"after", b"1") + END,
    "old GNU, extended": sparse_old(b"s", MANY_PARTS, REAL) + entry(b"after", b"1") + END,
    "pax 0.0": sparse_pax(b"s", PARTS, REAL, "0.0") + entry(b"after", b"1") + END,
    "pax 0.1": sparse_pax(b"s", PARTS, REAL, "0.1") + entry(b"after", b"1") + END,
    "pax 1.0": sparse_pax(b"s", PARTS, REAL, "1.0") + entry(b"after", b"1") + END,
    "pax 1.0, long map": sparse_pax(b"s", MANY_PARTS, REAL, "1.0") + entry(b"after", b"1") + END,
}
"""One sparse file ``s`` and a plain one after it."""
