"""Fixtures: real file systems, real stores, real peers; nothing of them outlives the run."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING

import pytest

from store.config import StoreOptions
from store.history import History
from store.store import Store
from store.trash import Trash
from tests.support import features, loops
from tests.support.daemon import with_small_image
from tests.support.features import require
from tests.support.filled import fill
from tests.support.mounted import Mounted, mounted
from tests.support.rootfs import build_rootfs_tar
from tests.support.tools import StoreDirs, ToolBox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.support.tools import Tool

GIB = 1 << 30
LONGEST = (
    "test_store_of_real_size_is_listed_and_copied_without_a_difference",
    "test_fsd_and_the_other_tools_use_one_store_at_once",
    "test_wrong_values_from_many_processes_are_refused_and_leave_nothing",
    "test_every_change_leaves_the_store_as_the_original_does",
    "test_digests_of_layers_made_by_podman_and_buildah",
    "test_copy_leaves_nothing_when_the_daemon_is_killed",
)
"""Tests of ten seconds and more, the longest first: begun last, one would leave the other processors idle."""
__all__ = ["StoreDirs", "require"]
_numbers = itertools.count(1)


def pytest_report_header() -> str:
    """Say what is on and what is insisted on."""
    return features.header()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each process of the run begin with some of the longest tests.

    With ``--dist worksteal`` each gets an equal share of the list, in its order.
    """
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    names = [getattr(item, "originalname", "") for item in items]
    long = [item for wanted in LONGEST for item, name in zip(items, names, strict=True) if name == wanted]
    rest = iter([item for item, name in zip(items, names, strict=True) if name not in LONGEST])
    ordered: list[pytest.Item] = []
    for number in range(processes):
        share = (len(items) - len(ordered)) // (processes - number)
        first = long[number::processes]
        ordered += [*first, *itertools.islice(rest, max(share - len(first), 0))]
    items[:] = [*ordered, *rest]


@pytest.fixture(name="require")
def require_fixture() -> Callable[[str], None]:
    """The helper of the same name."""
    return require


@pytest.fixture(scope="session")
def run_dir() -> Iterator[Path]:
    """This run's private directory; what dead runs left is swept first."""
    home = loops.new_run()
    try:
        yield home
    finally:
        loops.remove_run(home)


@pytest.fixture
def small_disk(run_dir: Path) -> Iterator[Path]:
    """A filesystem of 256 KiB."""
    with loops.memory_mount(run_dir, size="256k") as point:
        yield point


@pytest.fixture(scope="session")
def btrfs_root(run_dir: Path) -> Iterator[Path]:
    """A btrfs of 8 GiB in a sparse file, mounted noatime, whose commits do not wait for the disk below."""
    require("btrfs")
    mkfs = ("mkfs.btrfs", "-q")
    with loops.loop_mount(run_dir, "b", mkfs=mkfs, size=8 * GIB, options=loops.UNFLUSHED) as point:
        yield point


@pytest.fixture
def btrfs_dir(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A fresh directory on btrfs; mounts and subvolumes in it are removed with it.

    Where the test wants the store ``filled`` it is the one in which that store was made.
    """
    if "filled_dir" in request.fixturenames:  # and not a parameter of the name "filled"
        yield request.getfixturevalue("filled_dir")
        return
    btrfs_root: Path = request.getfixturevalue("btrfs_root")
    directory = btrfs_root / str(next(_numbers))
    directory.mkdir()
    try:
        yield directory
    finally:
        loops.delete_tree(btrfs_root, directory)


@pytest.fixture(scope="module")
def home(btrfs_root: Path) -> Iterator[Path]:
    """A directory on btrfs for all tests of a module; mounts and subvolumes in it are removed with it.

    So are the filesystem's quotas, which a limit switches on: it is not this module's alone.
    """
    directory = btrfs_root / str(next(_numbers))
    directory.mkdir()
    try:
        yield directory
    finally:
        loops.run("btrfs", "quota", "disable", btrfs_root)
        loops.delete_tree(btrfs_root, directory)


@pytest.fixture(scope="module")
def dirs(home: Path, rootfs_tar: Path) -> StoreDirs:
    """A store for all tests of a module, with the image ``localhost/small:1``."""
    found = StoreDirs(home / "g", home / "r")
    found.graphroot.mkdir()
    return with_small_image(found, rootfs_tar)


@pytest.fixture
def ext4_dir(run_dir: Path) -> Iterator[Path]:
    """The root of a fresh ext4 of 512 MiB."""
    require("btrfs")  # the loop devices and privileges are the same
    name = f"e{next(_numbers)}"
    mkfs = ("mkfs.ext4", "-q")
    with loops.loop_mount(run_dir, name, mkfs=mkfs, size=GIB // 2, options=loops.UNFLUSHED) as point:
        yield point


@pytest.fixture
def xfs_dir(run_dir: Path) -> Iterator[Path]:
    """The root of a fresh xfs of 512 MiB."""
    require("xfs")
    name = f"x{next(_numbers)}"
    with loops.loop_mount(run_dir, name, mkfs=("mkfs.xfs", "-q"), size=GIB // 2) as point:
        yield point


@pytest.fixture
def store_dirs(btrfs_dir: Path) -> StoreDirs:
    """Empty graphroot and runroot on btrfs, or those of ``filled`` where the test wants that too."""
    dirs = StoreDirs(btrfs_dir / "g", btrfs_dir / "r")
    dirs.graphroot.mkdir(mode=0o700, exist_ok=True)
    dirs.runroot.mkdir(mode=0o700, exist_ok=True)
    return dirs


@pytest.fixture
def mounted_with(
    store_dirs: StoreDirs, btrfs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[Mounted]]:
    """``mounted_with(SETTINGS)`` mounts the store under an fsd.toml that says so; options as ``mounted``."""
    require("fuse")

    def start(settings: str, *, expect_trouble: bool = False) -> AbstractContextManager[Mounted]:
        (btrfs_dir / "fsd.toml").write_text(settings)
        monkeypatch.setenv("FSD_CONF", str(btrfs_dir / "fsd.toml"))
        return mounted(store_dirs, btrfs_dir / "mnt", expect_trouble=expect_trouble)

    return start


@pytest.fixture
def options(store_dirs: StoreDirs) -> StoreOptions:
    """Options of a store of the btrfs driver in ``store_dirs``."""
    return StoreOptions(
        graphroot=str(store_dirs.graphroot), runroot=str(store_dirs.runroot), driver="btrfs", lock_timeout=10
    )


@pytest.fixture
def store(options: StoreOptions) -> Iterator[Store]:
    """That store, open and empty."""
    with Store(options) as opened:
        yield opened


@pytest.fixture
def history(store: Store) -> Iterator[History]:
    """The history of ``store``."""
    history = History(store)
    with contextlib.closing(history.state):
        yield history


@pytest.fixture
def trash(history: History) -> Trash:
    """The trash of that history."""
    return Trash(history)


@pytest.fixture
def toolbox(store_dirs: StoreDirs, btrfs_dir: Path) -> ToolBox:
    """Peers bound to ``store_dirs``; the fixtures below check that they are installed."""
    return ToolBox(store_dirs, "btrfs", btrfs_dir / "conf")


@pytest.fixture
def podman(toolbox: ToolBox) -> Iterator[Tool]:
    """``podman`` on ``store_dirs``; containers still running at the end are killed."""
    require("podman")
    tool = toolbox.podman()
    try:
        yield tool
    finally:
        if any(toolbox.dirs.runroot.glob("*-containers/*/userdata/conmon.pid")):
            with contextlib.suppress(Exception):
                tool("kill", "--all", check=False)


@pytest.fixture
def buildah(toolbox: ToolBox) -> Tool:
    """``buildah`` on ``store_dirs``."""
    require("buildah")
    return toolbox.buildah()


@pytest.fixture
def skopeo(toolbox: ToolBox) -> Tool:
    """``skopeo``; ``containers-storage:NAME`` means ``store_dirs``."""
    require("skopeo")
    return toolbox.skopeo()


@pytest.fixture
def containers_storage(toolbox: ToolBox) -> Tool:
    """``containers-storage`` on ``store_dirs``."""
    require("containers-storage")
    return toolbox.containers_storage()


@pytest.fixture(scope="session")
def rootfs_tar(run_dir: Path) -> Path:
    """A tar of a small root filesystem that runs (static busybox)."""
    return build_rootfs_tar(run_dir / "rootfs.tar")


@pytest.fixture(scope="session")
def filled_disk(run_dir: Path, rootfs_tar: Path) -> Path:
    """The file of a btrfs with a directory, and in it a store as ``tests.support.filled`` makes it."""
    for feature in ("btrfs", "podman", "buildah"):
        require(feature)
    disk = run_dir / "filled.disk"
    mkfs = ("mkfs.btrfs", "-q")
    with loops.loop_mount(run_dir, "filled", mkfs=mkfs, size=8 * GIB, options=loops.UNFLUSHED) as point:
        place = point / "1"
        place.mkdir()
        dirs = StoreDirs(place / "g", place / "r")
        dirs.graphroot.mkdir(mode=0o700)
        dirs.runroot.mkdir(mode=0o700)
        box = ToolBox(dirs, "btrfs", place / "conf")
        fill(box.podman(), box.buildah(), rootfs_tar, dirs)
        os.link(run_dir / "filled.img", disk)  # which stays when it is unmounted
    return disk


@pytest.fixture
def filled_dir(run_dir: Path, filled_disk: Path) -> Iterator[Path]:
    """That directory, on a copy of the disk; podman wants a store to be where it was made."""
    copy = ("cp", "--sparse=always", str(filled_disk))
    with loops.loop_mount(run_dir, "filled", mkfs=copy, size=8 * GIB, options=loops.UNFLUSHED) as point:
        yield point / "1"


@pytest.fixture
def filled(filled_dir: Path) -> StoreDirs:
    """A store with what ``tests.support.filled`` puts there."""
    return StoreDirs(filled_dir / "g", filled_dir / "r")


@pytest.fixture
def tree(filled: StoreDirs, btrfs_dir: Path) -> Iterator[Mounted]:
    """The filled store, mounted."""
    require("fuse")
    with mounted(filled, btrfs_dir / "mnt") as serving:
        yield serving
