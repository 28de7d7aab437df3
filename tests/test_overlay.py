"""The overlay driver: its layout, mounts, archives, changes and options, on real filesystems."""

from __future__ import annotations

import errno
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
from contextlib import ExitStack
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
    PrerequisitesMissing,
)
from drivers.idmap import IDMap, IDMappings
from drivers.overlay import OverlayDriver
from drivers.overlay_links import LayerPlace, restore_links
from drivers.overlay_mount import is_mounted
from drivers.vfs import VfsDriver
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

READ_ONLY = MountOptions(options=("ro",))
SHIFTED = IDMappings((IDMap(0, 200000, 65536),), (IDMap(0, 300000, 65536),))
MTIME = 1_700_000_000
Opener = "Callable[..., OverlayDriver]"


@pytest.fixture
def opened(require: Callable[[str], None]) -> Iterator[Callable[..., OverlayDriver]]:
    """Opens drivers whose mounts are undone at the end."""
    require("overlay")
    with ExitStack() as stack:

        def opener(graphroot: Path, **options: str) -> OverlayDriver:
            driver = OverlayDriver(graphroot / "overlay", options)
            stack.callback(_shut, driver)
            return driver

        yield opener


def _shut(driver: OverlayDriver) -> None:
    for name in driver.layer_ids():
        while is_mounted(driver.home / name / "merged"):
            syscalls.umount(driver.home / name / "merged", syscalls.MNT_DETACH)
    driver.cleanup()


@pytest.fixture
def driver(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> OverlayDriver:
    return opened(btrfs_dir)


def chain(driver: OverlayDriver, *names: str) -> None:
    """Layers one over another, the first a base."""
    for parent, name in zip((None, *names), names, strict=False):
        driver.create(name, parent)


def archive(*entries: tuple[str, Mapping[str, object]] | str) -> io.BytesIO:
    """A layer tar; a bare name is a directory if it ends in ``/``, else a small file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            name, fields = (entry, {}) if isinstance(entry, str) else entry
            _add(tar, name, dict(fields))
    out.seek(0)
    return out


def _add(tar: tarfile.TarFile, name: str, fields: dict[str, object]) -> None:
    member = tarfile.TarInfo(name.rstrip("/"))
    content = fields.pop("content", name.encode())
    assert isinstance(content, bytes)
    member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    member.mode, member.mtime = 0o755 if name.endswith("/") else 0o644, MTIME
    xattrs = fields.pop("xattrs", {})
    assert isinstance(xattrs, dict)
    member.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
    for field, value in fields.items():
        setattr(member, field, value)
    member.size = len(content) if member.isreg() else 0
    tar.addfile(member, io.BytesIO(content))


# -- layout ------------------------------------------------------------------------------------


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


# -- mounts ------------------------------------------------------------------------------------


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


def test_mount_options_reach_the_mount(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> None:
    driver = opened(btrfs_dir, mountopt="nodev,metacopy=on")
    driver.create("a")
    with driver.mounted("a", MountOptions(options=("noexec", "volatile"))) as tree:
        [line] = [line for line in _mountinfo() if line.split()[4] == str(tree)]
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


def _mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def test_read_only_mount_refuses_writes(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    for name in "ab":
        with driver.mounted(name, READ_ONLY) as tree, pytest.raises(OSError, match="Read-only"):
            (tree / "x").touch()


def test_mappings_shift_layers_below_and_what_is_made_for_them_is_not(driver: OverlayDriver) -> None:
    if not driver.supports_shifting():
        pytest.skip("no idmapped layers here")
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
    assert not [line for line in _mountinfo() if "/mapped" in line and str(driver.home) in line]


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


# -- changes -----------------------------------------------------------------------------------


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
    assert not [line for line in _mountinfo() if "/fsd/" in line.split()[4] and str(driver.home) in line]
    assert not (driver.home / "fsd").exists()


# -- archives ----------------------------------------------------------------------------------

LOWER = (
    "dir/",
    "dir/one",
    "dir/two",
    "dir/sub/",
    "dir/sub/deep",
    ("attributes/", {"mode": 0o2710, "uid": 5, "gid": 6, "xattrs": {"user.below": "kept"}}),
    "attributes/file",
    "real/",
    "real/file",
    ("link", {"type": tarfile.SYMTYPE, "linkname": "real", "content": b""}),
    ("absolute", {"type": tarfile.SYMTYPE, "linkname": "/real", "content": b""}),
    "plain",
)
UPPERS: dict[str, tuple[tuple[str, Mapping[str, object]] | str, ...]] = {
    "whiteout": ("dir/.wh.one",),
    "whiteout of a directory": (".wh.dir",),
    "whiteout of nothing": ("dir/.wh.none", ".wh.gone"),
    "opaque": ("dir/", "dir/.wh..wh..opq"),
    "opaque after content": ("dir/", "dir/new", "dir/.wh..wh..opq"),
    "opaque before content": ("dir/.wh..wh..opq", "dir/one"),
    "opaque below": ("dir/sub/.wh..wh..opq", "dir/sub/new"),
    "whiteout in an opaque directory": ("dir/.wh..wh..opq", "dir/.wh.one", "dir/sub/.wh.deep"),
    "directory replaced by a file": (".wh.dir", "dir"),
    "directory removed and made again": (".wh.dir", "dir/", "dir/fresh"),
    "made again by an implied parent": (".wh.dir", "dir/fresh"),
    "made again below": ("dir/.wh.sub", "dir/sub/x"),
    "file replaced by a directory": ("plain/", "plain/inside"),
    "file removed, then a directory": (".wh.plain", "plain/", "plain/inside"),
    "directory merged": (("attributes/", {"mode": 0o700}), "attributes/new"),
    "implied parent keeps its attributes": ("attributes/new",),
    "whiteout below an implied parent": ("attributes/.wh.file",),
    "parent is a link below": ("link/new",),
    "parent is an absolute link below": ("absolute/new",),
    "link replaced by a directory": ("link/", "link/new"),
    "whiteout through a link": ("link/.wh.file",),
    "hard link to a file below": (("hard", {"type": tarfile.LNKTYPE, "linkname": "dir/one"}),),
    "hard link through a link": (("hard", {"type": tarfile.LNKTYPE, "linkname": "link/file"}),),
    "file then whiteout": ("dir/one", "dir/.wh.one"),
    "directory then whiteout": ("dir/", "dir/new", ".wh.dir"),
    "file over whiteout": ("dir/.wh.one", "dir/one"),
    "root attributes": (("./", {"mode": 0o711, "uid": 3}), "top"),
    "missing parents": ("very/deep/new",),
}


@pytest.mark.parametrize("case", UPPERS)
@pytest.mark.parametrize("split", [False, True], ids=["one archive", "one archive for each entry"])
def test_archive_unpacks_as_into_a_plain_tree(driver: OverlayDriver, case: str, split: bool) -> None:
    """The oracle is the vfs driver, which has every file in one tree."""
    plain = VfsDriver(driver.home.parent / "vfs")
    archives = [(entry,) for entry in UPPERS[case]] if split else [UPPERS[case]]
    for target in (driver, plain):
        target.create("a")
        target.apply_diff("a", archive(*LOWER))
        target.create("b", "a")
        for entries in archives:
            target.apply_diff("b", archive(*entries))
    with driver.mounted("b", READ_ONLY) as ours, driver.mounted("a", READ_ONLY) as below:
        assert _shown(ours) == _shown(plain.get("b"))
        assert _shown(below) == _shown(plain.get("a"))
    ours_changes = [(c.path, c.kind) for c in driver.changes("b", "a")]
    assert ours_changes == [(c.path, c.kind) for c in plain.changes("b", "a")]


def _shown(tree: Path) -> dict[str, object]:
    """The tree but for times of directories, which change with their content, and numbers of links."""
    found: dict[str, object] = {}
    for path, entry in snapshot_tree(tree).items():
        time = 0 if entry.kind == "directory" else entry.mtime_ns
        found[path] = (entry.kind, entry.mode, entry.uid, entry.gid, entry.content, entry.xattrs, time)
    return found


def test_archive_into_mounted_layer_goes_through_the_mount(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    driver.apply_diff("a", archive("gone", "kept"))
    with driver.mounted("b") as tree:
        driver.apply_diff("b", archive(".wh.gone", "new"))
        assert sorted(os.listdir(tree)) == ["kept", "new"]


def test_archive_cannot_set_marks_of_overlayfs(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    driver.apply_diff("a", archive("dir/", "dir/secret"))
    marks = {"trusted.overlay.opaque": "y", "trusted.overlay.redirect": "/etc", "user.mine": "1"}
    driver.apply_diff("b", archive(("dir/", {"xattrs": marks})))
    assert os.listxattr(driver.home / "b" / "diff" / "dir") == ["user.mine"]
    with driver.mounted("b") as tree:
        assert os.listdir(tree / "dir") == ["secret"]


def test_whiteouts_have_the_kernels_form(driver: OverlayDriver) -> None:
    chain(driver, "a", "b")
    driver.apply_diff("a", archive("file", "dir/", "dir/x"))
    driver.apply_diff("b", archive(".wh.file", "dir/.wh..wh..opq"))
    status = (driver.home / "b" / "diff" / "file").lstat()
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == 0
    assert os.getxattr(driver.home / "b" / "diff" / "dir", "trusted.overlay.opaque") == b"y"


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"colour": "red"}, BadOption, r"overlay\.colour"),
        ({"size": "10g"}, NotSupported, r"overlay\.size=10g"),
        ({"inodes": "1000"}, NotSupported, r"overlay\.inodes"),
        ({"size": "many"}, BadOption, "not a size"),
        ({"mount_program": "/no/such"}, BadOption, "mount_program"),
        ({"force_mask": "shared"}, BadOption, "mount_program only"),
        ({"force_mask": "rwx", "mount_program": "/bin/true"}, BadOption, "octal"),
        ({"skip_mount_home": "maybe"}, BadOption, "neither true nor false"),
        ({"additionallayerstore": "relative"}, BadOption, "absolute"),
        ({"additionallayerstore": "/x:y"}, BadOption, "PATH:ref"),
    ],
)
def test_bad_options_are_named(
    btrfs_dir: Path, options: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        OverlayDriver(btrfs_dir / "overlay", options)
    assert not (btrfs_dir / "overlay").exists()


def test_home_is_a_private_mount_until_cleanup(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> None:
    driver = opened(btrfs_dir)
    [line] = [line for line in _mountinfo() if line.split()[4] == str(driver.home)]
    assert "shared:" not in line
    driver.create("a")
    driver.get("a")
    driver.cleanup()
    assert is_mounted(driver.home)
    driver.put("a")
    driver.cleanup()
    assert not is_mounted(driver.home)
    assert not is_mounted(opened(btrfs_dir, skip_mount_home="true").home)


def test_overlay_over_overlay_lacks_its_prerequisites(
    driver: OverlayDriver, opened: Callable[..., OverlayDriver]
) -> None:
    driver.create("a")
    with driver.mounted("a") as tree, pytest.raises(PrerequisitesMissing, match="overlayfs"):
        OverlayDriver(tree / "overlay")


def test_probes_are_remembered_under_the_runroot(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver]
) -> None:
    driver = opened(btrfs_dir, runroot=str(btrfs_dir / "run"))
    flags = btrfs_dir / "run" / "overlay"
    assert {name.rpartition("-")[0] for name in os.listdir(flags)} == {
        "overlay",
        "metacopy()",
        "native-diff()",
        "idmapped-lower-dir",
    }
    assert (flags / "overlay-true").stat().st_size == 0
    (flags / "native-diff()-true").rename(flags / "native-diff()-false")
    assert ("Native Overlay Diff", "false") in opened(btrfs_dir, runroot=str(btrfs_dir / "run")).status()
    assert ("Native Overlay Diff", "true") in driver.status()


def test_metacopy_and_redirects_are_noticed(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> None:
    status = dict(opened(btrfs_dir, mountopt="metacopy=on,redirect_dir=on").status())
    assert status["Using metacopy"] == "true"
    assert status["Native Overlay Diff"] == "false"
    assert status["Backing Filesystem"] == "btrfs"


def test_mount_program_mounts(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver], require: Callable[[str], None]
) -> None:
    require("fuse")
    program = Path("/usr/bin/fuse-overlayfs")
    if not program.exists():
        pytest.skip("no fuse-overlayfs")
    driver = opened(btrfs_dir, mount_program=str(program))
    assert (driver.home / ".has-mount-program").read_text() == "true"
    chain(driver, "a", "b")
    driver.apply_diff("a", archive("gone", "kept"))
    driver.apply_diff("b", archive(".wh.gone", "new"))
    with driver.mounted("b") as tree:
        assert sorted(os.listdir(tree)) == ["kept", "new"]
        (tree / "kept").unlink()
        [line] = [line for line in _mountinfo() if line.split()[4] == str(tree)]
        assert "fuse.fuse-overlayfs" in line
    assert [(c.path, c.kind.value) for c in driver.changes("b", "a")] == [
        (b"/gone", "D"),
        (b"/kept", "D"),
        (b"/new", "A"),
    ]
    with pytest.raises(NotSupported, match="shifts no IDs"):
        driver.get("b", MountOptions(mappings=SHIFTED))


def test_failing_mount_program_tells_why(btrfs_dir: Path, opened: Callable[..., OverlayDriver]) -> None:
    program = btrfs_dir / "program"
    program.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    program.chmod(0o755)
    driver = opened(btrfs_dir, mount_program=str(program))
    driver.create("a")
    with pytest.raises(OSError, match="it is broken"):
        driver.get("a")


def test_force_mask_keeps_real_modes_in_attributes(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver]
) -> None:
    program = Path("/usr/bin/fuse-overlayfs")
    if not program.exists():
        pytest.skip("no fuse-overlayfs")
    driver = opened(btrfs_dir, mount_program=str(program), force_mask="private")
    driver.create("a")
    diff = driver.home / "a" / "diff"
    assert stat.S_IMODE(diff.stat().st_mode) == 0o700
    assert os.getxattr(diff, "user.containers.override_stat") == b"0:0:0555"
    driver.apply_diff("a", archive(("dir/", {"mode": 0o2750, "gid": 7}), ("dir/file", FORCED), "dir/gone"))
    driver.create("b", "a")
    driver.apply_diff("b", archive("dir/new", "dir/.wh.gone"))
    for name in ("a", "b"):
        with driver.mounted(name, READ_ONLY) as tree:
            assert _mode_and_owner(tree / "dir") == (0o2750, 0, 7)
            assert _mode_and_owner(tree / "dir" / "file") == (0o4711, 33, 34)
            assert (tree / "dir" / "gone").exists() == (name == "a")
        assert _mode_and_owner(driver.home / name / "diff" / "dir") == (0o700, 0, 0)


FORCED = {"mode": 0o4711, "uid": 33, "gid": 34}


def _mode_and_owner(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def test_user_namespace_uses_user_attributes(ext4_dir: Path) -> None:
    """Unprivileged: ``userxattr`` mounts, whiteouts and opaque marks included."""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", _IN_USERNS, str(ext4_dir)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["kept", "y"]


_IN_USERNS = """
import os, sys
from pathlib import Path
from drivers.overlay import OverlayDriver
from tests.test_overlay import archive, chain
driver = OverlayDriver(Path(sys.argv[1]) / "overlay")
chain(driver, "a", "b")
driver.apply_diff("a", archive("gone", "kept", "dir/", "dir/x"))
driver.apply_diff("b", archive(".wh.gone", ".wh.dir"))
driver.apply_diff("b", archive("dir/"))
with driver.mounted("b") as tree:
    (tree / "dir").rmdir()
    print(*os.listdir(tree))
    (tree / "dir").mkdir()
print(os.getxattr(driver.home / "b" / "diff" / "dir", "user.overlay.opaque").decode())
"""


# -- other stores ------------------------------------------------------------------------------


def test_additional_image_store_serves_layers_below(
    btrfs_dir: Path, opened: Callable[..., OverlayDriver]
) -> None:
    shared = opened(btrfs_dir / "shared")
    chain(shared, "a", "b")
    shared.apply_diff("a", archive("in-a"))
    shared.apply_diff("b", archive("in-b"))
    before = sorted(map(str, shared.home.rglob("*")))
    driver = opened(btrfs_dir / "own", imagestore=str(btrfs_dir / "shared"), runroot=str(btrfs_dir / "run"))
    assert driver.additional_image_stores() == (btrfs_dir / "shared",)
    assert driver.exists("b")
    assert list(driver.layer_ids()) == []
    driver.create("c", "b")
    with driver.mounted("c") as tree:
        assert sorted(os.listdir(tree)) == ["in-a", "in-b"]
        (tree / "in-b").unlink()
    assert [change.path for change in driver.changes("c", "b")] == [b"/in-b"]
    with driver.mounted("b") as tree:
        assert tree.is_relative_to(btrfs_dir / "run")
        with pytest.raises(OSError, match="Read-only"):
            (tree / "x").touch()
    with pytest.raises(LayerUnknown, match="read-only store"):
        driver.remove("b")
    assert sorted(map(str, shared.home.rglob("*"))) == before


def test_layer_place_without_link_is_unknown(driver: OverlayDriver) -> None:
    (driver.home / "stray").mkdir()
    assert not driver.exists("stray")
    with pytest.raises(LayerUnknown):
        LayerPlace(driver.home / "stray", driver.home).link()
