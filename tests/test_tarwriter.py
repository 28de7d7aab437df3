"""Fresh archives: the bytes are containers/storage's, and other readers understand them."""

from __future__ import annotations

import io
import os
import resource
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers.archive import apply_archive
from drivers.base import Change, ChangeKind
from drivers.changes import tree_changes
from drivers.idmap import IDMap, IDMappings
from drivers.tarwriter import (
    HeaderStyle,
    Member,
    archive_size,
    header_blocks,
    open_diff,
    tar_chunks,
    write_tar,
)
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from tests.support.tools import StoreDirs, Tool

CAP = b"\1\0\0\2\0\4\0\0" + bytes(12)
BASE, CHILD = "a" * 64, "b" * 64


def fill(tree: Path) -> None:
    """One of everything a tree can hold."""
    for name in ("a", "a/b", "deep", "deep/" + "d" * 99, "deep/" + "d" * 99 + "/" + "e" * 90, "gone", "keep"):
        (tree / name).mkdir()
    (tree / "a.b").write_bytes(b"sorted after a/ in one order, before a/b in the other")
    (tree / "a/b/file").write_bytes(b"x" * 1000)
    (tree / "a/empty").touch()
    (tree / "a/hard").write_bytes(b"linked")
    os.link(tree / "a/hard", tree / "a/b/hard2")
    os.setxattr(tree / "a/hard", "user.k", b"v\0")
    (tree / "deep" / ("d" * 99) / ("e" * 90) / "splits-in-ustar").write_bytes(b"1")
    (tree / ("n" * 150)).write_bytes(b"too long a component for ustar")
    (tree / "gr\u00fc\u00dfe").write_bytes(b"1")
    (tree / os.fsdecode(b"raw\xff")).write_bytes(b"2")
    os.symlink("t" * 150, tree / "longlink")
    os.symlink("a", tree / "link")
    os.symlink("\u00fcber", tree / "link2")
    os.mknod(tree / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(tree / "disk", 0o660 | stat.S_IFBLK, os.makedev(259, 70000))
    os.mkfifo(tree / "fifo")
    (tree / "suid").write_bytes(b"#!")
    os.chown(tree / "suid", 3_000_000, 7)
    (tree / "suid").chmod(0o6755)
    os.setxattr(tree / "suid", "security.capability", CAP)
    os.setxattr(tree / "keep", "trusted.lost", b"1")
    os.setxattr(tree / "keep", "user.dir", b"1")
    with open(tree / "sparse", "wb") as file:
        file.seek(100_000)
        file.write(b"end")
    (tree / "gone/file").write_bytes(b"1")
    os.mknod(tree / "socket", 0o755 | stat.S_IFSOCK)
    for path in tree.rglob("*"):
        os.utime(path, ns=(10**18, 1_600_000_000_700_000_000), follow_symlinks=False)
    os.utime(tree / "a/empty", (-5, -5))


@pytest.mark.parametrize("style", HeaderStyle)
@pytest.mark.parametrize("whole", [True, False])
def test_size_told_beforehand_is_that_of_the_archive(tmp_path: Path, style: HeaderStyle, whole: bool) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for tree in (old, new):
        tree.mkdir()
    fill(new)
    (old / ("deleted" * 20)).touch()
    changes = None if whole else tree_changes(new, old)
    archive = b"".join(tar_chunks(new, changes, generation=style))
    assert archive_size(new, changes, generation=style) == len(archive)


def edit(tree: Path) -> None:
    """Changes of every kind."""
    (tree / "a/b/file").write_bytes(b"changed")
    (tree / "a/new").write_bytes(b"new")
    os.link(tree / "a/new", tree / "new2")
    os.link(tree / "a.b", tree / "link-to-unchanged")
    (tree / "gone/file").unlink()
    (tree / "gone").rmdir()
    (tree / "keep").chmod(0o700)
    (tree / "link").unlink()
    (tree / "link").mkdir()
    (tree / os.fsdecode(b"raw\xff")).unlink()
    (tree / "deep" / ("d" * 99)).rename(tree / "deep/renamed")


def without_whiteout_times(archive: bytes) -> bytes:
    """Time and checksum of whiteout headers blanked: they are made at whatever moment it is."""
    out = bytearray(archive)
    for at in range(0, len(archive), 512):
        block = archive[at : at + 512]
        if b".wh." in block[:100] and block[257:262] == b"ustar":
            out[at + 136 : at + 156] = bytes(20)
    return bytes(out)


def members_of(archive: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as reader:
        return reader.getmembers()


@pytest.fixture
def layers(containers_storage: Tool, store_dirs: StoreDirs) -> tuple[Path, Path]:
    """A base layer and a child with changes, which containers-storage knows too."""
    home = store_dirs.graphroot / "btrfs/subvolumes"
    containers_storage("create-layer", "--id", BASE)
    fill(home / BASE)
    containers_storage("create-layer", "--id", CHILD, BASE)
    edit(home / CHILD)
    return home / BASE, home / CHILD


def test_writer_full_tree_has_the_bytes_of_containers_storage(
    layers: tuple[Path, Path], containers_storage: Tool, btrfs_dir: Path
) -> None:
    containers_storage("diff", "-u", "-f", btrfs_dir / "theirs.tar", BASE)
    with open_diff(layers[0], None) as ours:
        assert ours.read() == (btrfs_dir / "theirs.tar").read_bytes()


def test_writer_changes_have_the_bytes_of_containers_storage(
    layers: tuple[Path, Path], containers_storage: Tool, btrfs_dir: Path
) -> None:
    containers_storage("diff", "-u", "-f", btrfs_dir / "theirs.tar", CHILD)
    changes = tree_changes(layers[1], layers[0])
    assert {change.kind for change in changes} == set(ChangeKind)
    with open_diff(layers[1], reversed(changes)) as ours:
        got = without_whiteout_times(ours.read())
    assert got == without_whiteout_times((btrfs_dir / "theirs.tar").read_bytes())


def test_writer_applied_changes_make_the_child(layers: tuple[Path, Path], btrfs_dir: Path) -> None:
    base, child = layers
    copy = btrfs_dir / "copy"
    copy.mkdir()
    for archive in (open_diff(base, None), open_diff(child, tree_changes(child, base))):
        with archive:
            apply_archive(copy, archive)
    want, got = snapshot_tree(child, times=False), snapshot_tree(copy, times=False)
    want.pop(".")
    got.pop(".")
    want.pop("socket")
    # A trusted.* xattr does not travel, and a new link to an unchanged file becomes a copy of it.
    dropped = {"keep", "a.b", "link-to-unchanged"}
    assert {k: v for k, v in got.items() if k not in dropped} == {
        k: v for k, v in want.items() if k not in dropped
    }


def test_writer_archive_is_understood_by_tarfile(layers: tuple[Path, Path]) -> None:
    with open_diff(layers[0], None) as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as archive:
        members = {member.name: member for member in archive}
        assert members["gr\u00fc\u00dfe"].size == 1
        assert members["longlink"].linkname == "t" * 150
        assert (members["disk"].devmajor, members["disk"].devminor) == (259, 70000)
        assert members["suid"].uid == 3_000_000
        assert members["a/hard"].islnk() or members["a/b/hard2"].islnk()
        sparse = archive.extractfile("sparse")
        assert sparse is not None
        assert sparse.read() == bytes(100_000) + b"end"
        assert "socket" not in members


def test_writer_styles_differ_in_mode_and_names_only(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    (tmp_path / "f").chmod(0o4755)
    os.setxattr(tmp_path / "f", "user.overlay.opaque", b"y")
    (tmp_path / "d").mkdir(mode=0o755)
    headers = {}
    for style in HeaderStyle:
        with open_diff(tmp_path, None, generation=style) as stream:
            headers[style] = stream.read()
    old, new = headers[HeaderStyle.V1_43], headers[HeaderStyle.HEAD]
    assert old[100:108] == b"0040755\0"
    assert old[265:270] == b"root\0"
    assert new[100:108] == b"0000755\0"
    assert new[265:297] == bytes(32)
    assert b"user.overlay.opaque" in old
    assert b"overlay" not in new
    assert new[512 + 100 :][:8] == b"0004755\0"


def test_writer_maps_owners_and_leaves_unmapped_ones_out(tmp_path: Path) -> None:
    for name, owner in (("in", 100_005), ("out", 5)):
        (tmp_path / name).write_bytes(b"1")
        os.chown(tmp_path / name, owner, owner)
    ranges = (IDMap(0, 100_000, 1000),)
    with open_diff(tmp_path, None, mappings=IDMappings(uids=ranges, gids=ranges)) as stream:
        members = members_of(stream.read())
    assert [(m.name, m.uid, m.gid) for m in members] == [("in", 5, 5)]


@pytest.mark.parametrize(
    ("member", "blocks"),
    [
        (Member(path=b"a" * 100, type=0x30), 1),
        (Member(path=b"a" * 101, type=0x30), 4),
        (Member(path=b"p" * 155 + b"/" + b"n" * 100, type=0x30), 1),
        (Member(path=b"p" * 156 + b"/" + b"n" * 99, type=0x30), 4),
        (Member(path=b"a", type=0x30, size=8 << 30), 4),
        (Member(path=b"a", type=0x30, size=(8 << 30) - 1), 1),
        (Member(path=b"a", type=0x30, uid=0o7777777), 1),
        (Member(path=b"a", type=0x30, uid=0o10000000), 4),
        (Member(path=b"a", type=0x30, mtime=-1), 4),
        (Member(path=b"a", type=0x32, linkname=b"l" * 101), 4),
        (Member(path=b"a", type=0x30, xattrs=((b"user.x", bytes(1000)),)), 5),
    ],
)
def test_writer_uses_a_pax_header_only_where_needed(member: Member, blocks: int) -> None:
    # A pax header is its own block, the records' blocks, then the entry's block.
    assert len(header_blocks(member)) == 512 * (
        blocks - 1 if blocks > 1 and len(member.xattrs) == 0 else blocks
    )
    info = tarfile.TarInfo.frombuf(header_blocks(member)[-512:], "utf-8", "surrogateescape")
    assert info.chksum > 0


def test_writer_path_that_vanished_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"1")
    changes = [Change(b"/gone/deep", ChangeKind.ADDED), Change(b"/there", ChangeKind.ADDED)]
    changes.append(Change(b"/never", ChangeKind.MODIFIED))
    with open_diff(tmp_path, changes) as stream:
        assert [m.name for m in members_of(stream.read())] == ["there"]


AS_NOBODY = """
import os
from drivers.tarwriter import archive_size, tar_chunks
root = os.open("tree", os.O_RDONLY)
os.setgroups([])
os.setresuid(65534, 65534, 65534)
for read in (archive_size, lambda *args: b"".join(tar_chunks(*args))):
    try:
        print(read(root, None))
    except PermissionError:
        print("refused")
"""


def test_writer_directory_that_cannot_be_read_is_no_archive(tmp_path: Path) -> None:
    """An archive without what is in it would look complete."""
    (tmp_path / "tree/closed").mkdir(parents=True)
    (tmp_path / "tree/closed/file").write_bytes(b"1")
    (tmp_path / "tree/closed").chmod(0o700)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "refused\nrefused\n", done.stderr


def test_writer_file_that_shrinks_while_read_keeps_the_archive_valid(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * (3 << 20))
    (tmp_path / "g").write_bytes(b"after")
    pieces = tar_chunks(tmp_path, None)
    out = next(pieces)
    os.truncate(tmp_path / "f", 10)
    out += b"".join(pieces)
    assert [m.size for m in members_of(out)] == [3 << 20, 5]


def test_writer_symlinked_parent_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(b"1")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "l").symlink_to("../outside")
    with open_diff(tree, [Change(b"/l/secret", ChangeKind.ADDED)]) as stream:
        assert stream.read() == bytes(1024)


def test_writer_closing_early_releases_everything(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"f{number}").write_bytes(bytes(100_000))
    closed = []
    before = len(os.listdir("/proc/self/fd"))
    stream = open_diff(tmp_path, None, on_close=lambda: closed.append(True))
    stream.read(10)
    stream.close()
    stream.close()
    assert closed == [True]
    assert len(os.listdir("/proc/self/fd")) == before


def test_writer_streams_through_a_pipe_in_constant_memory(tmp_path: Path) -> None:
    with open(tmp_path / "big", "wb") as file:
        file.truncate(400 << 20)
    reader, writer = os.pipe()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def produce() -> None:
        with os.fdopen(writer, "wb") as out:
            write_tar(out, tmp_path, None)

    thread = threading.Thread(target=produce)
    thread.start()
    total = 0
    with os.fdopen(reader, "rb") as source:
        while data := source.read(1 << 20):
            total += len(data)
    thread.join()
    assert total == (400 << 20) + 512 + 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < 50


def test_archives_of_one_state_are_the_same_whenever_they_are_made(tmp_path):
    (tmp_path / "d").mkdir()
    os.utime(tmp_path / "d", (5, 5))
    os.utime(tmp_path, (7, 7))
    changes = [Change(path=path, kind=ChangeKind.DELETED) for path in (b"/d/gone", b"/gone")]
    archive = b"".join(tar_chunks(tmp_path, changes))
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        assert {member.name: member.mtime for member in members} == {"d/.wh.gone": 5, ".wh.gone": 7}
