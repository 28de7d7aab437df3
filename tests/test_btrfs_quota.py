"""Quotas on filesystems of their own: both modes, limits, figures, and no qgroup left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers import btrfs_ioctl
from drivers.base import Creation
from drivers.btrfs import BtrfsDriver
from drivers.btrfs_quota import Mode
from drivers.errors import BadOption, LayerUnknown
from tests.support.features import lacking
from tests.support.loops import UNFLUSHED, loop_mount, run
from tests.support.tools import StoreDirs, ToolBox, ToolFailed

MIB = 1 << 20
ROUNDS = 200


@pytest.fixture
def point(run_dir: Path, require: Callable[[str], None], request: pytest.FixtureRequest) -> Iterator[Path]:
    require("btrfs")
    name = f"q{abs(hash(request.node.nodeid)) % 10**8}"
    with loop_mount(run_dir, name, mkfs=("mkfs.btrfs", "-q"), size=1 << 30, options=UNFLUSHED) as mounted:
        yield mounted


@contextmanager
def opened(point: Path, **options: str) -> Iterator[BtrfsDriver]:
    driver = BtrfsDriver(point / "btrfs", options)
    try:
        yield driver
    finally:
        driver.cleanup()


@pytest.fixture(params=["simple", "full"])
def driver(request: pytest.FixtureRequest, point: Path) -> Iterator[BtrfsDriver]:
    """A driver on a filesystem with quotas on, once per mode."""
    if request.param == "full":
        run("btrfs", "quota", "enable", point)
    with opened(point) as made:
        made.quotas.enable()
        if request.param == "simple" and made.quotas.mode() is not Mode.SIMPLE:
            lacking("this kernel has no simple quotas")
        yield made


def sized(size: str) -> Creation:
    return Creation(storage_opts={"size": size})


def fill(path: Path, mebibytes: int) -> None:
    """Write and sync; raises where the limit is."""
    with path.open("wb", buffering=0) as file:
        for _ in range(mebibytes):
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())


def qgroups(point: Path) -> set[int]:
    """Level-0 qgroups as btrfs-progs lists them, the top level's aside."""
    lines = run("btrfs", "qgroup", "show", "--raw", point).splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("0/")]
    return {int(text.partition("/")[2]) for text in shown} - {5}


# -- switching ---------------------------------------------------------------------------------


def test_quotas_stay_off_unless_asked_for(point: Path) -> None:
    with opened(point) as driver:
        driver.create("base")
        driver.create_read_write("child", "base")
        driver.get("child")
        driver.remove("child")
        assert driver.quotas.mode() is Mode.OFF
        assert driver.quotas.usage(driver.present("base")) is None
        assert driver.quotas.stale() == []
        assert dict(driver.status())["Quota"] == "off"
        assert not (driver.home / "quotas").exists()


@pytest.mark.parametrize("option", ["min_space", "size"])
def test_option_switches_simple_quotas_on(point: Path, option: str) -> None:
    with opened(point, **{option: "8m"}) as driver:
        assert driver.quotas.mode() is Mode.SIMPLE
        assert dict(driver.status())["Quota"] == "simple quotas"


def test_full_qgroups_that_are_on_are_kept(point: Path) -> None:
    run("btrfs", "quota", "enable", point)
    with opened(point, min_space="1m") as driver:
        assert driver.quotas.mode() is Mode.FULL
        status = driver.quotas.status()
        driver.quotas.rescan()
        assert driver.quotas.status().consistent
        assert not driver.quotas.status().rescanning
        assert status.mode is Mode.FULL


def test_disable_switches_off_and_limits_come_back_with_the_next_mount(point: Path) -> None:
    with opened(point) as driver:
        driver.create("layer", creation=sized("4m"))
        driver.quotas.disable()
        assert driver.quotas.mode() is Mode.OFF
        driver.get("layer")
        assert driver.quotas.mode() is not Mode.OFF
        with pytest.raises(OSError, match="quota"):
            fill(driver.present("layer") / "data", 16)


# -- limits ------------------------------------------------------------------------------------


def test_limit_is_enforced_with_edquot_and_can_be_raised_when_reached(driver: BtrfsDriver) -> None:
    driver.create("layer", creation=sized("8m"))
    root = driver.present("layer")
    with pytest.raises(OSError, match="quota") as caught:
        fill(root / "data", 32)
    assert caught.value.errno == errno.EDQUOT
    driver.set_limit("layer", 64 * MIB)
    fill(root / "more", 4)
    assert driver.limit("layer") == 64 * MIB
    assert (driver.home / "quotas" / "layer").read_text() == str(64 * MIB)
    driver.set_limit("layer", 0)
    fill(root / "most", 80)
    assert driver.limit("layer") == 0
    assert not (driver.home / "quotas" / "layer").exists()


def test_limit_in_the_kernel_is_the_one_asked_for(driver: BtrfsDriver) -> None:
    driver.create("layer", creation=sized("1.5g"))
    btrfs_ioctl.sync(driver.home)
    usage = driver.quotas.usage(driver.present("layer"))
    assert usage is not None
    assert usage.limit == 3 << 29
    driver.set_limit("layer", 0)
    btrfs_ioctl.sync(driver.home)
    usage = driver.quotas.usage(driver.present("layer"))
    assert usage is not None
    assert usage.limit == 0


def test_layer_that_reached_its_limit_is_removed_all_the_same(driver: BtrfsDriver) -> None:
    driver.create("layer", creation=sized("8m"))
    root = driver.present("layer")
    with pytest.raises(OSError, match="quota"):
        fill(root / "data", 32)
    driver.create("child", "layer")
    driver.snapshots().take("layer", "c/s")
    driver.remove("layer")
    assert not (driver.home / "quotas" / "layer").exists()


def test_default_size_limits_containers_and_not_image_layers(point: Path) -> None:
    with opened(point, size="6m") as driver:
        driver.create("image")
        fill(driver.present("image") / "data", 8)
        driver.create_read_write("container")
        with pytest.raises(OSError, match="quota"):
            fill(driver.present("container") / "data", 16)
        driver.create_read_write("larger", creation=sized("32m"))
        fill(driver.present("larger") / "data", 8)


def test_limit_survives_a_restore(driver: BtrfsDriver) -> None:
    driver.create("layer", creation=sized("8m"))
    driver.snapshots().take("layer", "c/s")
    driver.snapshots().restore("c/s", "layer")
    with pytest.raises(OSError, match="quota"):
        fill(driver.present("layer") / "data", 32)


def test_size_below_min_space_is_refused(point: Path) -> None:
    with opened(point, min_space="16m") as driver:
        with pytest.raises(BadOption, match="min_space"):
            driver.create("layer", creation=sized("8m"))
        assert not driver.exists("layer")
        driver.create("layer")
        with pytest.raises(BadOption, match="min_space"):
            driver.set_limit("layer", MIB)
        with pytest.raises(LayerUnknown):
            driver.set_limit("missing", 32 * MIB)


def test_record_that_is_no_number_is_named(driver: BtrfsDriver) -> None:
    driver.create("layer", creation=sized("8m"))
    (driver.home / "quotas" / "layer").write_text("lots")
    with pytest.raises(BadOption, match="quotas/layer"):
        driver.get("layer")
    driver.remove("layer")


# -- figures -----------------------------------------------------------------------------------


def test_usage_counts_what_the_mode_says(driver: BtrfsDriver) -> None:
    driver.create("base")
    fill(driver.present("base") / "inherited", 4)
    driver.create("child", "base")
    fill(driver.present("child") / "own", 2)
    driver.quotas.rescan()
    btrfs_ioctl.sync(driver.home)
    usage = driver.quotas.usage(driver.present("child"))
    assert usage is not None
    referenced = 6 * MIB if driver.quotas.mode() is Mode.FULL else 2 * MIB
    assert referenced <= usage.referenced < referenced + MIB
    assert 2 * MIB <= usage.exclusive < 3 * MIB


def test_ownership_is_the_same_by_qgroup_and_by_extents(driver: BtrfsDriver) -> None:
    driver.create("base")
    fill(driver.present("base") / "inherited", 4)
    driver.create("child", "base")
    fill(driver.present("child") / "own", 2)
    driver.quotas.rescan()
    found = driver.ownership("child")
    assert found.method == ("qgroup" if driver.quotas.mode() is Mode.FULL else "extents")
    assert 2 * MIB <= found.exclusive < 3 * MIB
    assert 4 * MIB <= found.shared < 5 * MIB


# -- nothing left behind -----------------------------------------------------------------------


def test_200_rounds_leave_no_stale_qgroup(driver: BtrfsDriver, point: Path) -> None:
    driver.create("base")
    (driver.present("base") / "inherited").write_bytes(os.urandom(64 << 10))
    for number in range(ROUNDS):
        driver.create(f"{number}", "base", sized("8m"))
        (driver.present(f"{number}") / "own").write_bytes(bytes([number % 256]) * 8192)
        if number % 20 == 0:
            driver.snapshots().take(f"{number}", f"{number}/s")
            driver.snapshots().restore(f"{number}/s", f"{number}")
            driver.snapshots().remove(f"{number}/s")
        driver.remove(f"{number}")
    driver.finish_removals()
    btrfs_ioctl.wait_cleaned(point)
    driver.quotas.reap()
    btrfs_ioctl.sync(point)
    assert driver.quotas.stale() == []
    assert qgroups(point) == {btrfs_ioctl.subvolume_id(driver.present("base"))}
    assert list((driver.home / "quotas").iterdir()) == []


def test_parent_removed_before_its_child_leaves_its_qgroup_only_while_it_counts(point: Path) -> None:
    """Simple quotas charge extents to who wrote them: the group outlives the subvolume until they go."""
    with opened(point) as driver:
        driver.quotas.enable()
        driver.create("base")
        fill(driver.present("base") / "inherited", 2)
        driver.create("child", "base")
        base = btrfs_ioctl.subvolume_id(driver.present("base"))
        driver.remove("base")
        driver.finish_removals()
        btrfs_ioctl.wait_cleaned(point)
        driver.quotas.reap()
        assert driver.quotas.stale() == [base]
        assert driver.quotas.reap_stale() == [base]
        driver.remove("child")
        driver.finish_removals()
        btrfs_ioctl.wait_cleaned(point)
        driver.quotas.reap()
        btrfs_ioctl.sync(point)
        assert driver.quotas.reap_stale() == []
        assert qgroups(point) == set()


# -- beside containers-storage -----------------------------------------------------------------


def test_limit_set_here_holds_for_containers_storage(point: Path, require: Callable[[str], None]) -> None:
    require("containers-storage")
    dirs = StoreDirs(point / "g", point / "r")
    tool = ToolBox(dirs, "btrfs", point / "conf").containers_storage()
    layer_id = tool("create-layer").stdout.split()[0]
    driver = BtrfsDriver(dirs.graphroot / "btrfs")
    try:
        driver.set_limit(layer_id, 8 * MIB)
        target = Path(tool("mount", layer_id).stdout.strip())
        with pytest.raises(OSError, match="quota"):
            fill(target / "data", 32)
        tool("unmount", layer_id)
        tool("delete-layer", layer_id)
        assert list(driver.layer_ids()) == []
        assert not list((driver.home / "quotas").iterdir())
    finally:
        driver.cleanup()


def test_unusable_size_of_containers_storage_is_refused_here_too(point: Path) -> None:
    dirs = StoreDirs(point / "g", point / "r")
    tool = ToolBox(dirs, "btrfs", point / "conf").containers_storage()
    with pytest.raises(ToolFailed):
        tool("--storage-opt", "btrfs.min_space=lots", "layers")
    with pytest.raises(BadOption, match="min_space"):
        BtrfsDriver(dirs.graphroot / "btrfs", {"min_space": "lots"})
