"""A virtual machine's processors are kept from halting while requests come one after another, no longer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.support import features
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import make_many, run
from tests.support.rootfs_served import count

QOS = Path("/dev/cpu_dma_latency")
DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
GROUPS = 10


@pytest.mark.parametrize("keep_awake", [True, False])
def test_processors_are_kept_awake_in_bursts_of_requests(
    btrfs_dir: Path, tmp_path: Path, keep_awake: bool
) -> None:
    features.require("fuse")
    guest = DRIVER.exists() and DRIVER.read_text().strip() == "haltpoll" and os.access(QOS, os.W_OK)
    run("btrfs", "subvolume", "create", btrfs_dir / "c")
    for group in range(GROUPS):
        (btrfs_dir / f"c/{group}").mkdir()
        entries = make_many(btrfs_dir / f"c/{group}", 50, 10)
    views = {"c": (btrfs_dir / "c", True)}
    awakenings = 0
    with RootfsMount(tmp_path / "mnt", views, tmp_path / "s", plane={"keep_awake": keep_awake}) as mount:
        for group in range(GROUPS):  # a busy machine makes bursts slow
            assert count(mount.path / f"c/{group}") == entries
            time.sleep(0.1)
            awakenings = mount.stats()["awakenings"]
            if awakenings > 1:  # what is counted again was let go in between
                break
    assert (awakenings > 1) == (guest and keep_awake)
    assert keep_awake or awakenings == 0
