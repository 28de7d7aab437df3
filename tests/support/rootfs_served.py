"""A mount that the tests of real trees share, and helpers to look at it."""

from __future__ import annotations

import itertools
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import features, loops
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Served:
    """A writable view ``c`` and two read-only ones of the subvolume ``real``."""

    mount: RootfsMount
    real: Path

    def view(self, name: str) -> Path:
        """Where a view is in the mount."""
        return self.mount.path / name


@dataclass(frozen=True)
class Work:
    """One directory, on the real path and through the mount."""

    real: Path
    here: Path


@pytest.fixture(scope="module")
def served(btrfs_root: Path) -> Iterator[Served]:
    """One mount for a module."""
    with _serving(btrfs_root) as served:
        yield served


@pytest.fixture(scope="module", params=[True, False], ids=["passthrough", "by request"])
def served_each_way(btrfs_root: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """The same, and another whose data goes by READ and WRITE requests."""
    with _serving(btrfs_root, passthrough=request.param) as served:
        yield served


@contextmanager
def _serving(btrfs_root: Path, **plane: bool) -> Iterator[Served]:
    features.require("fuse")
    home = btrfs_root / "rootfs-tests"
    home.mkdir()
    with tempfile.TemporaryDirectory(prefix="fsd-rootfs-") as place:
        os.chmod(place, 0o755)  # other users look in
        real = home / "c"
        run("btrfs", "subvolume", "create", real)
        views = {"c": (real, False), "layer": (real, True), "image": (real, True)}
        try:
            with RootfsMount(Path(place) / "mnt", views, Path(place) / "scratch", plane=plane) as mount:
                yield Served(mount, real)
        finally:
            loops.delete_tree(btrfs_root, home)


_numbers = itertools.count(1)


@pytest.fixture
def work(served: Served) -> Work:
    """A fresh directory in it."""
    name = f"w{next(_numbers)}"
    (served.real / name).mkdir()
    return Work(served.real / name, served.view("c") / name)


def count(path: Path) -> int:
    """How many entries find meets; it stops early, without an error, where directories look wrong."""
    return run("find", path, "-printf", "x").stdout.count("x")


def errno_of(function: Callable[..., object], *args: object, **more: object) -> int | None:
    """The errno a call fails with; ``None`` when it succeeds."""
    try:
        function(*args, **more)
    except OSError as exc:
        return exc.errno
    return None
