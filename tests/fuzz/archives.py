"""What the archive fuzzer checks, and how it makes archives.

An archive is a list of pieces (entries, extension headers, damage), so that shrinking gives a readable
one, and mutations of whole archives come on top. Properties:

* either an error of the :class:`~drivers.errors.ArchiveError` family or an ``OSError``, or success;
* nothing outside the tree changes;
* the compiled loop and the Python code give the same tree, result and tar-split, or the same error type;
* after success the tar-split gives back every byte.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from drivers import tarsplit
from drivers.archive import apply_archive
from drivers.errors import ArchiveError
from drivers.limits import MIB, Limits
from tests.support import tars
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from drivers.base import Applied

LIMITS = Limits(entries=2000, size=64 * MIB, file_size=256 * MIB, stored=16 * MIB, window=16 * MIB)

PARTS = [
    b"a",
    b"b",
    b"d",
    b"l",
    b"up",
    b".",
    b"..",
    b"",
    b".wh.a",
    b".wh..wh..opq",
    b".wh.",
    b"raw\xff",
    b"\xc3\xa9<",
]
paths = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map(b"/".join)
targets = st.one_of(paths, paths.map(lambda p: b"/" + p), st.sampled_from([b"../../x", b"/etc", b"l/l"]))
contents = st.one_of(
    st.binary(max_size=40), st.integers(0, 3000).map(lambda n: bytes(range(256)) * (n // 256 + 1))
)
modes = st.sampled_from([0, 0o644, 0o4755, 0o1777, 0o2755])
owners = st.sampled_from([0, 1, 1000, 65534, tars.base256(70_000, 8), tars.base256(-1, 8)])
times = st.sampled_from(
    [0, 1, tars.MTIME, tars.base256(-5, 12), tars.base256(1 << 40, 12), tars.base256(1 << 62, 12)]
)
fields = st.fixed_dictionaries({}, optional={"mode": modes, "uid": owners, "gid": owners, "mtime": times})
KEYS = [
    b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"atime", b"comment", b"SCHILY.xattr.user.x",
    b"GNU.sparse.map", b"GNU.sparse.size", b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.realsize",
]  # fmt: skip
values = st.one_of(
    paths, st.sampled_from([b"", b"0", b"1", b"5", b"-1", b"1.5", b"0,1", b"1e3", b"x\0", b"99999999999"])
)


def _entry(kind: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(
        lambda n, c, t, f: tars.entry(n, c, kind, link=t[:100], **f), paths, contents, targets, fields
    )


def _bare(kind: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(lambda n, t, f: tars.entry(n, b"", kind, link=t[:100], **f), paths, targets, fields)


sparse = st.builds(
    lambda name, old, parts: (
        tars.sparse_old(name, parts, 9000) if old is None else tars.sparse_pax(name, parts, 9000, old)
    ),
    paths,
    st.sampled_from([None, "0.0", "0.1", "1.0"]),
    st.lists(st.tuples(st.sampled_from([0, 100, 4096, 8990]), st.binary(max_size=20)), max_size=6),
)
pieces = st.one_of(
    _entry(b"0"),
    _entry(b"0"),
    *(_bare(bytes([kind])) for kind in b"0125537"),
    st.builds(lambda d: tars.pax(d), st.dictionaries(st.sampled_from(KEYS), values, max_size=3)),
    st.builds(lambda p: tars.longname(p), paths),
    st.builds(lambda p: tars.longname(p, b"K"), targets),
    sparse,
    st.builds(lambda d: tars.pax(d, b"g"), st.dictionaries(st.sampled_from(KEYS), values, max_size=2)),
    st.builds(tars.pax, st.binary(max_size=60)),
    st.sampled_from([bytes(512), tars.END]),
    st.binary(max_size=600),
    st.builds(
        lambda k, s: tars.header(b"odd", bytes([k]), s),
        st.integers(0, 255),
        st.sampled_from([0, 5, 512, tars.base256(1 << 62, 12), tars.base256(-1, 12), b"9"]),
    ),
)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A stream of pieces, possibly with damage on top."""
    whole = bytearray(b"".join(draw(st.lists(pieces, max_size=12))))
    if draw(st.booleans()):
        whole += tars.END
    for _ in range(draw(st.integers(0, 2)) if whole else 0):
        at = draw(st.integers(0, len(whole) - 1))
        whole[at] = draw(st.integers(0, 255))
    if draw(st.integers(0, 5)) == 0:
        whole = whole[: draw(st.integers(0, len(whole)))]
    return bytes(whole)


@dataclass(frozen=True)
class Outcome:
    """What one way of applying did."""

    error: type[BaseException] | None
    tree: object
    applied: Applied | None
    lines: bytes


class Arena:
    """A place to apply archives in, with a canary beside it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.tree = base / "tree"
        self.outside = base / "outside"
        self.outside.mkdir()
        (self.outside / "canary").write_text("alive")
        (self.base / "x").write_text("beside")

    def _fresh(self) -> None:
        shutil.rmtree(self.tree, ignore_errors=True)
        (self.tree / "d").mkdir(parents=True)
        (self.tree / "d/a").write_text("below")
        (self.tree / "up").symlink_to("/d")
        (self.tree / "l").symlink_to("../outside")

    def _around(self) -> object:
        return (
            sorted(os.listdir(self.base)),
            snapshot_tree(self.outside),
            (self.base / "x").stat().st_mtime_ns,
        )

    def apply(self, archive: bytes, *, compiled: bool) -> Outcome:
        """Apply once to a fresh tree and check what must always hold."""
        self._fresh()
        before, lines = self._around(), io.BytesIO()
        try:
            applied = apply_archive(
                self.tree, io.BytesIO(archive), tar_split=lines, limits=LIMITS, compiled=compiled
            )
        except (ArchiveError, OSError) as error:
            assert self._around() == before
            return Outcome(type(error), None, None, b"")
        assert self._around() == before
        tree = snapshot_tree(self.tree, times=False)
        if applied.diff_digest == f"sha256:{hashlib.sha256(archive).hexdigest()}":
            with tarsplit.assemble(io.BytesIO(lines.getvalue()), self.tree) as stream:
                assert stream.read() == archive
        return Outcome(None, tree, applied, lines.getvalue())

    def check(self, archive: bytes) -> Outcome:
        """All properties; returns the outcome, which both ways share."""
        compiled, python = self.apply(archive, compiled=True), self.apply(archive, compiled=False)
        assert compiled == python
        return compiled
