"""A virtual machine's processors are kept from halting while requests come one after another, no longer."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.support import features
from tests.support.filled import eventually
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import run
from tests.support.rootfs_served import count

QOS = Path("/dev/cpu_dma_latency")
DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")


def allowed_latency() -> int:
    """Microseconds that waking an idle processor may take, of all that wish something."""
    with QOS.open("rb") as file:
        return int(struct.unpack("=i", file.read(4))[0])


@pytest.mark.parametrize("keep_awake", [True, False])
def test_processors_are_kept_awake_in_bursts_of_requests(
    btrfs_dir: Path, tmp_path: Path, keep_awake: bool
) -> None:
    features.require("fuse")
    guest = DRIVER.exists() and DRIVER.read_text().strip() == "haltpoll" and os.access(QOS, os.W_OK)
    run("btrfs", "subvolume", "create", btrfs_dir / "c")
    for number in range(50):
        (btrfs_dir / f"c/d{number}").mkdir()
        for name in range(20):
            (btrfs_dir / f"c/d{number}/{name}").touch()
    views = {"c": (btrfs_dir / "c", True)}
    with RootfsMount(tmp_path / "mnt", views, tmp_path / "s", plane={"keep_awake": keep_awake}) as mount:
        assert count(mount.path / "c") == 1 + 50 * 21
        assert (mount.stats()["awakenings"] > 0) == (guest and keep_awake)
        if guest:  # other mounts may have requests just now, but not without end
            assert eventually(lambda: allowed_latency() != 0)
