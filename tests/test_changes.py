"""The rules of changes case by case, and the btrfs driver's ways around its special cases."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from drivers import btrfs_changes, btrfs_ioctl, syscalls
from drivers.base import Change, ChangeKind
from drivers.btrfs import BtrfsDriver
from drivers.btrfs_send import MalformedStream
from drivers.changes import Cursor, Rules, changes_size, located, same_time, tree_changes
from drivers.idmap import IDMap, IDMappings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECOND = 10**9
A, C, D = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED


@pytest.fixture
def driver(btrfs_dir: Path) -> Iterator[BtrfsDriver]:
    made = BtrfsDriver(btrfs_dir / "btrfs")
    try:
        yield made
    finally:
        made.cleanup()


@pytest.fixture
def layer(driver: BtrfsDriver) -> Callable[..., Path]:
    def create(layer_id: str, parent: str | None = None) -> Path:
        driver.create(layer_id, parent)
        return driver.present(layer_id)

    return create


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal trees: ``new`` and ``old``."""
    old = tmp_path / "old"
    (old / "d/e").mkdir(parents=True)
    (old / "d/e/f").write_text("content")
    (old / "g").write_text("g")
    new = tmp_path / "new"
    shutil.copytree(old, new, symlinks=True, copy_function=shutil.copy2)
    return new, old


def listed(found: list[Change]) -> dict[str, ChangeKind]:
    assert found == sorted(found)
    return {os.fsdecode(change.path): change.kind for change in found}


def every_way(driver: BtrfsDriver, new: str, old: str) -> dict[str, ChangeKind]:
    """What all ways agree on."""
    walked = tree_changes(driver.present(new), driver.present(old))
    with ExitStack() as copies:
        pair = driver.pair(copies, new, old)
        assert pair is not None
        assert pair.by_send() == walked
        assert pair.by_generation() == walked
    assert driver.changes(new, old) == walked
    return listed(walked)


# -- the rules ---------------------------------------------------------------------------------------


def test_changes_of_equal_trees_is_empty(trees: tuple[Path, Path]) -> None:
    assert tree_changes(*trees) == []


def test_changes_without_old_lists_everything_but_the_root(trees: tuple[Path, Path]) -> None:
    assert listed(tree_changes(trees[0], None)) == {"/d": A, "/d/e": A, "/d/e/f": A, "/g": A}


def test_changes_takes_descriptors_and_leaves_them_open(trees: tuple[Path, Path]) -> None:
    (trees[0] / "g").unlink()
    fds = [os.open(tree, os.O_RDONLY) for tree in trees]
    try:
        assert listed(tree_changes(*fds)) == {"/g": D}
        assert [stat.S_ISDIR(os.fstat(fd).st_mode) for fd in fds] == [True, True]
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (5 * SECOND, 5 * SECOND + 7, True),
        (5 * SECOND + 7, 5 * SECOND, True),
        (5 * SECOND + 6, 5 * SECOND + 7, False),
        (5 * SECOND, 6 * SECOND, False),
        (5 * SECOND + 999_999_999, 6 * SECOND, False),
        (-5 * SECOND, -5 * SECOND + 3, True),
        (-5 * SECOND, -5 * SECOND - 3, False),
    ],
)
def test_times_are_equal_as_far_as_both_are_exact(a: int, b: int, same: bool) -> None:
    assert same_time(a, b) is same


def test_directory_of_a_change_is_modified_and_the_root_is_not(trees: tuple[Path, Path]) -> None:
    (trees[0] / "d/e/f").write_text("other")
    assert listed(tree_changes(*trees)) == {"/d": C, "/d/e": C, "/d/e/f": C}


def test_directory_time_counts_by_the_later_rules_only(trees: tuple[Path, Path]) -> None:
    os.utime(trees[0] / "d/e", ns=(7, 7))
    assert tree_changes(*trees) == []
    assert listed(tree_changes(*trees, rules=Rules(directory_times=True))) == {"/d": C, "/d/e": C}


def test_symlink_target_counts_by_the_later_rules_only(trees: tuple[Path, Path]) -> None:
    for tree, target in zip(trees, ("aa", "bb"), strict=True):
        os.symlink(target, tree / "l")
        os.utime(tree / "l", ns=(7, 7), follow_symlinks=False)
    assert tree_changes(*trees) == []
    assert listed(tree_changes(*trees, rules=Rules(symlink_targets=True))) == {"/l": C}


@pytest.mark.parametrize("kind", [stat.S_IFBLK, stat.S_IFSOCK])
def test_directory_replaced_by_a_directory_like_node_lists_its_entries(
    trees: tuple[Path, Path], kind: int
) -> None:
    shutil.rmtree(trees[0] / "d")
    os.mknod(trees[0] / "d", kind | 0o600)
    assert listed(tree_changes(*trees)) == {"/d": C, "/d/e": D}


def test_directory_replaced_by_a_file_is_one_change(trees: tuple[Path, Path]) -> None:
    shutil.rmtree(trees[0] / "d")
    (trees[0] / "d").write_text("")
    assert listed(tree_changes(*trees)) == {"/d": C}
    assert listed(tree_changes(trees[1], trees[0])) == {"/d": C, "/d/e": A, "/d/e/f": A}


def test_owners_are_compared_as_container_ids(trees: tuple[Path, Path]) -> None:
    new = IDMappings(uids=(IDMap(0, 1000, 10),), gids=(IDMap(0, 1000, 10),))
    for path in ("d", "d/e", "d/e/f", "g"):
        os.chown(trees[0] / path, 1000, 1000)
    assert tree_changes(*trees, new) == []
    assert set(listed(tree_changes(*trees))) == {"/d", "/d/e", "/d/e/f", "/g"}
    os.chown(trees[0] / "g", 0, 0)  # not mapped: both sides are compared as host IDs
    assert tree_changes(*trees, new) == []
    assert tree_changes(*trees, new, new) == []  # an old owner without a mapping stays what it is
    os.chown(trees[1] / "g", 1005, 1005)
    os.chown(trees[0] / "g", 1005, 1005)
    assert listed(tree_changes(*trees, new)) == {"/g": C}
    assert tree_changes(*trees, new, new) == []


def test_paths_are_sorted_bytewise_and_may_be_any_bytes(trees: tuple[Path, Path]) -> None:
    names = [b"x", b"x.y", b"x/y", b"\xff\n", b"a" * 255]
    for name in names:
        path = os.fsencode(trees[0]) + b"/" + name
        if name == b"x":
            os.mkdir(path)
        else:
            open(path, "wb").close()
    assert [change.path for change in tree_changes(*trees)] == sorted(b"/" + name for name in names)


def test_tree_deeper_than_a_path_may_be_long_needs_no_descriptors(tmp_path: Path) -> None:
    root = tmp_path / "deep"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    name, depth = "n" * 200, 60
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    found = tree_changes(root, None)
    assert len(found) == depth + 1
    assert len(os.listdir("/proc/self/fd")) == before
    fd = os.open(root, os.O_RDONLY)
    with located(fd, found[-1].path) as entry:
        assert entry is not None
        assert stat.S_ISREG(entry.stat.st_mode)
    os.close(fd)
    subprocess.run(["rm", "-rf", root], check=True)


def test_wide_stack_of_directories_is_deeper_than_the_interpreter_allows(tmp_path: Path) -> None:
    depth = min(sys.getrecursionlimit() + 200, 1900)
    (tmp_path / "/".join("d" * (depth // 2))).mkdir(parents=True)
    assert len(tree_changes(tmp_path, None)) == depth // 2
    shutil.rmtree(tmp_path / "d")


def test_symlink_on_the_way_is_not_followed(trees: tuple[Path, Path]) -> None:
    os.symlink("d", trees[0] / "l")
    fd = os.open(trees[0], os.O_RDONLY)
    try:
        for path in (b"/l/e", b"/../old", b"/g/x", b"/none"):
            with located(fd, path) as entry:
                assert entry is None
        with located(fd, b"/l") as entry:
            assert entry is not None
            assert entry.target() == b"d"
    finally:
        os.close(fd)


def test_directory_moved_during_the_walk_is_an_error(trees: tuple[Path, Path]) -> None:
    fd = os.open(trees[0], os.O_RDONLY)
    cursor = Cursor(fd)
    cursor.down(b"d")
    cursor.down(b"e")
    os.rename(trees[0] / "d/e", trees[0] / "e")
    with pytest.raises(OSError, match="moved") as caught:
        cursor.up()
    assert caught.value.errno == errno.ESTALE
    cursor.close()
    os.close(fd)


def test_size_counts_hard_links_once_and_directories_never(trees: tuple[Path, Path]) -> None:
    (trees[0] / "big").write_bytes(bytes(1000))
    os.link(trees[0] / "big", trees[0] / "again")
    os.symlink("12345", trees[0] / "l")
    (trees[0] / "dir").mkdir()
    found = tree_changes(*trees)
    assert changes_size(trees[0], found) == 1005
    (trees[0] / "l").unlink()  # gone meanwhile
    assert changes_size(trees[0], found) == 1000


# -- btrfs -------------------------------------------------------------------------------------------


def test_changes_of_an_untouched_layer_is_empty(driver: BtrfsDriver, layer: Callable[..., Path]) -> None:
    (layer("p") / "f").write_text("x")
    layer("c", "p")
    assert every_way(driver, "c", "p") == {}
    assert driver.changes("c", "c") == []


def test_hard_link_changed_under_one_name_is_listed_under_all(
    driver: BtrfsDriver, layer: Callable[..., Path]
) -> None:
    parent = layer("p")
    (parent / "d").mkdir()
    (parent / "f").write_text("x")
    for i in range(400):  # enough names to overflow into extended references
        os.link(parent / "f", parent / f"d/{i:0100}")
    os.chmod(layer("c", "p") / "f", 0o600)
    assert len(every_way(driver, "c", "p")) == 402


def test_hard_link_changed_in_a_moved_directory_is_listed_where_it_stayed(
    driver: BtrfsDriver, layer: Callable[..., Path]
) -> None:
    parent = layer("p")
    (parent / "d").mkdir()
    (parent / "d/f").write_text("x")
    os.link(parent / "d/f", parent / "g")
    child = layer("c", "p")
    (child / "d/f").write_text("changed")
    os.rename(child / "d", child / "e")
    assert every_way(driver, "c", "p") == {"/d": D, "/e": A, "/e/f": A, "/g": C}


def test_exchanged_directories_are_compared_with_what_was_there(
    driver: BtrfsDriver, layer: Callable[..., Path]
) -> None:
    """Nothing in them was touched, and everything is at another path."""
    parent = layer("p")
    for name in "ab":
        (parent / name).mkdir()
        (parent / name / f"in-{name}").write_text("x")
    child = layer("c", "p")
    syscalls.renameat2(child / "a", child / "b", syscalls.RENAME_EXCHANGE)
    assert every_way(driver, "c", "p") == {
        "/a": C,
        "/a/in-a": D,
        "/a/in-b": A,
        "/b": C,
        "/b/in-a": A,
        "/b/in-b": D,
    }


def test_directory_removed_and_made_again_is_compared_with_the_old_one(
    driver: BtrfsDriver, layer: Callable[..., Path]
) -> None:
    parent = layer("p")
    (parent / "last").mkdir()
    (parent / "last/f").write_text("x")
    child = layer("c", "p")
    shutil.rmtree(child / "last")
    (child / "last").mkdir()
    (child / "last/g").write_text("x")
    assert every_way(driver, "c", "p") == {"/last": C, "/last/f": D, "/last/g": A}


def test_file_touched_but_equal_is_not_listed(driver: BtrfsDriver, layer: Callable[..., Path]) -> None:
    parent = layer("p")
    (parent / "f").write_text("old")
    child = layer("c", "p")
    status = os.stat(child / "f")
    (child / "f").write_text("new")
    os.utime(child / "f", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert every_way(driver, "c", "p") == {}


def test_placeholder_of_a_nested_subvolume_that_goes_is_listed(
    driver: BtrfsDriver, layer: Callable[..., Path]
) -> None:
    """Send says nothing about it; the directory's size gives it away."""
    parent = layer("p")
    (parent / "d").mkdir()
    btrfs_ioctl.create_subvolume(parent / "d", "nested")
    middle = layer("m", "p")
    assert (middle / "d/nested").is_dir()
    (layer("c", "m") / "d/nested").rmdir()
    assert every_way(driver, "c", "m") == {"/d": C, "/d/nested": D}


def test_nested_subvolumes_are_compared_in_place(driver: BtrfsDriver, layer: Callable[..., Path]) -> None:
    parent = layer("p")
    btrfs_ioctl.create_subvolume(parent, "both")
    (parent / "both/f").write_text("x")
    child = layer("c", "p")
    (child / "both").rmdir()
    (child / "dir").mkdir()
    btrfs_ioctl.create_subvolume(child, "both")
    btrfs_ioctl.create_subvolume(child / "dir", "inner")
    (child / "dir/inner/g").write_text("y")
    assert every_way(driver, "c", "p") == {
        "/both": C,
        "/both/f": D,
        "/dir": A,
        "/dir/inner": A,
        "/dir/inner/g": A,
    }


def test_comparison_tells_which_content_it_compared(driver: BtrfsDriver, layer: Callable[..., Path]) -> None:
    parent, child = layer("p"), layer("c", "p")
    (child / "f").write_text("not on the disk yet")
    with driver.compared(child, parent) as found:
        (child / "g").write_text("later")
    later = tuple(driver.snapshots().generation(layer_id) for layer_id in ("c", "p"))
    assert found.generations is not None
    assert found.generations[0] < later[0]
    assert found.generations[1] == later[1]
    with driver.compared(child, parent) as found:
        pass
    assert found.generations == later
    btrfs_ioctl.create_subvolume(child, "nested")
    with driver.compared(child, parent) as found:
        assert found.generations is None


def test_siblings_that_reuse_inode_numbers_are_told_apart(
    driver: BtrfsDriver, layer: Callable[..., Path]
) -> None:
    """Directories with one number, made in one transaction on both sides, are two objects."""
    layer("p")
    one, two = layer("a", "p"), layer("b", "p")
    for place, name in ((one, "x"), (two, "y")):
        (place / "d").mkdir()
        (place / "d" / name).write_text("")
    assert os.stat(one / "d").st_ino == os.stat(two / "d").st_ino
    assert every_way(driver, "a", "b") == {"/d": C, "/d/x": A, "/d/y": D}


def test_changes_across_generations_of_layers(driver: BtrfsDriver, layer: Callable[..., Path]) -> None:
    (layer("p") / "f").write_text("1")
    (layer("m", "p") / "g").write_text("2")
    (layer("c", "m") / "h").write_text("3")
    assert every_way(driver, "c", "p") == {"/g": A, "/h": A}
    assert every_way(driver, "p", "c") == {"/g": D, "/h": D}


def test_changes_of_unrelated_layers_is_the_walk(driver: BtrfsDriver, layer: Callable[..., Path]) -> None:
    (layer("a") / "f").write_text("1")
    (layer("b") / "g").write_text("2")
    with ExitStack() as copies:
        assert driver.pair(copies, "a", "b") is None
    assert listed(driver.changes("a", "b")) == {"/f": A, "/g": D}
    assert driver.diff_size("a", "b") == 1


def test_changes_after_a_rollback_are_still_found_by_send(
    driver: BtrfsDriver, layer: Callable[..., Path]
) -> None:
    """The layer's new subvolume descends from one that is gone; its origin was written down."""
    (layer("p") / "f").write_text("x")
    (layer("c", "p") / "g").write_text("y")
    driver.snapshots().take("c", "c/one")
    (driver.present("c") / "h").write_text("z")
    driver.snapshots().restore("c/one", "c")
    assert every_way(driver, "c", "p") == {"/g": A}


def test_copies_are_gone_after_changes_diff_and_failure(
    driver: BtrfsDriver, layer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (layer("p") / "f").write_text("x")
    (layer("c", "p") / "g").write_text("y")
    driver.changes("c", "p")
    stream = driver.diff("c", "p")
    places = driver.scratch, driver.older
    assert [len(list(place.iterdir())) for place in places] == [1, 1]
    assert b"g" in stream.read()
    stream.close()
    assert not any(list(place.iterdir()) for place in places)
    monkeypatch.setattr(btrfs_changes.Pair, "changes", lambda self: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        driver.changes("c", "p")
    assert not any(list(place.iterdir()) for place in places)


@pytest.mark.parametrize("broken", [OSError(errno.EAGAIN, "balance"), MalformedStream("damaged")])
def test_changes_falls_back_from_send_to_generations_to_the_walk(
    driver: BtrfsDriver, layer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    (layer("p") / "f").write_text("x")
    (layer("c", "p") / "g").write_text("y")
    asked = []

    def refuse(name: str) -> Callable[..., None]:
        def refused(*_: object, **__: object) -> None:
            asked.append(name)
            raise broken

        return refused

    monkeypatch.setattr(btrfs_changes, "sent_commands", refuse("send"))
    assert listed(driver.changes("c", "p")) == {"/g": A}
    monkeypatch.setattr(btrfs_changes.pruned, "young_paths", refuse("generation"))
    assert listed(driver.changes("c", "p")) == {"/g": A}
    assert asked == ["send", "send", "generation"]
    monkeypatch.setattr(btrfs_changes.btrfs_ioctl, "snapshot", refuse("snapshot"))
    if isinstance(broken, OSError):
        assert listed(driver.changes("c", "p")) == {"/g": A}


def test_changes_unprivileged_is_the_walk(driver: BtrfsDriver, layer: Callable[..., Path]) -> None:
    """A process without CAP_SYS_ADMIN gets neither send nor tree search, and the same answer."""
    (layer("p") / "f").write_text("x")
    (layer("c", "p") / "g").write_text("y")
    code = (
        "import sys; from pathlib import Path; from drivers.btrfs import BtrfsDriver\n"
        "print([c.path for c in BtrfsDriver(Path(sys.argv[1])).changes('c', 'p')])"
    )
    argv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", code]
    done = subprocess.run([*argv, driver.home], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[b'/g']"


def test_changes_while_the_layer_is_written_are_one_point_in_time(
    driver: BtrfsDriver, layer: Callable[..., Path]
) -> None:
    """A writer renames one file to and fro: exactly one name is there at any moment."""
    layer("p")
    child = layer("c", "p")
    (child / "a").write_text("")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            os.rename(child / "a", child / "b")
            os.rename(child / "b", child / "a")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [tuple(listed(driver.changes("c", "p"))) for _ in range(20)]
    finally:
        stop.set()
        writer.join()
    assert set(seen) <= {("/a",), ("/b",)}
