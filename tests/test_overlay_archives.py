"""Archives unpacked into overlay layers."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers.base import MountOptions
from drivers.vfs import VfsDriver
from tests.support.overlays import archive, chain, opener
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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


# -- archives -----------------------------------------------------------------------------------

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
