"""The btrfs ioctls against a real filesystem, and against btrfs-progs."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from drivers import btrfs_commits, btrfs_ioctl, btrfs_tree, syscalls
from drivers.btrfs_flush import Flusher
from drivers.btrfs_ioctl import BtrfsError
from tests.support.loops import run

SEND_MAGIC = b"btrfs-stream\0"


@pytest.fixture
def subvolume(btrfs_dir: Path) -> Path:
    btrfs_ioctl.create_subvolume(btrfs_dir, "one")
    return btrfs_dir / "one"


def progs_show(path: Path) -> dict[str, str]:
    lines = run("btrfs", "subvolume", "show", path).splitlines()[1:]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


# -- making and removing -----------------------------------------------------------------------


def test_create_subvolume_is_one_and_empty(subvolume: Path) -> None:
    assert btrfs_ioctl.is_subvolume(subvolume)
    assert subvolume.stat().st_ino == btrfs_ioctl.ROOT_INODE
    assert not list(subvolume.iterdir())


def test_create_subvolume_by_descriptor_lands_in_that_directory(btrfs_dir: Path) -> None:
    with btrfs_ioctl.opened(btrfs_dir) as fd:
        btrfs_ioctl.create_subvolume(fd, b"caf\xff")
    assert btrfs_ioctl.is_subvolume(os.fsencode(btrfs_dir) + b"/caf\xff")


def test_create_subvolume_with_taken_name_is_eexist_with_its_path(subvolume: Path) -> None:
    with pytest.raises(BtrfsError, match="SUBVOL_CREATE") as caught:
        btrfs_ioctl.create_subvolume(subvolume.parent, subvolume.name)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.filename == str(subvolume)


@pytest.mark.parametrize(
    ("name", "code"),
    [("", errno.EINVAL), ("a/b", errno.EINVAL), ("..", errno.EINVAL), ("a\0b", errno.EINVAL),
     ("x" * 256, errno.ENAMETOOLONG)],
)  # fmt: skip
def test_create_subvolume_impossible_name_never_reaches_the_kernel(
    btrfs_dir: Path, name: str, code: int
) -> None:
    for call in (btrfs_ioctl.create_subvolume, btrfs_ioctl.destroy):
        with pytest.raises(BtrfsError) as caught:
            call(btrfs_dir, name)
        assert caught.value.errno == code
    assert not list(btrfs_dir.iterdir())


def test_longest_name_is_possible(btrfs_dir: Path) -> None:
    btrfs_ioctl.create_subvolume(btrfs_dir, "x" * 255)
    btrfs_ioctl.destroy(btrfs_dir, "x" * 255)
    assert not list(btrfs_dir.iterdir())


def test_snapshot_shares_content_and_diverges(subvolume: Path) -> None:
    (subvolume / "file").write_text("then")
    btrfs_ioctl.snapshot(subvolume, subvolume.parent, "two")
    (subvolume / "file").write_text("now")
    assert (subvolume.parent / "two" / "file").read_text() == "then"


def test_snapshot_read_only_refuses_writes(subvolume: Path) -> None:
    btrfs_ioctl.snapshot(subvolume, subvolume.parent, "frozen", read_only=True)
    frozen = subvolume.parent / "frozen"
    with pytest.raises(OSError, match="Read-only") as caught:
        (frozen / "file").touch()
    assert caught.value.errno == errno.EROFS
    assert btrfs_ioctl.is_read_only(frozen)
    btrfs_ioctl.set_read_only(frozen, False)
    (frozen / "file").touch()


def test_snapshot_of_plain_directory_is_einval(btrfs_dir: Path) -> None:
    (btrfs_dir / "plain").mkdir()
    with pytest.raises(BtrfsError) as caught:
        btrfs_ioctl.snapshot(btrfs_dir / "plain", btrfs_dir, "copy")
    assert caught.value.errno == errno.EINVAL


def test_destroy_nonempty_by_nesting_is_enotempty(subvolume: Path) -> None:
    btrfs_ioctl.create_subvolume(subvolume, "inner")
    with pytest.raises(BtrfsError) as caught:
        btrfs_ioctl.destroy(subvolume.parent, subvolume.name)
    assert caught.value.errno == errno.ENOTEMPTY


def test_destroy_by_id_removes_from_anywhere(subvolume: Path, btrfs_root: Path) -> None:
    btrfs_ioctl.destroy_by_id(btrfs_root, btrfs_ioctl.subvolume_id(subvolume))
    assert not subvolume.exists()


def test_destroyed_subvolume_is_cleaned_when_waited_for(subvolume: Path, btrfs_root: Path) -> None:
    identifier = btrfs_ioctl.subvolume_id(subvolume)
    btrfs_ioctl.destroy(subvolume.parent, subvolume.name)
    btrfs_ioctl.wait_cleaned(btrfs_root)
    wanted = btrfs_tree.Range(tree=btrfs_tree.ROOT_TREE, objectids=(identifier, identifier))
    assert not list(btrfs_tree.tree_search(btrfs_root, wanted))
    assert btrfs_ioctl.queued_for_cleaning(btrfs_root) == 0


# -- facts -------------------------------------------------------------------------------------


def test_subvolume_info_agrees_with_btrfs_progs(subvolume: Path) -> None:
    btrfs_ioctl.snapshot(subvolume, subvolume.parent, "copy", read_only=True)
    copy = subvolume.parent / "copy"
    info, shown = btrfs_ioctl.subvolume_info(copy), progs_show(copy)
    assert (info.name, str(info.id), str(info.uuid)) == ("copy", shown["Subvolume ID"], shown["UUID"])
    assert str(info.parent_uuid) == shown["Parent UUID"]
    assert str(info.parent_id) == shown["Parent ID"]
    assert str(info.generation) == shown["Generation"]
    assert str(info.otransid) == shown["Gen at creation"]
    assert info.read_only
    assert info.received_uuid is None


def test_generation_moves_when_a_change_is_committed(subvolume: Path) -> None:
    btrfs_ioctl.sync(subvolume)
    before = btrfs_ioctl.subvolume_info(subvolume).generation
    btrfs_ioctl.sync(subvolume)
    assert btrfs_ioctl.subvolume_info(subvolume).generation == before
    (subvolume / "file").touch()
    running = btrfs_ioctl.filesystem_info(subvolume).generation
    btrfs_ioctl.commit(subvolume)
    after = btrfs_ioctl.subvolume_info(subvolume).generation
    assert before < after <= running
    assert btrfs_ioctl.filesystem_info(subvolume).generation >= after


def test_flush_counts_unwritten_data_without_a_commit(subvolume: Path) -> None:
    (subvolume / "file").write_text("before")
    btrfs_ioctl.sync(subvolume)
    before = btrfs_ioctl.subvolume_info(subvolume)
    with open(subvolume / "file", "r+b", buffering=0) as file:
        file.write(b"later!")
    (subvolume.parent / "other").touch()
    begun = btrfs_ioctl.filesystem_info(subvolume).generation
    btrfs_ioctl.flush(subvolume)
    assert btrfs_ioctl.ctransid(subvolume) == begun > before.ctransid
    assert btrfs_ioctl.filesystem_info(subvolume).generation == begun
    assert {path.name for path in subvolume.parent.iterdir()} == {"one", "other"}


@pytest.mark.parametrize("works", [True, False])
def test_settled_generation_counts_what_a_file_holds(
    btrfs_dir: Path, subvolume: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    """Also where the kernel's snapshot would look at its name first, and flush nothing."""
    if not works:
        monkeypatch.setattr(btrfs_ioctl, "flush", lambda place: None)
    flusher = Flusher(lambda: btrfs_dir / "tried", lambda path: btrfs_ioctl.destroy(path.parent, path.name))
    (subvolume / "file").write_text("before")
    for number in range(3):
        btrfs_ioctl.sync(subvolume)
        before = btrfs_ioctl.ctransid(subvolume)
        with open(subvolume / "file", "r+b", buffering=0) as file, btrfs_ioctl.opened(subvolume) as fd:
            file.write(b"%d" % number)
            flusher.settle(fd)
        assert btrfs_ioctl.ctransid(subvolume) > before
    assert [path.name for path in btrfs_dir.iterdir()] == ["one"]


def test_numbers_written_down_are_those_of_the_headers() -> None:
    names = ("START_SYNC", "WAIT_SYNC", "GET_FEATURES", "FS_INFO")
    for name in names:
        assert getattr(btrfs_commits, name) == getattr(btrfs_ioctl.lib, f"BTRFS_IOC_{name}"), name
    assert btrfs_commits.FIEMAP == syscalls.lib.FS_IOC_FIEMAP


def test_filesystem_info_names_the_filesystem(btrfs_root: Path) -> None:
    info = btrfs_ioctl.filesystem_info(btrfs_root)
    assert Path(f"/sys/fs/btrfs/{info.fsid}").is_dir()
    assert info.sector_size == os.sysconf("SC_PAGESIZE")
    assert info.devices == 1


def test_is_subvolume_is_not_fooled(btrfs_dir: Path, ext4_dir: Path) -> None:
    (btrfs_dir / "plain").mkdir()
    btrfs_ioctl.create_subvolume(btrfs_dir, "real")
    (btrfs_dir / "link").symlink_to("real")
    assert not btrfs_ioctl.is_subvolume(btrfs_dir / "plain")
    assert not btrfs_ioctl.is_subvolume(btrfs_dir / "link")
    assert not btrfs_ioctl.is_subvolume(btrfs_dir / "missing")
    assert not btrfs_ioctl.is_btrfs(ext4_dir)
    lookalike = _directory_with_inode_256(ext4_dir)
    assert lookalike is None or not btrfs_ioctl.is_subvolume(lookalike)


def _directory_with_inode_256(root: Path) -> Path | None:
    for number in range(400):
        path = root / str(number)
        path.mkdir()
        if path.stat().st_ino == btrfs_ioctl.ROOT_INODE:
            return path
    return None


def test_ioctl_elsewhere_is_enotty(ext4_dir: Path) -> None:
    with pytest.raises(BtrfsError) as caught:
        btrfs_ioctl.subvolume_info(ext4_dir)
    assert caught.value.errno == errno.ENOTTY
    assert caught.value.filename == str(ext4_dir)


# -- trees -------------------------------------------------------------------------------------


def test_nested_subvolumes_are_found_deepest_first(subvolume: Path) -> None:
    wanted = {"a", "a/b", "dir/deep/c", "a/b/d"}
    for path in sorted(wanted, key=len):
        place = subvolume / path
        place.parent.mkdir(parents=True, exist_ok=True)
        btrfs_ioctl.create_subvolume(place.parent, place.name)
    found = btrfs_tree.nested_subvolumes(subvolume, btrfs_ioctl.subvolume_id(subvolume))
    assert {nested.path for nested in found} == wanted
    for nested in found:
        assert btrfs_ioctl.subvolume_id(subvolume / nested.path) == nested.id
    order = [nested.path for nested in found]
    assert order.index("a/b/d") < order.index("a/b") < order.index("a")


def test_tree_search_in_many_batches_sees_every_item(subvolume: Path) -> None:
    for number in range(300):
        (subvolume / f"file{number}").touch()
    btrfs_ioctl.sync(subvolume)
    identifier = btrfs_ioctl.subvolume_id(subvolume)
    wanted = btrfs_tree.Range(tree=identifier, objectids=(257, 2**63))
    whole = list(btrfs_tree.tree_search(subvolume, wanted))
    piecewise = list(btrfs_tree.tree_search(subvolume, wanted, buffer_size=512))
    assert whole == piecewise
    assert len({item.objectid for item in whole}) == 300


def test_tree_search_honours_every_bound(subvolume: Path) -> None:
    for number in range(20):
        (subvolume / f"file{number}").touch()
    btrfs_ioctl.sync(subvolume)
    wanted = btrfs_tree.Range(
        tree=btrfs_ioctl.subvolume_id(subvolume), objectids=(260, 265), types=(1, 1), offsets=(0, 0)
    )
    found = list(btrfs_tree.tree_search(subvolume, wanted))
    assert [(item.objectid, item.type) for item in found] == [(number, 1) for number in range(260, 266)]


def test_subvolume_ids_are_those_btrfs_progs_lists(subvolume: Path, btrfs_root: Path) -> None:
    lines = run("btrfs", "subvolume", "list", btrfs_root).splitlines()
    assert btrfs_tree.subvolume_ids(btrfs_root) == {int(line.split()[1]) for line in lines}


def test_extent_of_a_snapshot_refers_to_both(subvolume: Path) -> None:
    (subvolume / "data").write_bytes(os.urandom(1 << 20))
    btrfs_ioctl.snapshot(subvolume, subvolume.parent, "copy")
    with (subvolume / "data").open("rb") as file:
        first = next(syscalls.extents(file.fileno()))
    assert first.shared
    wanted = {btrfs_ioctl.subvolume_id(path) for path in (subvolume, subvolume.parent / "copy")}
    assert btrfs_tree.referring_subvolumes(subvolume, first.physical) == wanted


# -- send --------------------------------------------------------------------------------------


def _sent(place: Path, **options: Any) -> bytes:
    with tempfile.TemporaryFile() as stream:
        btrfs_ioctl.send(place, stream.fileno(), **options)
        stream.seek(0)
        return stream.read()


def test_send_without_data_is_small_and_names_the_change(subvolume: Path) -> None:
    parent = subvolume.parent
    btrfs_ioctl.snapshot(subvolume, parent, "before", read_only=True)
    (subvolume / "added").write_bytes(os.urandom(1 << 20))
    btrfs_ioctl.snapshot(subvolume, parent, "after", read_only=True)
    base = btrfs_ioctl.subvolume_id(parent / "before")
    thin = _sent(parent / "after", parent_id=base, no_file_data=True)
    assert thin.startswith(SEND_MAGIC)
    assert b"added" in thin
    assert len(thin) < 4096
    full = _sent(parent / "after", parent_id=base)
    assert len(full) > 1 << 20


def test_send_of_writable_subvolume_is_refused(subvolume: Path) -> None:
    with pytest.raises(BtrfsError, match="BTRFS_IOC_SEND") as caught:
        _sent(subvolume)
    assert caught.value.errno == errno.EPERM


def test_send_of_unknown_protocol_is_refused(subvolume: Path) -> None:
    btrfs_ioctl.set_read_only(subvolume, True)
    with pytest.raises(BtrfsError) as caught:
        _sent(subvolume, version=99)
    assert caught.value.errno in (errno.EPROTO, errno.EINVAL)
    assert _sent(subvolume, version=2)[len(SEND_MAGIC) :][:4] == b"\x02\0\0\0"


# -- system calls ------------------------------------------------------------------------------


def test_renameat2_exchange_swaps_subvolumes(subvolume: Path) -> None:
    other = subvolume.parent / "two"
    btrfs_ioctl.create_subvolume(subvolume.parent, "two")
    (other / "mark").touch()
    syscalls.renameat2(other, subvolume, syscalls.RENAME_EXCHANGE)
    assert (subvolume / "mark").exists()
    assert not (other / "mark").exists()
    with pytest.raises(FileExistsError):
        syscalls.renameat2(other, subvolume, syscalls.RENAME_NOREPLACE)


def test_openat2_stays_beneath(btrfs_dir: Path) -> None:
    (btrfs_dir / "inside").write_text("x")
    (btrfs_dir / "out").symlink_to("/etc/passwd")
    with btrfs_ioctl.opened(btrfs_dir) as fd:
        os.close(syscalls.openat2(fd, "inside", os.O_RDONLY, resolve=syscalls.RESOLVE_BENEATH))
        for path in ("out", "../outside", "/etc/passwd"):
            with pytest.raises(OSError, match="cross-device") as caught:
                syscalls.openat2(fd, path, os.O_RDONLY, resolve=syscalls.RESOLVE_BENEATH)
            assert caught.value.errno == errno.EXDEV


def test_file_handle_opens_the_same_file_until_it_is_gone(btrfs_dir: Path) -> None:
    path = btrfs_dir / "file"
    path.write_text("found by handle")
    with btrfs_ioctl.opened(btrfs_dir) as fd:
        kind, handle, _ = syscalls.file_handle(fd, "file")
        path.rename(btrfs_dir / "renamed")
        again = syscalls.open_handle(fd, kind, handle, os.O_RDONLY)
        assert os.read(again, 100) == b"found by handle"
        os.close(again)
        (btrfs_dir / "renamed").unlink()
        with pytest.raises(OSError, match="Stale"):
            syscalls.open_handle(fd, kind, handle, os.O_RDONLY)


def test_clone_file_shares_extents(btrfs_dir: Path) -> None:
    (btrfs_dir / "a").write_bytes(os.urandom(1 << 20))
    with (btrfs_dir / "a").open("rb") as source, (btrfs_dir / "b").open("w+b") as target:
        syscalls.clone_file(target.fileno(), source.fileno())
        assert next(syscalls.extents(target.fileno())).shared
        assert target.read() == source.read()


def test_mount_root_is_told_from_a_directory(btrfs_dir: Path) -> None:
    (btrfs_dir / "point").mkdir()
    assert not syscalls.is_mount_root(btrfs_dir / "point")
    syscalls.mount(btrfs_dir, btrfs_dir / "point", flags=syscalls.MS_BIND)
    try:
        assert syscalls.is_mount_root(btrfs_dir / "point")
    finally:
        syscalls.umount(btrfs_dir / "point")


# -- untouched copies --------------------------------------------------------------------------


def is_untouched(copy: Path, source: Path) -> bool:
    with btrfs_ioctl.opened(copy) as new, btrfs_ioctl.opened(source) as old:
        return btrfs_ioctl.is_untouched(new, old)


def test_copy_is_untouched_until_something_is_written_on_either_side(subvolume: Path) -> None:
    place = subvolume.parent
    btrfs_ioctl.sync(place)
    for written in (place / "copy", subvolume):
        btrfs_ioctl.snapshot(subvolume, place, "copy")
        assert is_untouched(place / "copy", subvolume)
        assert not is_untouched(subvolume, place / "copy")
        (written / "new").touch()
        btrfs_ioctl.sync(place)
        assert not is_untouched(place / "copy", subvolume)
        btrfs_ioctl.destroy(place, "copy")


def test_subvolume_that_is_no_copy_is_not_untouched(subvolume: Path) -> None:
    btrfs_ioctl.create_subvolume(subvolume.parent, "other")
    assert not is_untouched(subvolume.parent / "other", subvolume)
    assert not is_untouched(subvolume, subvolume)
