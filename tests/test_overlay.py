"""The overlay driver: its layout, its mounts, and the changes it finds."""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers import syscalls
from drivers.base import Creation, MountOptions
from drivers.changes import tree_changes
from drivers.copytree import remove_tree
from drivers.errors import (
    BadLayerID,
    BadOption,
    LayerExists,
    LayerMounted,
    LayerUnknown,
    NotSupported,
)
from drivers.overlay_links import restore_links
from drivers.overlay_mount import is_mounted
from tests.support.features import lacking
from tests.support.overlays import SHIFTED, archive, chain, mountinfo, opener
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from drivers.overlay import OverlayDriver

READ_ONLY = MountOptions(options=("ro",))


@pytest.fixture
def opened(require: Callable[[str], None]) -> Iterator[Callable[..., OverlayDriver]]:
    require("overlay")
    with opener() as open_driver:
        yield open_driver


@pytest.fixture
def driver(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> OverlayDriver:
    return opened(btrfs_dir)


# -- layout -------------------------------------------------------------------------------------


def test_layout_is_that_of_containers_storage(driver: OverlayDriver) -> None:
    chain(driver, "a", "b", "c")
    link = {name: (driver.home / name / "link").read_text() for name in "abc"}
    assert sorted(os.listdir(driver.home)) == [".has-mount-program", "a", "b", "c", "l"]
    assert sorted(os.listdir(driver.home / "a")) == ["diff", "empty", "link", "merged", "work"]
    assert sorted(os.listdir(driver.home / "c")) == ["diff", "link", "lower", "merged", "work"]
    assert (driver.home / "c" / "lower").read_text() == f"l/{link['b']}:l/{link['a']}"
    for name in "abc":
        assert len(link[name]) == 26
        assert os.readlink(driver.home / "l" / link[name]) == f"../{name}/diff"
    modes = {path: stat.S_IMODE((driver.home / path).lstat().st_mode) for path in MODES}
    assert modes == MODES
    assert (driver.home / ".has-mount-program").read_text() == "false"


MODES = {
    ".": 0o700,
    "l": 0o755,
    ".has-mount-program": 0o600,
    "a": 0o700,
    "a/diff": 0o555,
    "a/empty": 0o700,
    "a/link": 0o644,
    "a/merged": 0o700,
    "a/work": 0o700,
    "b/diff": 0o555,
    "b/lower": 0o644,
}


def test_child_root_takes_everything_of_the_parents(driver: OverlayDriver) -> None:
    driver.create("a")
    root = driver.home / "a" / "diff"
    root.chmod(0o1757)
    os.chown(root, 33, 34)
    os.setxattr(root, "user.kept", b"1")
    os.utime(root, ns=(5, 6))
    driver.create("b", "a")
    with driver.mounted("a", READ_ONLY) as one, driver.mounted("b", READ_ONLY) as two:
        assert snapshot_tree(one) == snapshot_tree(two)


def test_missing_links_are_made_again(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    for link in (driver.home / "l").iterdir():
        link.unlink()
    with driver.mounted("b"):
        pass
    assert len(os.listdir(driver.home / "l")) == 2
    assert restore_links(driver.home) == 0


def test_lower_file_naming_anything_but_links_is_refused(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    (driver.home / "b" / "lower").write_text("../../../etc")
    with pytest.raises(LayerUnknown, match="no link of a layer"):
        driver.get("b")


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "n\0", "x" * 256, "l", "fsd", "staging", ".hidden"])
def test_impossible_id_is_refused(driver: OverlayDriver, bad: str) -> None:
    for call in (driver.create, driver.remove, driver.get, driver.place):
        with pytest.raises(BadLayerID):
            call(bad)
    assert not driver.exists(bad)
    assert list(driver.layer_ids()) == []


def test_create_failures_leave_nothing(driver: OverlayDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.create("a")
    before = sorted(str(path) for path in driver.home.rglob("*"))
    with pytest.raises(LayerExists):
        driver.create("a")
    with pytest.raises(LayerUnknown):
        driver.create("b", "missing")
    with pytest.raises(NotSupported, match="project quotas"):
        driver.create("b", "a", Creation(storage_opts={"size": "1g"}))
    with pytest.raises(BadOption, match="colour"):
        driver.create("b", "a", Creation(storage_opts={"colour": "red"}))
    monkeypatch.setattr("drivers.syscalls.renameat2", _fails_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        driver.create("b", "a")
    assert sorted(str(path) for path in driver.home.rglob("*")) == before


def _fails_with(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_remove_takes_link_and_directory(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    driver.remove("b")
    assert [os.readlink(path) for path in (driver.home / "l").iterdir()] == ["../a/diff"]
    with pytest.raises(LayerUnknown):
        driver.remove("b")
    with driver.mounted("a"), pytest.raises(LayerMounted):
        driver.remove("a")
    driver.remove("a")
    assert sorted(os.listdir(driver.home)) == [".has-mount-program", "l"]


# -- mounts -------------------------------------------------------------------------------------


def test_mount_shows_all_layers_and_writes_to_the_top(driver: OverlayDriver) -> None:
    chain(driver, "a", "b", "c")
    for name in "abc":
        with driver.mounted(name) as tree:
            (tree / f"in-{name}").touch()
    with driver.mounted("c") as tree:
        assert sorted(os.listdir(tree)) == ["in-a", "in-b", "in-c"]
    assert os.listdir(driver.home / "c" / "diff") == ["in-c"]
    assert driver.read_write_disk_usage("c").inodes == 2


@pytest.mark.parametrize("depth", [128, 150])
def test_mount_of_deep_chain_works(driver: OverlayDriver, depth: int) -> None:
    """128 layers fit the page of mount(2); more need the new mount API."""
    names = [f"{number:064d}" for number in range(depth)]
    chain(driver, *names)
    (driver.home / names[0] / "diff" / "bottom").write_text("seen")
    with driver.mounted(names[-1]) as tree:
        assert (tree / "bottom").read_text() == "seen"
        (tree / "top").touch()
    assert os.listdir(driver.home / names[-1] / "diff") == ["top"]


def test_chain_deeper_than_the_kernel_mounts_is_refused(
    driver: OverlayDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivers.overlay.MAX_DEPTH", 3)
    chain(driver, "a", "b", "c")
    with pytest.raises(NotSupported, match="3 can be mounted"):
        driver.create("d", "c")


def test_mount_is_counted(driver: OverlayDriver) -> None:
    driver.create("a")
    first, second = driver.get("a"), driver.get("a")
    assert first == second
    driver.put("a")
    assert is_mounted(first)
    driver.put("a")
    assert not first.exists()
    driver.put("a")
    driver.put("never made")


def test_foreign_mount_survives_our_use_and_ends_by_a_lone_put(
    driver: OverlayDriver, opened: Callable[..., OverlayDriver]
) -> None:
    """Mounting and unmounting may be commands of their own, each with its own driver."""
    driver.create("a")
    other = opened(driver.home.parent)
    merged = other.get("a")
    with driver.mounted("a") as tree:
        assert tree == merged
    assert is_mounted(merged)
    driver.put("a")
    assert not merged.exists()


def test_mount_vanished_meanwhile_is_made_again(driver: OverlayDriver) -> None:
    driver.create("a")
    merged = driver.get("a")
    syscalls.umount(merged)
    with driver.mounted("a") as tree:
        (tree / "x").touch()
    assert (driver.home / "a" / "diff" / "x").exists()
    driver.put("a")
    assert not is_mounted(merged)


def test_busy_mount_is_detached(driver: OverlayDriver) -> None:
    driver.create("a")
    fd = os.open(driver.get("a"), os.O_RDONLY)
    try:
        driver.put("a")
        assert not is_mounted(driver.home / "a" / "merged")
    finally:
        os.close(fd)


def test_threads_share_mounts_and_stores(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    driver.apply_diff("a", archive("file"))

    def work(number: int) -> None:
        for turn in range(3):
            driver.create(f"{number}-{turn}", "b")
            with driver.mounted("b") as shared, driver.mounted(f"{number}-{turn}") as own:
                assert (shared / "file").read_text() == "file"
                (own / "file").unlink()
            changes = driver.changes(f"{number}-{turn}", "b")
            assert [change.kind.value for change in changes] == ["D"]
            driver.remove(f"{number}-{turn}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert sorted(driver.layer_ids()) == ["a", "b"]
    assert sorted(os.listdir(driver.home)) == [".has-mount-program", "a", "b", "l"]
    assert not [line for line in mountinfo() if str(driver.home / "") + "/" in line.split()[4]]


def test_mount_options_reach_the_mount(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> None:
    driver = opened(btrfs_dir, mountopt="nodev,metacopy=on")
    driver.create("a")
    with driver.mounted("a", MountOptions(options=("noexec", "volatile"))) as tree:
        [line] = [line for line in mountinfo() if line.split()[4] == str(tree)]
        assert {"nodev", "noexec"} <= set(line.split()[5].split(","))
        words = set(line.split()[-1].split(","))
        assert "metacopy=on" in words
        assert words & {"volatile", "fsync=volatile"}  # Linux 6.18 says the latter
    with driver.mounted("a"):
        pass
    with pytest.raises(OSError, match=r"Invalid argument|overlay") as caught:
        driver.get("a", MountOptions(options=("no_such_option",)))
    assert caught.value.errno == errno.EINVAL
    assert not is_mounted(driver.home / "a" / "merged")


def test_read_only_mount_refuses_writes(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    for name in "ab":
        with driver.mounted(name, READ_ONLY) as tree, pytest.raises(OSError, match="Read-only"):
            (tree / "x").touch()


def test_mappings_shift_layers_below_and_what_is_made_for_them_is_not(driver: OverlayDriver) -> None:
    if not driver.supports_shifting():
        lacking("no idmapped layers here")
    chain(driver, "a", "b")
    driver.apply_diff("a", archive(("f", {"uid": 33, "gid": 34})))
    driver.apply_diff("b", archive("g"))
    driver.create_read_write("c", "b", Creation(mappings=SHIFTED))
    with driver.mounted("c", MountOptions(mappings=SHIFTED)) as tree:
        assert _owner(tree) == (200000, 300000)
        assert _owner(tree / "f") == (200033, 300034)
        assert _owner(tree / "g") == (200000, 300000)
        os.chown(tree / "f", 200001, 300001)
        os.symlink("x", tree / "made")
        os.lchown(tree / "made", 200005, 300005)
    assert _owner(driver.home / "c" / "diff" / "f") == (200001, 300001)
    changes = driver.changes("c", "b", SHIFTED, None)
    assert [(change.kind.value, change.path) for change in changes] == [("C", b"/f"), ("A", b"/made")]
    with tarfile.open(fileobj=driver.diff("c", "b", SHIFTED, None), mode="r|") as tar:
        assert [(member.name, member.uid) for member in tar] == [("f", 1), ("made", 5)]
    assert not [line for line in mountinfo() if "/mapped" in line and str(driver.home) in line]


def _owner(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


def test_rotated_parts_lie_between_layer_and_parent(driver: OverlayDriver) -> None:
    """What containers/storage leaves when it rewrites owners: ``diff1`` below a fresh ``diff``."""
    chain(driver, "a", "b", "c")
    driver.apply_diff("b", archive("old", "both"))
    (driver.home / "b" / "diff").rename(driver.home / "b" / "diff1")
    (driver.home / "b" / "diff").mkdir()
    (driver.home / "b" / "diff" / "both").write_text("new")
    for name in "bc":
        with driver.mounted(name) as tree:
            assert (tree / "both").read_text() == "new"
            assert (tree / "old").read_text() == "old"
    assert [change.path for change in driver.changes("b", "a")] == [b"/both", b"/old"]
    driver.apply_diff("b", archive(".wh.old"))
    with driver.mounted("c") as tree:
        assert sorted(os.listdir(tree)) == ["both"]


# -- changes ------------------------------------------------------------------------------------


def populate(tree: Path) -> None:
    for name in ("kept", "moved", "replaced", "emptied", "filled"):
        for number in range(4):
            (tree / name / f"sub{number}").mkdir(parents=True)
            (tree / name / f"sub{number}" / "file").write_text(name)
            (tree / name / f"file{number}").write_text(name * number)
    os.symlink("kept", tree / "link")
    os.mkfifo(tree / "fifo")


EDITS: tuple[Callable[[Path], object], ...] = (
    lambda tree: (tree / "kept" / "new").write_text("1"),
    lambda tree: (tree / "kept" / "file1").write_text("other"),
    lambda tree: (tree / "kept" / "file2").unlink(),
    lambda tree: (tree / "kept" / "sub1" / "file").chmod(0o600),
    lambda tree: os.utime(tree / "kept" / "file3"),
    lambda tree: os.setxattr(tree / "kept" / "sub2" / "file", "user.a", b"b"),
    lambda tree: os.setxattr(tree / "kept" / "sub3", "trusted.a", b"b"),
    lambda tree: remove_tree(tree / "replaced"),
    lambda tree: (remove_tree(tree / "emptied" / "sub1"), (tree / "emptied" / "sub1").mkdir()),
    lambda tree: (remove_tree(tree / "filled" / "sub1"), (tree / "filled" / "sub1").write_text("file")),
    lambda tree: (
        (tree / "filled" / "file1").unlink(),
        (tree / "filled" / "file1" / "x").mkdir(parents=True),
    ),
    lambda tree: (remove_tree(tree / "filled" / "sub2"), os.mknod(tree / "filled" / "sub2", stat.S_IFSOCK)),
    lambda tree: ((tree / "link").unlink(), os.symlink("moved", tree / "link")),
    lambda tree: os.link(tree / "kept" / "file0", tree / "hard"),
    lambda tree: (tree / "moved" / "file1").rename(tree / "kept" / "moved1"),
    lambda tree: (tree / "moved" / "sub0").rename(tree / "moved" / "elsewhere"),
    lambda tree: (tree / "moved" / "sub1").rename(tree / "top"),
    lambda tree: os.chown(tree / "fifo", 3, 4),
    lambda tree: open(tree / "kept" / "sub0" / "file", "r+").close(),
    lambda tree: (tree / "kept").chmod(0o711),
)


@pytest.mark.parametrize("mountopt", ["", "redirect_dir=on,metacopy=on", "redirect_dir=on", "metacopy=on"])
@pytest.mark.parametrize("seed", range(6))
def test_changes_from_the_upper_directory_equal_the_walk_of_both_trees(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver], mountopt: str, seed: int
) -> None:
    driver = opened(btrfs_dir, mountopt=mountopt)
    chain(driver, "a", "b", "c")
    with driver.mounted("b") as tree:
        populate(tree)
    chosen = random.Random(seed).sample(EDITS, 12)
    with driver.mounted("c") as tree:
        for edit in chosen:
            try:
                edit(tree)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.ENOENT):
                    raise
    with driver.mounted("c", READ_ONLY) as new, driver.mounted("b", READ_ONLY) as old:
        expected = tree_changes(new, old)
        assert [(c.path, c.kind) for c in driver.changes("c", "b")] == [(c.path, c.kind) for c in expected]
    assert expected


def test_changes_do_not_look_at_what_is_below(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    with driver.mounted("a") as tree:
        populate(tree)
    with driver.mounted("b") as tree:
        (tree / "kept" / "file1").write_text("changed")
    opened: list[str] = []
    audit = lambda event, arguments: opened.append(str(arguments[0])) if event == "os.listdir" else None  # noqa: E731
    sys.addaudithook(lambda event, arguments: audit(event, arguments) if _listening else None)
    _listening.append(True)
    try:
        assert len(driver.changes("b", "a")) == 2
    finally:
        _listening.clear()
    listed = [text for text in opened if text.isdigit()]
    assert len(listed) == 2


_listening: list[bool] = []


def test_changes_against_another_ancestor_walk_the_trees(driver: OverlayDriver) -> None:
    chain(driver, "a", "b", "c")
    driver.apply_diff("b", archive("in-b"))
    driver.apply_diff("c", archive("in-c"))
    assert [change.path for change in driver.changes("c", "a")] == [b"/in-b", b"/in-c"]
    assert [change.path for change in driver.changes("c", None)] == [b"/in-b", b"/in-c"]


def test_diff_stream_holds_a_mount_of_its_own(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    driver.apply_diff("b", archive("f"))
    stream = driver.diff("b", "a")
    with driver.mounted("b") as tree:
        (tree / "writable").touch()
    stream.close()
    assert not [line for line in mountinfo() if "/fsd/" in line.split()[4] and str(driver.home) in line]
    assert not (driver.home / "fsd").exists()
