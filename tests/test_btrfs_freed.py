"""What removal frees, compared with what the filesystem itself counts before and after."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from drivers import btrfs_ioctl
from drivers.btrfs import BtrfsDriver
from drivers.errors import LayerExists, LayerUnknown
from tests.support.loops import loop_mount

MIB = 1 << 20


@pytest.fixture
def driver(run_dir, require):
    """A driver on a filesystem of its own, so that free space tells."""
    require("btrfs")
    with loop_mount(run_dir, "freed", mkfs=("mkfs.btrfs", "-q"), size=1 << 30) as point:
        made = BtrfsDriver(point / "btrfs")
        try:
            yield made
        finally:
            made.cleanup()


def write(path: Path, mebibytes: int) -> None:
    path.write_bytes(os.urandom(mebibytes * MIB))


def used(driver: BtrfsDriver) -> int:
    """Bytes of data in use once the cleaner is done."""
    btrfs_ioctl.sync(driver.home)
    btrfs_ioctl.wait_cleaned(driver.home)
    btrfs_ioctl.sync(driver.home)
    command = ["btrfs", "filesystem", "df", "-b", str(driver.home)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(next(line for line in text.splitlines() if line.startswith("Data")).rpartition("used=")[2])


@pytest.fixture
def family(driver):
    """base (8 MiB) → middle (+4) → top (+2, one file of base rewritten) and a snapshot of top."""
    driver.create("base")
    driver.path_of("base").chmod(0o755)
    write(driver.path_of("base") / "a", 4)
    write(driver.path_of("base") / "b", 4)
    driver.create("middle", "base")
    write(driver.path_of("middle") / "c", 4)
    driver.create("top", "middle")
    driver.snapshots().take("top", "top/s")
    write(driver.path_of("top") / "d", 2)
    write(driver.path_of("top") / "a", 4)
    os.link(driver.path_of("top") / "d", driver.path_of("top") / "e")
    subprocess.run(
        ["cp", "--reflink=always", driver.path_of("top") / "d", driver.path_of("top") / "f"], check=True
    )
    return driver


@pytest.mark.parametrize(
    ("layers", "snapshots", "beside"),
    [
        (["top"], [], "middle"),
        (["top"], [], None),
        (["top"], ["top/s"], "middle"),
        (["top", "middle"], [], "base"),
        (["top", "middle"], ["top/s"], "base"),
        (["top", "middle"], ["top/s"], None),
        (["top", "middle", "base"], ["top/s"], None),
        (["base"], [], None),
        ([], ["top/s"], "top"),
    ],
)
def test_what_is_said_to_be_freed_is_freed(family, layers, snapshots, beside) -> None:
    said = family.freed(layers, snapshots=snapshots, beside=beside)
    before = used(family)
    for key in snapshots:
        family.snapshots().remove(key)
    for layer in layers:
        family.remove(layer)
    family.finish_removals()
    assert before - used(family) == said.exclusive
    assert said.method == "extents"


def test_shared_and_exclusive_add_up_to_what_is_there(family) -> None:
    said = family.freed(["top"], beside="middle")
    assert (said.exclusive, said.shared) == (6 * MIB, 8 * MIB)


def test_a_subvolume_that_is_removed_but_not_cleaned_yet_holds_nothing(family) -> None:
    family.snapshots().remove("top/s")
    family.remove("top")
    family.finish_removals()
    assert family.freed(["middle"], beside="base").exclusive == 4 * MIB


def test_layers_set_aside_count_as_well(family) -> None:
    family.snapshots().remove("top/s")
    family.aside().put("top", "entry/top")
    said = family.freed(["middle"], aside=["entry/top"], beside="base")
    assert said.exclusive == 10 * MIB
    before = used(family)
    family.aside().discard("entry/top")
    family.remove("middle")
    family.finish_removals()
    assert before - used(family) == said.exclusive


def test_nothing_frees_nothing(family) -> None:
    assert family.freed([]).exclusive == 0
    with pytest.raises(LayerUnknown):
        family.freed(["nobody"])
    with pytest.raises(LayerUnknown):
        family.freed([], aside=["nobody/home"])


# -- setting aside ---------------------------------------------------------------------------------


def test_what_is_set_aside_is_no_layer_and_comes_back_as_it_was(family) -> None:
    aside, info = family.aside(), btrfs_ioctl.subvolume_info(family.path_of("top"))
    aside.put("top", "entry/top")
    assert sorted(family.layer_ids()) == ["base", "middle"]
    assert list(aside.keys()) == ["entry/top"]
    assert (aside.path("entry/top") / "d").stat().st_size == 2 * MIB
    with pytest.raises(LayerUnknown):
        aside.put("top", "entry/other")
    with pytest.raises(LayerExists):
        aside.put("middle", "entry/top")
    with pytest.raises(LayerExists):
        aside.take_back("entry/top", "base")
    aside.take_back("entry/top", "top")
    assert list(aside.keys()) == []
    assert btrfs_ioctl.subvolume_info(family.path_of("top")).uuid == info.uuid
    with pytest.raises(LayerUnknown):
        aside.take_back("entry/top", "top")
    with pytest.raises(LayerUnknown):
        aside.discard("entry/top")


def test_a_layer_somebody_made_read_only_can_be_set_aside(family) -> None:
    btrfs_ioctl.set_read_only(family.path_of("top"), True)
    family.aside().put("top", "entry/top")
    family.aside().take_back("entry/top", "top")
    assert btrfs_ioctl.is_read_only(family.path_of("top"))
    family.aside().put("top", "entry/top")
    family.aside().discard("entry/top")
    assert list(family.aside().keys()) == []
