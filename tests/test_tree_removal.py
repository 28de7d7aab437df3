"""What recursive removal leaves of a container: all of it, in whatever order a tool goes."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.filled import CONTAINER, fill
from tests.support.mounted import mounted
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.tools import StoreDirs, Tool


@pytest.fixture
def container(
    podman: Tool,
    buildah: Tool,
    rootfs_tar: Path,
    store_dirs: StoreDirs,
    btrfs_dir: Path,
    require: Callable[[str], None],
) -> Iterator[Path]:
    """A container with something in its private directories and a snapshot."""
    require("fuse")
    fill(podman, buildah, rootfs_tar, store_dirs)
    with mounted(store_dirs, btrfs_dir / "mnt") as serving:
        place = serving.path / "containers" / CONTAINER
        (place / "snapshots/before").mkdir()
        for private in ("userdata", "rundata"):
            (place / private / "mine").mkdir()
            (place / private / "mine/key").write_text("the only copy\n")
        yield place


def _trees(container):
    places = ("rootfs", "userdata", "rundata", "snapshots/before/rootfs")
    return {place: snapshot_tree(container / place) for place in places}


REMOVERS = {
    "rsync --delete": "rsync -a --delete $EMPTY/ $C/",
    "rsync --delete-before": "rsync -a --delete-before $EMPTY/ $C/",
    "rsync --delete of the table": "rsync -a --delete $EMPTY/ $C/../",
    "rsync --remove-source-files": "rsync -a --remove-source-files --exclude=events $C/ $EMPTY/",
    "rm -rf": "rm -rf $C",
    "rm -rf of everything in it": "rm -rf $C/*",
    "find -delete": "find $C -delete",
    "find -exec": "find $C -depth -exec rm -rf {} +",
    "mv": "mv $C $EMPTY/elsewhere",
    "python": "python3 -c 'import shutil, sys; shutil.rmtree(sys.argv[1], ignore_errors=True)' $C",
}


def test_recursive_removal_of_a_container_removes_nothing(container, btrfs_dir):
    before, listed = _trees(container), sorted(os.listdir(container))
    for number, (remover, script) in enumerate(REMOVERS.items()):
        (btrfs_dir / f"empty{number}").mkdir()
        done = _run(script, C=container, EMPTY=btrfs_dir / f"empty{number}")
        assert done.returncode != 0 or script.startswith("python"), remover
        assert sorted(os.listdir(container)) == listed, remover
        assert _trees(container) == before, f"{remover}\n{done.stderr}"


def test_private_files_are_removed_by_their_own_path(container):
    """Listing the directory itself, or nothing, is no sign of emptying the whole container."""
    (container / "userdata/other").write_text("x")
    for script in ("rm $C/userdata/other", "rm -r $C/userdata/mine", "find $C/rundata/mine -delete"):
        assert _run(f"ls -l $C; {script}", C=container).returncode == 0
    assert not (container / "userdata/mine").exists()
    assert not (container / "rundata/mine").exists()


def _run(script, **env):
    env = os.environ | {name: str(value) for name, value in env.items()}
    return subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, check=False, timeout=120
    )
