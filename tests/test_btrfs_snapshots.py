"""Snapshots of the btrfs driver beside readers, mounts and other threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivers import btrfs_ioctl, syscalls
from drivers.btrfs import BtrfsDriver
from drivers.errors import LayerMounted


@pytest.fixture
def driver(btrfs_dir: Path) -> Iterator[BtrfsDriver]:
    opened = BtrfsDriver(btrfs_dir / "btrfs")
    try:
        yield opened
    finally:
        opened.cleanup()


def test_restore_is_never_seen_half_done(driver: BtrfsDriver) -> None:
    driver.create("layer")
    root = driver.present("layer")
    root.chmod(0o755)
    (root / "state").write_text("0")
    snapshots = driver.snapshots()
    snapshots.take("layer", "c/s")
    missing: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            try:
                (root / "state").read_text()
            except FileNotFoundError:
                missing.append("gone")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(1, 30):
            (root / "state").write_text(str(number))
            snapshots.restore("c/s", "layer")
            assert (root / "state").read_text() == "0"
    finally:
        stop.set()
        watcher.join()
    assert not missing
    assert not list(driver.scratch.iterdir())


def test_restore_of_a_mounted_layer_is_refused(driver: BtrfsDriver) -> None:
    driver.create("layer")
    driver.snapshots().take("layer", "c/s")
    root = driver.get("layer")
    syscalls.mount(root, root, flags=syscalls.MS_BIND)
    try:
        with pytest.raises(LayerMounted):
            driver.snapshots().restore("c/s", "layer")
    finally:
        syscalls.umount(root)


def test_copy_made_at_home_by_one_ioctl_is_a_snapshot(driver: BtrfsDriver) -> None:
    driver.create("layer")
    snapshots = driver.snapshots()
    home = snapshots.home()
    (home / "c").mkdir(mode=0o700)
    btrfs_ioctl.snapshot(driver.present("layer"), home / "c", "s", read_only=True)
    assert list(snapshots.keys()) == ["c/s"]
    assert snapshots.describe("c/s").generation == snapshots.generation("layer")
    snapshots.remove("c/s")
    assert list(home.iterdir()) == []


def test_threads_take_and_remove_snapshots_of_one_container(driver: BtrfsDriver) -> None:
    driver.create("layer")
    errors: list[BaseException] = []

    def rounds(number: int) -> None:
        try:
            for turn in range(20):
                driver.snapshots().take("layer", f"c/{number}-{turn}")
                driver.snapshots().remove(f"c/{number}-{turn}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=rounds, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not list(driver.snapshots().keys())
