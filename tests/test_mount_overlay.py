"""The tree over a driver that keeps no snapshots."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.loops import mounts_below
from tests.support.mounted import mounted
from tests.support.tools import StoreDirs, ToolBox
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = "localhost/base:1"


def _mkdir_errno(path: Path) -> int | None:
    with pytest.raises(OSError, match="not supported") as caught:
        path.mkdir()
    return caught.value.errno


def test_driver_without_snapshots_serves_the_tree_with_history_off(rootfs_tar, btrfs_dir, require):
    require("fuse")
    require("overlay")
    dirs = StoreDirs(btrfs_dir / "g", btrfs_dir / "r")
    podman = ToolBox(dirs, "overlay", btrfs_dir / "conf").podman()
    podman("import", rootfs_tar, IMAGE)
    podman("create", "--name", "made-by-podman", IMAGE, "true")
    with mounted(dirs, btrfs_dir / "mnt", "--driver", "overlay") as serving:
        container = serving.path / "containers" / "made-by-podman"
        (container / "rootfs/srv/empty").write_text("written\n")
        assert (container / "rootfs/srv/empty").read_text() == "written\n"
        assert os.listdir(container / "snapshots") == []
        assert _mkdir_errno(container / "snapshots" / "x") == errno.EOPNOTSUPP
        assert "history: off" in (serving.path / "control/status").read_text()
        web = serving.path / "containers" / "web"
        web.mkdir()
        (web / "from").write_text(IMAGE)
        assert (web / "rootfs/etc/hostname").read_text() == "fsd-test\n"
        web.rmdir()
        assert snapshot_tree(serving.path / "images" / IMAGE / "rootfs")
        assert "srv" not in serving.errors()
    assert "/merged" not in "".join(mounts_below(btrfs_dir))
    assert podman("diff", "made-by-podman").stdout.split() == ["C", "/srv", "C", "/srv/empty"]
