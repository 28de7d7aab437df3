"""Real trees in the mounted store: what happens to a view when the object behind it changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.filled import CONTAINER, fill, write
from tests.support.mounted import Mounted, mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.tools import StoreDirs, Tool


@pytest.fixture
def filled(podman: Tool, buildah: Tool, rootfs_tar: Path, store_dirs: StoreDirs) -> StoreDirs:
    return fill(podman, buildah, rootfs_tar, store_dirs)


@pytest.fixture
def tree(filled: StoreDirs, btrfs_dir: Path, require: Callable[[str], None]) -> Iterator[Mounted]:
    require("fuse")
    with mounted(filled, btrfs_dir / "mnt") as serving:
        yield serving


def test_rollback_shows_the_restored_tree_as_soon_as_it_returns(tree):
    container = tree.path / "containers" / CONTAINER
    (container / "snapshots/good").mkdir()
    for number in range(25):
        (container / f"rootfs/bad{number}").mkdir()
        write(container / "rollback", "good")
        assert not any(name.startswith("bad") for name in os.listdir(container / "rootfs")), number
