"""The data plane keeps nothing; ``python -m tests.plane_soak`` does a million operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plane_soak import kept, soak
from tests.support import features
from tests.support.rootfs_samples import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("passthrough", [True, False])
def test_plane_keeps_no_descriptor_node_or_memory(btrfs_dir: Path, tmp_path: Path, passthrough: bool) -> None:
    features.require("fuse")
    run("btrfs", "subvolume", "create", btrfs_dir / "c")
    assert kept(soak(tmp_path, btrfs_dir / "c", 5000, passthrough)) == ""
