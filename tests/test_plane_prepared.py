"""Snapshots that were laid ready: the plane takes them without asking, or leaves the writers to Python."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from drivers import btrfs_ioctl
from tests.support import features, loops
from tests.support.filled import eventually
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import run

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITERS = 64
PATIENCE = 30
"""Seconds."""


@pytest.fixture(scope="module")
def btrfs_root(run_dir: Path) -> Iterator[Path]:
    """A filesystem of this module's own, which is frozen."""
    features.require("btrfs")
    mkfs = ("mkfs.btrfs", "-q")
    with loops.loop_mount(run_dir, "prepared", mkfs=mkfs, size=512 << 20, options=loops.UNFLUSHED) as point:
        yield point


@pytest.fixture
def tmp_path(run_dir: Path) -> Path:
    """A directory beside the filesystem that is frozen, which the next run sweeps if this one is killed."""
    return Path(tempfile.mkdtemp(dir=run_dir))


@contextmanager
def serving(btrfs_dir: Path, tmp_path: Path, **preparation: Any) -> Iterator[RootfsMount]:
    """A container ``c`` whose snapshot is laid ready, and the directory ``other`` on another filesystem.

    ``generation`` may be "its own".
    """
    features.require("fuse")
    run("btrfs", "subvolume", "create", btrfs_dir / "c")
    (btrfs_dir / "c/f").write_text("before")
    (btrfs_dir / "c/d").mkdir()
    for directory in (btrfs_dir / "snapshots", tmp_path / "other"):
        directory.mkdir()
    if preparation.get("generation") == "its own":
        btrfs_ioctl.sync(btrfs_dir / "c")
        preparation["generation"] = btrfs_ioctl.subvolume_info(btrfs_dir / "c").ctransid
    views = {"c": (btrfs_dir / "c", False), "other": (tmp_path / "other", False)}
    more = {"prepared": {"c": preparation}, "snapshots": str(btrfs_dir / "snapshots")}
    with RootfsMount(tmp_path / "mnt", views, tmp_path / "s", **more) as mount:
        os.listdir(mount.path / "c")
        yield mount


def taken(btrfs_dir: Path) -> list[Path]:
    """The snapshots there are."""
    return sorted((btrfs_dir / "snapshots").glob("c/*"))


def test_first_writers_at_once_get_one_snapshot_and_python_is_not_asked(
    btrfs_dir: Path, tmp_path: Path
) -> None:
    with serving(btrfs_dir, tmp_path) as mount, ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit((mount.path / f"c/d/{n}").write_text, str(n)) for n in range(WRITERS)]
        assert [writer.result(PATIENCE) for writer in writers] == [len(str(n)) for n in range(WRITERS)]
        (snapshot,) = taken(btrfs_dir)
        assert os.listdir(snapshot / "d") == []
        assert (snapshot / "f").read_text() == "before"
        assert btrfs_ioctl.subvolume_info(snapshot).read_only
        assert snapshot.parent.stat().st_mode & 0o777 == 0o700
        assert mount.gates() == []
        assert eventually(lambda: mount.taken() == [f"c {snapshot.name}"])
        assert mount.stats()["taken"] == 1


@pytest.mark.parametrize(
    "preparation",
    [
        pytest.param({"not_before": time.time() + 86400}, id="not due"),
        pytest.param({"generation": "its own"}, id="nothing changed"),
        pytest.param({"needed": 1.1}, id="too little space"),
        pytest.param({"holder": "file"}, id="no directory"),
        pytest.param({"holder": "missing/c"}, id="none to make it in"),
    ],
)
def test_what_is_not_as_it_should_be_is_left_to_python(
    btrfs_dir: Path, tmp_path: Path, preparation: dict[str, Any]
) -> None:
    with serving(btrfs_dir, tmp_path, **preparation) as mount:
        (btrfs_dir / "snapshots/file").touch()
        (mount.path / "c/new").write_text("written")
        assert mount.gates() == [("c", "new")]
        assert taken(btrfs_dir) == []
        assert mount.taken() == []
        assert (mount.path / "c/new").read_text() == "written"


def test_a_removed_directory_of_snapshots_is_left_to_python(btrfs_dir: Path, tmp_path: Path) -> None:
    with serving(btrfs_dir, tmp_path) as mount:
        (btrfs_dir / "snapshots").rmdir()
        (mount.path / "c/new").write_text("written")
        assert mount.gates() == [("c", "new")]


def test_a_taken_name_is_followed_by_a_number(btrfs_dir: Path, tmp_path: Path) -> None:
    with serving(btrfs_dir, tmp_path) as mount:
        (btrfs_dir / "snapshots/c").mkdir()
        now = time.time()
        for second in range(30):
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now + second))
            (btrfs_dir / "snapshots/c" / stamp).mkdir()
        (mount.path / "c/new").write_text("written")
        assert [path.name[-2:] for path in taken(btrfs_dir) if path.name.endswith("_1")] == ["_1"]
        assert mount.gates() == []


@contextmanager
def frozen(point: Path) -> Iterator[None]:
    """Whoever changes anything on a filesystem waits, but not for ever."""
    thaw = functools.partial(subprocess.run, ["fsfreeze", "-u", point], check=False)
    subprocess.run(["fsfreeze", "-f", point], check=True)
    rescue = threading.Timer(PATIENCE, thaw)
    rescue.start()
    try:
        yield
    finally:
        rescue.cancel()
        thaw()


def test_a_snapshot_that_takes_long_holds_up_nobody_else_and_is_python_s(
    btrfs_dir: Path, btrfs_root: Path, tmp_path: Path
) -> None:
    with serving(btrfs_dir, tmp_path) as mount, ThreadPoolExecutor(WRITERS) as pool:
        hold = tmp_path / "s/hold-c"
        hold.touch()
        with frozen(btrfs_root):
            waiting = [pool.submit((mount.path / f"c/d/{n}").write_text, str(n)) for n in range(WRITERS)]
            for n in range(50):
                assert (mount.path / "c/f").read_text() == "before"
                assert os.listdir(mount.path / "c") == ["f", "d"]
                (mount.path / f"other/{n}").write_text("written")
            assert eventually(lambda: any(view == "c" for view, _ in mount.gates()))
            assert not any(writer.done() for writer in waiting)
            assert taken(btrfs_dir) == []
        assert eventually(lambda: len(mount.taken()) == 1)
        assert not any(writer.done() for writer in waiting)  # it is Python that lets them go
        hold.unlink()
        assert [writer.result(PATIENCE) for writer in waiting] == [len(str(n)) for n in range(WRITERS)]
        (snapshot,) = taken(btrfs_dir)
        assert os.listdir(snapshot / "d") == []
