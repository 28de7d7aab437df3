"""Thousands of random operations have the same outcomes, and leave the same, as on the real file system."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import features
from tests.support.posix import outcome
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import run
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPERATIONS = int(os.environ.get("FSD_LOAD_OPERATIONS", "3000"))
DIRECTORIES = ("", "a", "b", "a/c", "b/d", "a/c/e")
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")
OPEN_MAX = 8
STRESSORS = """
access chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl filename flock fstat getdent hdd
io iomix lease locka lockf lockofd mknod open readahead rename seek sync-file touch utime
"""


class Load:
    """Random operations on one tree; the same seed asks for the same ones."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.pick = random.Random(seed)
        self.open: list[int] = []
        self.done: list[Any] = []

    def path(self) -> Path:
        """Any name in any directory."""
        return self.top / self.pick.choice(DIRECTORIES) / self.pick.choice(NAMES)

    def one(self) -> None:
        """One operation; what comes of it is noted."""
        pick, one, two = self.pick, self.path(), self.path()
        number, data = pick.randrange(1 << 16), bytes([pick.randrange(256)]) * pick.randrange(20_000)
        where = pick.randrange(OPEN_MAX)
        calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (os.mkdir, (one,)),
            (os.rmdir, (one,)),
            (os.unlink, (one,)),
            (os.rename, (one, two)),
            (os.link, (one, two)),
            (os.symlink, (two.name, one)),
            (os.readlink, (one,)),
            (os.mkfifo, (one,)),
            (os.truncate, (one, number)),
            (os.chmod, (one, number & 0o7777)),
            (os.chown, (one, number & 3, number >> 2 & 3)),
            (os.setxattr, (one, "user.x", data[: number & 1023])),
            (os.getxattr, (one, "user.x")),
            (os.removexattr, (one, "user.x")),
            (os.utime, (one, (number, number))),
            (self.listed, (one,)),
            (self.seen, (one,)),
            (self.opened, (one, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK)),
            (self.opened, (one, pick.choice((os.O_RDWR, os.O_TRUNC | os.O_RDWR)) | os.O_NONBLOCK)),
            (self.with_file, (where, os.pwrite, data, number)),
            (self.with_file, (where, os.pread, number, number // 2)),
            (self.with_file, (where, os.ftruncate, number)),
            (self.with_file, (where, os.posix_fallocate, number, 1 + number)),
            (self.with_file, (where, os.fsync)),
            (self.with_file, (where, self.size)),
        ]
        call, args = calls[pick.randrange(len(calls))]
        said = [getattr(arg, "__name__", str(arg)).removeprefix(str(self.top)) for arg in args[:2]]
        self.done.append((call.__name__, said, outcome(call, *args)))

    def listed(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def seen(self, path: Path) -> str:
        info = os.lstat(path)
        size = 0 if path.is_dir() else info.st_size
        return f"{info.st_mode:o} {info.st_nlink} {info.st_uid} {info.st_gid} {size}"

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def opened(self, path: Path, flags: int) -> None:
        self.open.append(os.open(path, flags, 0o644))
        if len(self.open) > OPEN_MAX:
            os.close(self.open.pop(0))

    def with_file(self, at: int, call: Callable[..., Any], *args: Any) -> Any:
        return call(self.open[at], *args) if at < len(self.open) else None

    def all(self, count: int) -> tuple[list[Any], Any]:
        """What came of all, and the tree in the end."""
        for name in DIRECTORIES[1:]:
            (self.top / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            self.one()
        for fd in self.open:
            os.close(fd)
        return self.done, snapshot_tree(self.top, times=False)


@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "by request"])
def test_posix_load_has_the_same_outcomes(btrfs_dir: Path, tmp_path: Path, passthrough: bool) -> None:
    features.require("fuse")
    real = btrfs_dir / "c"
    run("btrfs", "subvolume", "create", real)
    for name in ("native", "tree"):
        (real / name).mkdir()
    views = {"c": (real, False)}
    with RootfsMount(tmp_path / "mnt", views, tmp_path / "s", plane={"passthrough": passthrough}) as mount:
        wanted, left = Load(real / "native", 5).all(OPERATIONS)
        found, left_in_tree = Load(mount.path / "c/tree", 5).all(OPERATIONS)
    assert [pair for pair in zip(wanted, found, strict=True) if pair[0] != pair[1]] == []
    assert left == left_in_tree
    assert snapshot_tree(real / "tree", times=False) == left


@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "by request"])
def test_stress_ng_finds_nothing_wrong(btrfs_dir: Path, tmp_path: Path, passthrough: bool) -> None:
    features.require("fuse")
    run("btrfs", "subvolume", "create", btrfs_dir / "c")
    flags = ["--verify", "--oomable", "--timeout", "60", "--temp-path", "c"]
    for stressor in STRESSORS.split():
        flags += [f"--{stressor}", "1", f"--{stressor}-ops", "10"]
    views = {"c": (btrfs_dir / "c", False)}
    plane = {"passthrough": passthrough}
    with RootfsMount(tmp_path / "mnt", views, tmp_path / "s", plane=plane, gated=False) as mount:
        said = run("stress-ng", *flags, cwd=mount.path).stderr
    assert "successful run completed" in said
    assert [line for line in said.splitlines() if "fail:" in line or "skipping" in line] == []
    assert os.listdir(btrfs_dir / "c") == []
