"""Applying archives: what ends up in the tree, what is learnt, and that the original agrees."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from drivers.archive import apply_archive
from drivers.base import Applied, Compression
from drivers.errors import HostileArchive, MalformedArchive
from drivers.idmap import IDMap, IDMappings
from drivers.limits import Limits
from tests.support import tars
from tests.support.tars import END, directory, entry, hardlink, pax, symlink
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.tools import StoreDirs, Tool
    from tests.support.trees import Entry


@pytest.fixture(params=[True, False], ids=["compiled", "python"])
def compiled(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


@pytest.fixture
def apply(tree: Path, compiled: bool) -> Callable[..., Applied]:
    def run(archive: bytes, **options: Any) -> Applied:
        return apply_archive(tree, io.BytesIO(archive), compiled=compiled, **options)

    return run


# -- metadata ----------------------------------------------------------------------------------


def test_apply_file_sets_owner_mode_time_and_content(tree: Path, apply: Callable[..., Applied]) -> None:
    apply(entry(b"f", b"content", mode=0o4711, uid=12, gid=34, mtime=123) + END)
    status = (tree / "f").stat()
    assert (tree / "f").read_bytes() == b"content"
    assert stat.S_IMODE(status.st_mode) == 0o4711
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (12, 34, 123 * 10**9)


def test_apply_directory_keeps_its_time_after_files_are_made_in_it(
    tree: Path, apply: Callable[..., Applied]
) -> None:
    apply(directory(b"d", mtime=7) + directory(b"d/e", mtime=8) + entry(b"d/e/f", b"1") + END)
    assert (tree / "d").stat().st_mtime == 7
    assert (tree / "d/e").stat().st_mtime == 8


def test_apply_root_entry_sets_the_root(tree: Path, apply: Callable[..., Applied]) -> None:
    apply(directory(b"./", mode=0o711, uid=9, mtime=77) + entry(b"./a") + END)
    status = tree.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o711, 9, 77)


def test_apply_file_in_setgid_directory_gets_its_own_group(tree: Path, apply: Callable[..., Applied]) -> None:
    apply(directory(b"g", mode=0o2775, gid=42) + entry(b"g/f", b"1") + symlink(b"g/l", b"f") + END)
    assert (tree / "g/f").stat().st_gid == 0
    assert (tree / "g/l").lstat().st_gid == 0
    assert stat.S_IMODE((tree / "g").stat().st_mode) == 0o2775


def test_apply_umask_does_not_matter(tree: Path, apply: Callable[..., Applied]) -> None:
    old = os.umask(0o077)
    try:
        apply(directory(b"d", mode=0o777) + entry(b"d/f", mode=0o666) + entry(b"x/y") + END)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tree / name).stat().st_mode) for name in ("d", "d/f", "x")]
    assert modes == [0o777, 0o666, 0o755]


def test_apply_xattrs_and_capabilities_are_set(tree: Path, apply: Callable[..., Applied]) -> None:
    cap = b"\1\0\0\2\0\4\0\0" + bytes(12)
    records = {b"SCHILY.xattr.security.capability": cap, b"SCHILY.xattr.user.k": b"v\0=\nw"}
    apply(pax(records) + entry(b"ping", b"1", mode=0o755, uid=5) + END)
    assert os.getxattr(tree / "ping", "security.capability") == cap
    assert os.getxattr(tree / "ping", "user.k") == b"v\0=\nw"


def test_apply_devices_and_fifo_are_made(tree: Path, apply: Callable[..., Applied]) -> None:
    apply(tars.ODD["devices"])
    null = (tree / "null").lstat()
    assert stat.S_ISCHR(null.st_mode)
    assert (null.st_rdev, stat.S_IMODE(null.st_mode)) == (os.makedev(1, 3), 0o666)
    assert stat.S_ISBLK((tree / "sda").lstat().st_mode)
    assert stat.S_ISFIFO((tree / "pipe").lstat().st_mode)


def test_apply_hard_link_shares_the_inode_and_its_header_wins(
    tree: Path, apply: Callable[..., Applied]
) -> None:
    apply(entry(b"a", b"1", mode=0o644) + hardlink(b"d/b", b"a", mode=0o600, mtime=5) + END)
    assert (tree / "a").stat().st_ino == (tree / "d/b").stat().st_ino
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o600
    assert (tree / "a").stat().st_mtime == 5


def test_apply_pax_times_keep_nanoseconds(tree: Path, apply: Callable[..., Applied]) -> None:
    apply(
        pax({b"mtime": b"1600000000.1234567899"}) + entry(b"a") + pax({b"mtime": b"-1.5"}) + entry(b"b") + END
    )
    assert (tree / "a").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (tree / "b").stat().st_mtime_ns == -1_500_000_000


def test_apply_sums_sizes_and_collects_owners(apply: Callable[..., Applied]) -> None:
    archive = entry(b"a", b"12", uid=7) + entry(b"b", b"345", gid=9, uid=3) + entry(b"d/.wh.x", uid=99) + END
    learnt = apply(archive)
    assert (learnt.content_size, learnt.uids, learnt.gids) == (5, (3, 7), (0, 9))


@pytest.mark.parametrize("name", tars.SPARSE)
def test_apply_sparse_file_has_content_and_holes(
    name: str, tree: Path, apply: Callable[..., Applied]
) -> None:
    apply(tars.SPARSE[name])
    parts = tars.MANY_PARTS if "extended" in name or "long" in name else tars.PARTS
    assert (tree / "s").read_bytes() == tars.expanded(parts, tars.REAL)
    assert (tree / "s").stat().st_blocks * 512 < tars.REAL
    assert (tree / "after").read_bytes() == b"1"


@pytest.mark.parametrize("name", tars.REPEATED)
def test_apply_repeated_name_last_one_wins(name: str, tmp_path: Path, compiled: bool) -> None:
    tree = tmp_path / "t"
    tree.mkdir()
    apply_archive(tree, io.BytesIO(tars.REPEATED[name]), compiled=compiled)
    want = {
        "same file twice": {"a": b"second one"},
        "file then directory": {"a/b": b"1"},
        "directory then file": {"a": b"2"},
        "file then whiteout": {},
        "directory then whiteout": {},
        "three times": {"a": b"333"},
        "hard link replaced": {"a": b"new", "b": b"1234"},
        "replaced by a link": {"a": b"1234", "b": b"1234"},
        "whiteout twice": {},
        "whiteout with content": {},
        "large and replaced": {"a": b"y"},
    }[name]
    files = {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}
    assert files == want


# -- identity mappings -------------------------------------------------------------------------

MAPPED = IDMappings(uids=(IDMap(0, 100_000, 1000), IDMap(5000, 300_000, 10)), gids=(IDMap(0, 200_000, 1000),))


def test_apply_mapped_owners_become_host_owners(tree: Path, apply: Callable[..., Applied]) -> None:
    archive = entry(b"made/a", uid=5001, gid=999) + directory(b"d", uid=1) + symlink(b"l", b"a", uid=2) + END
    learnt = apply(archive, mappings=MAPPED)
    owners = {p: ((tree / p).lstat().st_uid, (tree / p).lstat().st_gid) for p in ("made/a", "d", "l", "made")}
    assert owners == {
        "made/a": (300_001, 200_999),
        "d": (100_001, 200_000),
        "l": (100_002, 200_000),
        "made": (100_000, 200_000),
    }
    assert learnt.uids == (1, 2, 5001)


def test_apply_unmapped_owner_is_refused(apply: Callable[..., Applied]) -> None:
    with pytest.raises(MalformedArchive, match=r"'odd'.*ID 1000 cannot be mapped"):
        apply(entry(b"odd", uid=1000) + END, mappings=MAPPED)


# -- whiteouts and layers on layers --------------------------------------------------------------


def fill(tree: Path, *files: str) -> None:
    for name in files:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("below")


def paths(tree: Path) -> set[str]:
    return {str(p.relative_to(tree)) for p in tree.rglob("*")}


def test_apply_whiteout_removes_file_and_tree(tree: Path, apply: Callable[..., Applied]) -> None:
    fill(tree, "etc/hello", "etc/other", "deep/er/x")
    apply(entry(b"etc/.wh.hello") + entry(b".wh.deep") + entry(b".wh.nothing") + END)
    assert paths(tree) == {"etc", "etc/other"}


def test_apply_opaque_spares_what_the_archive_brought(tree: Path, apply: Callable[..., Applied]) -> None:
    fill(tree, "bin/old", "bin/sub/old", "bin/mixed/old", "bin/kept/old")
    apply(
        entry(b"bin/new")
        + entry(b"bin/mixed/new")
        + directory(b"bin/kept")
        + entry(b"bin/.wh..wh..opq")
        + END
    )
    assert paths(tree) == {"bin", "bin/new", "bin/mixed", "bin/mixed/new", "bin/kept"}


def test_apply_opaque_root_empties_the_layer_below(tree: Path, apply: Callable[..., Applied]) -> None:
    fill(tree, "a", "b/c")
    apply(entry(b".wh..wh..opq") + entry(b"new") + END)
    assert paths(tree) == {"new"}


def test_apply_whiteout_in_missing_directory_makes_it(tree: Path, apply: Callable[..., Applied]) -> None:
    apply(entry(b"nosuch/.wh.x") + entry(b"nosuch2/.wh..wh..opq") + END)
    assert paths(tree) == {"nosuch", "nosuch2"}


def test_apply_aufs_metadata_is_skipped(tree: Path, apply: Callable[..., Applied]) -> None:
    apply(directory(b".wh..wh.plnk") + entry(b".wh..wh.aufs", b"x") + entry(b"a") + END)
    assert paths(tree) == {"a"}


def test_apply_replaces_across_types(tree: Path, apply: Callable[..., Applied]) -> None:
    fill(tree, "dir/x", "file", "todir")
    os.symlink("file", tree / "link")
    archive = (
        entry(b"dir", b"now a file") + symlink(b"file", b"dir") + directory(b"todir") + entry(b"link", b"new")
    )
    apply(archive + END)
    assert (tree / "dir").read_text() == "now a file"
    assert os.readlink(tree / "file") == "dir"
    assert (tree / "todir").is_dir()
    assert not (tree / "link").is_symlink()


def test_apply_merges_directories_and_keeps_their_xattrs(tree: Path, apply: Callable[..., Applied]) -> None:
    fill(tree, "d/old")
    os.setxattr(tree / "d", "user.kept", b"1")
    apply(directory(b"d", mode=0o700, mtime=3) + entry(b"d/new") + END)
    assert paths(tree) == {"d", "d/old", "d/new"}
    assert os.getxattr(tree / "d", "user.kept") == b"1"
    assert (tree / "d").stat().st_mtime == 3


def test_apply_follows_links_of_the_layer_below_inside_the_root(
    tree: Path, apply: Callable[..., Applied]
) -> None:
    fill(tree, "run/x", "usr/lib/y")
    os.symlink("/run", tree / "var-run")
    os.symlink("usr/lib", tree / "lib")
    apply(entry(b"var-run/pid", b"1") + entry(b"lib/new/z", b"2") + entry(b"lib/.wh.y") + END)
    assert (tree / "run/pid").read_bytes() == b"1"
    assert (tree / "usr/lib/new/z").read_bytes() == b"2"
    assert not (tree / "usr/lib/y").exists()
    assert (tree / "lib").is_symlink()


def test_apply_hard_link_to_the_layer_below(tree: Path, apply: Callable[..., Applied]) -> None:
    fill(tree, "d/old")
    status = (tree / "d/old").stat()
    apply(hardlink(b"new", b"d/old", mode=0o644, mtime=int(status.st_mtime)) + END)
    assert (tree / "new").stat().st_ino == status.st_ino


def test_apply_deep_tree_is_removed(tree: Path, apply: Callable[..., Applied]) -> None:
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    apply(entry(b".wh.d") + END)
    assert not paths(tree)


# -- streams -------------------------------------------------------------------------------------

PLAIN = tars.ODD["file of several pieces"]
CODECS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.NONE: lambda data: data,
    Compression.GZIP: gzip.compress,
    Compression.BZIP2: bz2.compress,
    Compression.XZ: lzma.compress,
    Compression.ZSTD: zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("kind", CODECS)
def test_apply_compressed_archive_gives_both_digests(kind: Compression, tree: Path) -> None:
    given = CODECS[kind](PLAIN)
    learnt = apply_archive(tree, io.BytesIO(given))
    assert learnt.compression is kind
    assert learnt.compressed_digest == f"sha256:{hashlib.sha256(given).hexdigest()}"
    assert learnt.diff_digest == f"sha256:{hashlib.sha256(PLAIN).hexdigest()}"
    assert (learnt.compressed_size, learnt.diff_size) == (len(given), len(PLAIN))


class Trickle(io.RawIOBase):
    """A stream that gives one byte fewer or more at a time, as a pipe may."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)
        self._turn = 0

    def read(self, size: int = -1) -> bytes:
        self._turn += 1
        return self._data.read(1 + self._turn * 37 % 700)


def test_apply_stream_in_small_pieces_is_the_same(tmp_path: Path, compiled: bool) -> None:
    archive = b"".join(
        tars.ODD[name].removesuffix(END) for name in ("gnu long names", "devices", "pax owner")
    )
    whole, trickled = tmp_path / "whole", tmp_path / "trickled"
    results = []
    for path, stream in ((whole, io.BytesIO(archive)), (trickled, Trickle(archive))):
        path.mkdir()
        results.append(apply_archive(path, stream, compiled=compiled))  # type: ignore[arg-type]
    assert results[0] == results[1]
    assert snapshot_tree(whole, times=False) == snapshot_tree(trickled, times=False)


def test_apply_failing_stream_raises_its_error(tree: Path) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        apply_archive(tree, Broken())  # type: ignore[arg-type]


def test_apply_descriptor_of_root_stays_open(tree: Path) -> None:
    fd = os.open(tree, os.O_RDONLY)
    try:
        apply_archive(fd, io.BytesIO(entry(b"a") + END))
        assert os.listdir(fd) == ["a"]
    finally:
        os.close(fd)


def test_apply_leaks_no_descriptors(tmp_path: Path, compiled: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number, archive in enumerate([*tars.ODD.values(), entry(b"../x") + END, b"x" * 600]):
        tree = tmp_path / str(number)
        tree.mkdir()
        with contextlib.suppress(MalformedArchive, HostileArchive):
            apply_archive(tree, io.BytesIO(archive), tar_split=io.BytesIO(), compiled=compiled)
    assert len(os.listdir("/proc/self/fd")) == before


# -- one result --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*tars.ODD, *tars.REPEATED, *tars.SPARSE])
def test_apply_compiled_and_python_agree(name: str, tmp_path: Path) -> None:
    archive = {**tars.ODD, **tars.REPEATED, **tars.SPARSE}[name]
    seen = []
    for compiled in (True, False):
        tree = tmp_path / str(compiled)
        tree.mkdir()
        lines = io.BytesIO()
        learnt = apply_archive(tree, io.BytesIO(archive), tar_split=lines, compiled=compiled)
        seen.append((snapshot_tree(tree, times=False), learnt, lines.getvalue()))
    assert seen[0] == seen[1]


BETTER = {"one global header", "global header inside", "xattrs"}
"""Where the original loses something: it makes the global header's directory, and drops empty xattrs."""


def comparable(tree: Path) -> dict[str, Entry]:
    """Without times of directories: the original loses the root's, and makes parents at its own time."""
    return {
        path: dataclasses.replace(found, mtime_ns=0) if found.kind == "directory" else found
        for path, found in snapshot_tree(tree).items()
    }


def test_apply_odd_archives_equals_containers_storage(
    containers_storage: Tool, store_dirs: StoreDirs, btrfs_dir: Path
) -> None:
    layers = store_dirs.graphroot / "btrfs/subvolumes"
    taken = 0
    for number, (name, archive) in enumerate(tars.ODD.items(), 1):
        file, ours, layer_id = btrfs_dir / "a.tar", btrfs_dir / f"ours{number}", f"{number:064x}"
        file.write_bytes(archive)
        ours.mkdir(mode=0o555)
        learnt = apply_archive(ours, io.BytesIO(archive))
        done = containers_storage("import-layer", "--id", layer_id, "-f", file, check=False)
        if done.returncode:
            continue
        taken += 1
        if name not in BETTER:
            assert comparable(ours) == comparable(layers / layer_id), name
        record = json.loads((store_dirs.graphroot / "btrfs-layers/layers.json").read_text())[-1]
        assert record["diff-digest"] == learnt.diff_digest, name
        assert record.get("diff-size", 0) == learnt.diff_size, name
        assert tuple(record.get("uidset") or ()) == learnt.uids, name
        assert tuple(record.get("gidset") or ()) == learnt.gids, name
    assert taken >= len(tars.ODD) - 4


def test_apply_entry_limit_counts_every_entry(apply: Callable[..., Applied]) -> None:
    archive = b"".join(entry(b"f%d" % n) for n in range(10)) + END
    assert apply(archive, limits=Limits(entries=11)).content_size == 0
    with pytest.raises(HostileArchive, match="'f9': entry number 10"):
        apply(archive, limits=Limits(entries=10))
