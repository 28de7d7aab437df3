"""Ends nobody wishes for: the daemon killed while programs read and write, a tree deleted under them."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from fsd.mounts import mount_at
from tests.support import features
from tests.support.daemon import ROOT
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import run
from tests.support.rootfs_served import errno_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.tools import StoreDirs

END_SECONDS = 60
GONE = {"ENOTCONN", "ECONNABORTED", "EIO", "EINTR"}
WORK = {
    "write": "p = os.path.join(top, 'w'); fd = os.open(p, os.O_RDWR | os.O_CREAT); "
    "[os.pwrite(fd, bytes(4096), n * 4096) for n in range(50)]; os.fsync(fd); os.close(fd)",
    "make": "p = os.path.join(top, 'm'); os.mkdir(p); os.rename(p, p + '2'); os.rmdir(p + '2')",
    "list": "os.listdir(top); os.stat(os.path.join(top, 'f'))",
    "read": "open(os.path.join(top, 'f'), 'rb').read()",
}
LOOP = """
import errno, os, sys, time
top = sys.argv[1]
print('works', flush=True)
try:
    while True:
        %s
except OSError as e:
    print(errno.errorcode[e.errno])
"""


@pytest.fixture
def mount(btrfs_dir: Path, tmp_path: Path) -> Iterator[tuple[RootfsMount, Path]]:
    """A mount of a subvolume, which the test may break."""
    features.require("fuse")
    real = btrfs_dir / "c"
    run("btrfs", "subvolume", "create", real)
    (real / "f").write_bytes(os.urandom(1 << 20))
    with contextlib.ExitStack() as stack:
        made = RootfsMount(tmp_path / "mnt", {"c": (real, False)}, tmp_path / "s").__enter__()
        stack.callback(
            made.__exit__, AssertionError, None, None
        )  # whether it still runs is the test's matter
        yield made, real


def test_plane_killed_with_requests_under_way_fails_them(mount: tuple[RootfsMount, Path]) -> None:
    served, _ = mount
    argv = [sys.executable, "-c"]
    workers = {
        name: subprocess.Popen([*argv, LOOP % code, served.path / "c"], stdout=subprocess.PIPE, text=True)
        for name, code in WORK.items()
    }
    try:
        for worker in workers.values():
            assert worker.stdout is not None
            assert worker.stdout.readline() == "works\n"
        time.sleep(0.2)
        served.process.kill()
        ends = {name: worker.communicate(timeout=END_SECONDS)[0].strip() for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    assert set(ends.values()) <= GONE, ends
    assert errno_of(os.listdir, served.path) == errno.ENOTCONN


def test_plane_of_a_subvolume_deleted_under_open_files_goes_on(mount: tuple[RootfsMount, Path]) -> None:
    served, real = mount
    here = served.path / "c"
    fd = os.open(here / "f", os.O_RDWR)
    directory = os.open(here, os.O_RDONLY)
    try:
        run("btrfs", "subvolume", "delete", real)
        assert len(os.pread(fd, 100, 0)) == 100
        assert os.pwrite(fd, b"x", 0) == 1
        for call, args in ((os.listdir, (directory,)), (os.stat, (here / "new",)), (os.mkdir, (here / "d",))):
            assert errno_of(call, *args) in (None, errno.ENOENT, errno.ESTALE, errno.EIO), call
    finally:
        os.close(fd)
        os.close(directory)
    assert errno_of(os.stat, here / "f") in (errno.ENOENT, errno.ESTALE, errno.EIO)
    assert served.process.poll() is None


def test_defect_that_ends_the_daemon_leaves_no_mount(
    filled: StoreDirs, btrfs_dir: Path, require: Callable[[str], None]
) -> None:
    require("fuse")
    point = btrfs_dir / "mnt"
    point.mkdir()
    reader, writer = os.pipe()
    os.close(reader)  # so that saying READY fails
    code = "import sys\nfrom tests.support.daemon_child import main\nmain(*sys.argv[1:])"
    argv = [sys.executable, "-c", code, filled.graphroot, filled.runroot, point]
    try:
        done = subprocess.run(argv, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    finally:
        os.close(writer)
    assert done.returncode
    assert b"BrokenPipeError" in done.stderr
    assert mount_at(point) is None
