"""Every driver passes every conformance check, on every filesystem it runs on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers import driver_class, driver_names, driver_options, open_driver, prior_drivers
from drivers.conformance import CHECKS, Check, Harness
from drivers.errors import BadOption, NotSupported, PrerequisitesMissing, SeveralDrivers
from drivers.options import parse_size
from tests.support.loops import UNFLUSHED, loop_mount

if TYPE_CHECKING:
    from drivers.base import Driver

FILESYSTEMS = {"btrfs": ("btrfs",), "vfs": ("btrfs", "ext4", "xfs"), "overlay": ("btrfs", "ext4", "xfs")}
CASES = [
    pytest.param(name, filesystem, item, id=f"{name}-{filesystem}-{item.name}")
    for name in driver_names()
    for filesystem in FILESYSTEMS[name]
    for item in CHECKS
    if item.applies(driver_class(name).capabilities)
]


@pytest.fixture
def place(request: pytest.FixtureRequest, filesystem: str, item: Check, run_dir: Path) -> Iterator[Path]:
    """An empty directory; checks that switch quotas on get a filesystem of their own."""
    if item.needs == "quota" and filesystem == "btrfs":
        with loop_mount(
            run_dir, "quota", mkfs=("mkfs.btrfs", "-q"), size=1 << 30, options=UNFLUSHED
        ) as point:
            yield point
    else:
        yield request.getfixturevalue(f"{filesystem}_dir")


@pytest.mark.parametrize(("name", "filesystem", "item"), CASES)
def test_driver_conforms(name: str, filesystem: str, item: Check, place: Path) -> None:
    opened: list[Driver] = []

    def factory(graphroot: Path, options: Mapping[str, str]) -> Driver:
        driver = driver_class(name)(graphroot / name, options)
        opened.append(driver)
        return driver

    try:
        item.run(Harness(factory, place))
    finally:
        for driver in opened:
            driver.cleanup()


# -- which driver ------------------------------------------------------------------------------


def test_open_driver_named_uses_it(btrfs_dir: Path) -> None:
    driver = open_driver(btrfs_dir, "vfs")
    assert driver.name == "vfs"
    assert driver.home == btrfs_dir / "vfs"


def test_open_driver_unknown_name_lists_the_known_ones(btrfs_dir: Path) -> None:
    with pytest.raises(NotSupported, match="overlay, btrfs, vfs"):
        open_driver(btrfs_dir, "floppy")


def test_open_driver_prior_home_wins_over_priority(btrfs_dir: Path) -> None:
    (btrfs_dir / "btrfs").mkdir()
    driver = open_driver(btrfs_dir, priority=("vfs",))
    try:
        assert driver.name == "btrfs"
    finally:
        driver.cleanup()


def test_open_driver_with_two_prior_homes_lists_both(btrfs_dir: Path) -> None:
    (btrfs_dir / "btrfs").mkdir()
    (btrfs_dir / "overlay").mkdir()
    with pytest.raises(SeveralDrivers, match="overlay, btrfs"):
        open_driver(btrfs_dir)
    assert prior_drivers(btrfs_dir) == ("overlay", "btrfs")


def test_open_driver_prior_vfs_counts_only_when_asked_for(btrfs_dir: Path) -> None:
    (btrfs_dir / "vfs").mkdir()
    (btrfs_dir / "btrfs").mkdir()
    driver = open_driver(btrfs_dir)
    try:
        assert driver.name == "btrfs"
    finally:
        driver.cleanup()
    with pytest.raises(SeveralDrivers):
        open_driver(btrfs_dir, priority=("vfs",))


def test_open_driver_falls_through_to_one_that_works(ext4_dir: Path) -> None:
    driver = open_driver(ext4_dir, priority=("btrfs", "vfs"))
    assert driver.name == "vfs"
    assert not (ext4_dir / "btrfs").exists()


def test_open_driver_named_says_what_is_missing(ext4_dir: Path) -> None:
    with pytest.raises(PrerequisitesMissing, match="not on a btrfs"):
        open_driver(ext4_dir, "btrfs")


def test_driver_options_skip_other_drivers_and_strip_the_prefix() -> None:
    texts = ["btrfs.size=10g", "overlay.mountopt=nodev", ".min_space=1G", "zfs.fsname=x"]
    assert driver_options("btrfs", texts) == {"size": "10g", "min_space": "1G"}
    assert driver_options("btrfs", {"btrfs.size": "1"}) == {"size": "1"}


@pytest.mark.parametrize("text", ["size", "=1", "", "floppy.size=1"])
def test_driver_options_malformed_are_named(text: str) -> None:
    with pytest.raises(BadOption):
        driver_options("btrfs", [text])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("4096", 4096), ("10g", 10 << 30), ("1.5T", 3 << 39), ("512 MiB", 512 << 20),
        ("1kb", 1024), ("1Ki", 1024), ("0.5k", 512), ("7B", 7), ("2P", 2 << 50),
    ],
)  # fmt: skip
def test_parse_size_reads_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "g", "-1", "1e3", "1.g", "10 gb extra", "1,5g", "٣g", "9000000P", "inf"]
)
def test_parse_size_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(BadOption, match="quota"):
        parse_size(text, "quota")
