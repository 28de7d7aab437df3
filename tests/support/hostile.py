"""Archives nobody should ever send: ``cases(outside)`` yields each with its name and expected error text.

``outside`` is the absolute path of a directory next to the tree, with a file ``canary`` in it. The tree
holds ``below/file`` and a link ``abslink`` to ``/below`` from the layer under the one being applied.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
from collections.abc import Iterator

import zstandard

from tests.support.tars import (
    BLOCK,
    END,
    GNU,
    base256,
    directory,
    entry,
    hardlink,
    header,
    longname,
    octal,
    pad,
    pax,
    record,
    sparse_old,
    sparse_pax,
    symlink,
)

Case = tuple[str, bytes, str]
"""Name, archive, and a regular expression the error's text must match."""
OK = entry(b"fine", b"1")


def cases(outside: bytes) -> Iterator[Case]:
    """Every case."""
    for part in (
        _escapes(outside),
        _planted(outside),
        _hardlinks(outside),
        _names(),
        _whiteouts(),
        _types(),
        _numbers(),
        _truncated(),
        _garbage(),
        _pax(),
        _sparse(),
        _xattrs(),
        _compressed(),
    ):
        yield from part


def _everything(name: bytes) -> Iterator[tuple[str, bytes]]:
    """One entry of each type and spelling with this name."""
    yield "file", entry(name, b"evil")
    yield "empty file", entry(name)
    yield "directory", directory(name)
    yield "symlink", symlink(name, b"x")
    yield "hard link", OK + hardlink(name, b"fine")
    yield "device", entry(name, kind=b"3", major=1, minor=3)
    yield "fifo", entry(name, kind=b"6")
    yield "pax path", pax({b"path": name}) + entry(b"innocent", b"evil")
    yield "long name", longname(name) + entry(b"innocent", b"evil", magic=GNU)


def _escapes(outside: bytes) -> Iterator[Case]:
    for target, error in (
        (outside + b"/canary", "absolute name"),
        (b"../outside/canary", "reaches outside"),
        (b"./below/../../outside/canary", "reaches outside"),
        (b"below/../../x", "reaches outside"),
        (b"..", "reaches outside"),
        (b"/", "absolute name"),
    ):
        for kind, archive in _everything(target):
            yield f"{kind} {target[-24:]!r}", OK + archive + END, error


def _planted(outside: bytes) -> Iterator[Case]:
    """A symbolic link, then something through it."""
    plants = {
        "absolute": symlink(b"l", outside),
        "climbing": symlink(b"l", b"../outside"),
        "climbing far": symlink(b"l", b"../" * 30 + outside[1:]),
        "chain": symlink(b"m", outside) + symlink(b"l", b"m"),
        "through the layer below": symlink(b"l", b"abslink/../../../outside"),
        "replacing a directory": directory(b"l") + entry(b"l/x", b"1") + symlink(b"l", outside),
        "replacing a file": entry(b"l", b"1") + symlink(b"l", outside),
        "by pax": pax({b"linkpath": outside}) + symlink(b"l", b"fine"),
        "hard link to a link": symlink(b"m", outside) + hardlink(b"l", b"m") + symlink(b"l", b"m"),
    }
    for how, plant in plants.items():
        for kind, archive in _everything(b"l/canary"):
            yield f"{kind} through a link, {how}", plant + archive + END, "l/canary|'l/?'|'l': "
        yield f"whiteout through a link, {how}", plant + entry(b"l/.wh.canary") + END, "'l"
        yield f"opaque through a link, {how}", plant + entry(b"l/.wh..wh..opq") + END, "'l"
        yield f"deeper through a link, {how}", plant + entry(b"l/a/b/c", b"evil") + END, "'l"
    yield "link to itself", symlink(b"l", b"l") + entry(b"l/x") + END, "too many symbolic links"
    yield "two links in a circle", symlink(b"a", b"b/x") + symlink(b"b", b"a/x") + entry(b"a/x/y") + END, "'a"
    yield (
        "proc link",
        symlink(b"l", b"/proc/self/root" + outside) + entry(b"l/canary", b"x") + END,
        "link out of",
    )
    yield "proc fd link", symlink(b"l", b"/proc/self/cwd") + entry(b"l/canary", b"x") + END, "link out of"


def _hardlinks(outside: bytes) -> Iterator[Case]:
    targets = {
        outside + b"/canary": "'h': a hard link to.*absolute",
        b"../outside/canary": "'h': a hard link to.*outside",
        b"below/../../outside/canary": "'h': a hard link to.*outside",
        b"missing": "'h': a hard link to 'missing': No such file",
        b"below/missing": "'h': a hard link to 'below/missing'",
        b"below": "'h': a hard link to 'below'",
        b".": "'h': a hard link to the layer's root",
        b"": "'h': a hard link to",
        b"h": "'h': a hard link to 'h'",
        b"fine/x": "'h'",
    }
    for target, error in targets.items():
        yield f"hard link to {target[-20:]!r}", OK + hardlink(b"h", target) + END, error
        yield (
            f"hard link by pax to {target[-20:]!r}",
            (
                OK
                + pax(record(b"linkpath", target) if target else record(b"linkpath", b"\0"))
                + hardlink(b"h", b"missing")
                + END
            ),
            "hard link|NUL",
        )
    for plant in (symlink(b"l", outside), symlink(b"l", b"../outside")):
        archive = plant + hardlink(b"h", b"l/canary") + END
        yield f"hard link through a link {plant[157:170]!r}", archive, "link out of the layer|reaches outside"


def _names() -> Iterator[Case]:
    yield "empty name", entry(b"", b"x") + END, "no name"
    yield (
        "component of 256",
        entry(b"a/", b"x", prefix=b"p") + pax({b"path": b"c" * 256}) + entry(b"x") + END,
        ("256 bytes, 255 are possible"),
    )
    yield (
        "path of 4096",
        pax({b"path": b"d/" * 2047 + b"ee"}) + entry(b"x") + END,
        "no path can have this name",
    )
    yield "path of a MiB by pax", pax({b"path": b"d/" * 500_000}) + entry(b"x") + END, "no path can have"
    yield (
        "path of a MiB by long name",
        longname(b"e/" * 500_000) + entry(b"x", magic=GNU) + END,
        "no path can",
    )
    yield (
        "pax header beyond a MiB",
        pax({b"path": b"d/" * 600_000}) + entry(b"x") + END,
        "extension header of",
    )
    yield (
        "long name beyond a MiB",
        longname(b"d/" * 600_000) + entry(b"x", magic=GNU) + END,
        "extension header of",
    )
    yield "NUL in a pax path", pax({b"path": b"a\0b"}) + entry(b"x") + END, "NUL"
    yield "file below a file", OK + entry(b"fine/x", b"1") + END, "fine/x"
    yield "file deep below a file", OK + entry(b"fine/x/y/z", b"1") + END, "fine/x/y/z"
    yield "symlink without target", symlink(b"s", b"") + END, "'s': a symbolic link without a target"
    yield "symlink with a target of 5000", pax({b"linkpath": b"t" * 5000}) + symlink(b"s", b"x") + END, "'s'"
    yield "root as a file", entry(b"./", b"x") + END, "'./': the layer's root"
    yield "root as a symlink", symlink(b".", b"/etc") + END, "the layer's root"
    yield "root as a fifo", entry(b"below/..", kind=b"6") + END, "the layer's root"


def _whiteouts() -> Iterator[Case]:
    for name in (b".wh.", b".wh..", b".wh...", b"below/.wh.", b"below/.wh...", b"below/.wh.."):
        yield f"whiteout {name!r}", OK + entry(name) + END, "a whiteout of|too early"
    yield "whiteout above the root", entry(b"../.wh.outside") + END, "reaches outside"
    yield "opaque above the root", entry(b"../.wh..wh..opq") + END, "reaches outside"
    yield "absolute whiteout", entry(b"/.wh.etc") + END, "absolute name"


def _types() -> Iterator[Case]:
    for kind in b"89ADMNVXEZa!":
        yield f"type {kind:c}", OK + entry(b"odd", kind=bytes([kind])) + END, "'odd': unknown entry type"
    yield "type 0xff", entry(b"odd", kind=b"\xff") + END, "'odd': unknown entry type"
    yield "17 extension headers", pax({b"comment": b"x"}) * 17 + OK + END, "more than 16 extension headers"
    yield "extension header at the end", OK + pax({b"path": b"x"}) + END, "after an extension header"
    yield "single zero block inside", OK + bytes(BLOCK) + OK + END, "single zero block"
    yield "device number too large", entry(b"n", kind=b"3", major=0o7777777) + END, "'n': device number"
    yield "negative device number", entry(b"n", kind=b"3", major=base256(-1, 8)) + END, "'n': device number"


def _numbers() -> Iterator[Case]:
    sizes = {
        "2^63": base256(1 << 63, 12),
        "2^63-1": base256((1 << 63) - 1, 12),
        "2^62": base256(1 << 62, 12),
        "2^94": base256(1 << 94, 12),
        "negative": base256(-5, 12),
        "8 GiB in octal": b"77777777777\0",
        "letters": b"size\0",
        "decimal 9": b"00000000009\0",
        "minus": b"-0000000005\0",
    }
    for what, size in sizes.items():
        yield f"size {what}", OK + header(b"big", size=size) + pad(b"x"), "too early|size|octal|64 bits"
    for size in (b"9223372036854775807", b"-1", b"99999999999999999999", b"1e9", b" 5", b"+5"):
        yield f"pax size {size!r}", pax({b"size": size}) + entry(b"big", b"x"), "'big'|size"
    for what, owner in (
        ("-1", base256(-1, 8)),
        ("2^32-1", base256((1 << 32) - 1, 8)),
        ("2^40", base256(1 << 40, 8)),
    ):
        yield f"uid {what}", entry(b"o", uid=owner) + END, "'o': owner"
        yield f"gid {what} on a directory", directory(b"o", gid=owner) + END, "'o': owner"
    for time in (b"1e5", b"inf", b"nan", b"", b"12:30", b"9" * 40, b"1_000", b"0x10"):
        if time:
            yield f"pax mtime {time[:8]!r}", pax({b"mtime": time}) + entry(b"t") + END, "pax time|'t'"
    yield "mtime 2^63", entry(b"t", mtime=base256((1 << 63) - 1, 12)) + END, "'t'"
    yield "mtime -2^63", directory(b"t", mtime=base256(-(1 << 63), 12)) + END, "'t'"
    yield "mtime text", entry(b"t", mtime=b"yesterday") + END, "octal"
    yield "mode text", entry(b"t", mode=b"rwxr-xr") + END, "octal"


def _truncated() -> Iterator[Case]:
    whole = OK + pax({b"path": b"p/" * 300}) + entry(b"content", b"x" * 3000) + END
    for cut in (
        1,
        100,
        511,
        513,
        1023,
        1025,
        1536,
        1540,
        2047,
        2048,
        2500,
        3000,
        3072,
        3584,
        4000,
        5000,
        6143,
    ):
        if cut % BLOCK or (cut < 3584 and cut not in (512, 1024)):
            yield f"cut at {cut}", whole[:cut], "early|truncated|extension|entry"
    yield "no content at all", header(b"big", size=1 << 20), "'big': .*too early"
    yield "content one byte short", header(b"a", size=1024) + b"x" * 1023, "'a': .*1 bytes too early"


def _garbage() -> Iterator[Case]:
    noise = random.Random(4)
    for size in (1, 10, 511, 512, 1024, 5000, 100_000):
        yield f"noise of {size}", b"N" + noise.randbytes(size - 1), "truncated|tar archive|octal"
        yield (
            f"noise of {size} after an entry",
            OK + b"N" + noise.randbytes(size - 1),
            "truncated|tar archive|octal",
        )
    yield "text", b"<html>not found</html>\n" * 100, "tar archive|octal"
    yield "zip", b"PK\3\4" + bytes(2000), "tar archive|octal"
    yield "elf", b"\x7fELF" + bytes(2000), "tar archive|octal"
    yield "wrong checksum", header(b"a", checksum=octal(1, 8)) + END, "checksum"
    yield "no checksum", header(b"a", checksum=bytes(8)) + END, "checksum"
    yield "checksum text", header(b"a", checksum=b"checksum") + END, "octal"
    flipped = bytearray(entry(b"flip", b"1") + END)
    for at in (0, 50, 101, 125, 140, 156, 300, 400, 500):
        damaged = flipped.copy()
        damaged[at] ^= 0x40
        yield f"bit flipped at {at}", OK + bytes(damaged), "checksum|octal"


def _pax() -> Iterator[Case]:
    bad = {
        "no length": b"path=x\n",
        "wrong length": b"99 path=x\n",
        "short length": b"5 path=x\n",
        "zero length": b"0 path=x\n",
        "negative length": b"-9 path=x\n",
        "huge length": b"9" * 30 + b" path=x\n",
        "no newline": b"9 path=xy",
        "no equals": b"8 pathx\n",
        "no key": b"5 =x\n",
        "no space": b"9path=x\n",
        "binary": bytes(range(1, 100)),
        "second record cut": record(b"path", b"x") + b"20 mtime=",
        "uid text": record(b"uid", b"root"),
        "uid huge": record(b"uid", b"9" * 19),
        "gid negative": record(b"gid", b"-7"),
        "NUL in key": record(b"pa\0th", b"x"),
        "NUL in link": record(b"linkpath", b"x\0y"),
    }
    for what, body in bad.items():
        yield f"pax {what}", OK + pax(body) + entry(b"p", b"1") + END, "pax|'p'|NUL"
        if "id " not in what:
            yield f"global pax {what}", OK + pax(body, b"g") + entry(b"p", b"1") + END, "pax|NUL"


def _sparse() -> Iterator[Case]:
    real = 10_000
    maps = {
        "overlap": [(0, b"x" * 100), (50, b"y" * 100)],
        "backwards": [(5000, b"x" * 10), (0, b"y" * 10)],
        "beyond the end": [(9_990, b"x" * 100)],
    }
    for what, parts in maps.items():
        yield f"old sparse, {what}", sparse_old(b"s", parts, real) + END, "'s': sparse map"
        for version in ("0.0", "0.1", "1.0"):
            yield f"sparse {version}, {what}", sparse_pax(b"s", parts, real, version) + END, "'s': sparse map"
    good = [(0, b"x" * 100)]
    tail = bytes(41) + (octal(0, 12) + octal(5000, 12)).ljust(96, b"\0") + b"\0" + octal(real, 12)
    yield (
        "old sparse, more than stored",
        header(b"s", b"S", 100, magic=GNU, tail=tail) + pad(b"x" * 100),
        "'s'",
    )
    endless = header(b"s", b"S", 0, magic=GNU, tail=bytes(41 + 96) + b"\1" + octal(real, 12))
    yield "old sparse, endless map", endless + (bytes(504) + b"\1" + bytes(7)) * 50, "too early"
    sizes = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"s"}
    for what, realsize, text in (
        ("huge count", b"10", b"99999999\n"),
        ("count cut", b"10", b"5\n1\n"),
        ("text", b"10", b"one\n"),
        ("negative", b"10", b"1\n-1\n5\n"),
        ("endless digits", b"10", b"1" * 600),
        ("real size negative", b"-10", b"0\n"),
        ("real size huge", b"9223372036854775807", b"1\n0\n1\n"),
        ("real size missing", b"", b"0\n"),
    ):
        records = sizes | {b"GNU.sparse.realsize": realsize}
        yield f"sparse 1.0, {what}", pax(records) + entry(b"s", pad(text)) + END, "sparse|'s'"
    for what, table in (
        ("odd", b"1,2,3"),
        ("text", b"a,b"),
        ("empty part", b"1,,2"),
        ("huge", b"0," + b"9" * 25),
    ):
        raw = record(b"GNU.sparse.size", b"100") + record(b"GNU.sparse.map", table)
        yield f"sparse 0.1, {what}", pax(raw) + entry(b"s", good[0][1]) + END, "sparse"
    raw = record(b"GNU.sparse.size", b"100") + record(b"GNU.sparse.offset", b"0") * 2
    yield "sparse 0.0, two offsets", pax(raw) + entry(b"s") + END, "sparse"


def _xattrs() -> Iterator[Case]:
    for what, key, value in (
        ("value of 70 KiB", b"user.big", b"v" * 70_000),
        ("name of 300", b"user." + b"n" * 300, b"v"),
        ("bad capability", b"security.capability", b"nonsense"),
    ):
        yield (
            f"xattr, {what}",
            pax({b"SCHILY.xattr." + key: value}) + entry(b"x", b"1") + END,
            "extended attribute",
        )


def _compressed() -> Iterator[Case]:
    plain = OK + entry(b"noise", random.Random(5).randbytes(50_000)) + END
    codecs = {
        "gzip": gzip.compress(plain),
        "bzip2": bz2.compress(plain),
        "xz": lzma.compress(plain),
        "zstd": zstandard.ZstdCompressor(write_checksum=True).compress(plain),
    }
    for name, data in codecs.items():
        for cut in (7, 20, len(data) // 2, len(data) - 3):
            yield f"{name} cut at {cut}", data[:cut], f"{name} stream is (truncated|damaged)"
        damaged = bytearray(data)
        damaged[len(data) // 2] ^= 0xFF
        damaged[len(data) // 2 + 1] ^= 0xFF
        yield f"{name} with flipped bytes", bytes(damaged), f"{name} stream is|tar archive|octal|checksum"
        yield f"{name} with garbage after it", data + b"garbage", f"{name} stream is"
    zeros = bytes(8 << 20)
    yield "zstd wrong content checksum", codecs["zstd"][:-1] + bytes([codecs["zstd"][-1] ^ 1]), "zstd stream"
    yield "zstd window of 1 GiB", b"\x28\xb5\x2f\xfd\x00\xa0\x01\x00\x00", "memory|window|damaged"
    yield (
        "gzip of nothing but zero blocks, then text",
        gzip.compress(bytes(512) + b"x" * 512 + zeros),
        "zero block",
    )
