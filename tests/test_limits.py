"""Limits of containers: how they are written, what they stop, and what they survive."""

from __future__ import annotations

import errno
import os
from contextlib import closing

import pytest

from drivers.errors import NotSupported
from store.config import StoreOptions
from store.errors import BadValue, ContainerUnknown
from store.history import History
from store.limits import Limit, Limits, parse_limit
from store.store import Store

MIB = 1 << 20


@pytest.fixture
def store(store_dirs):
    options = StoreOptions(
        graphroot=str(store_dirs.graphroot), runroot=str(store_dirs.runroot), driver="btrfs"
    )
    with Store(options) as store:
        store.create_container(names=["web"])
        try:
            yield store
        finally:
            store.driver.quotas.disable()  # the filesystem is not this test's alone


@pytest.fixture
def limits(store):
    return Limits(store)


def write(store, name: str, mebibytes: int) -> None:
    path = store.driver.path_of(store.container("web").layer) / name
    with path.open("wb", buffering=0) as file:
        for _ in range(mebibytes):
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10G", 10 << 30),
        ("1.5 GiB\n", 3 << 29),
        ("0", 0),
        ("512m", 512 * MIB),
        ("4096", 4096),
        ("2T", 2 << 40),
    ],
)
def test_sizes_have_units(text, size) -> None:
    assert parse_limit(text) == size


@pytest.mark.parametrize("text", ["", "-1", "ten", "1Q", "1e3", "9999999P", "10 G B", "0x10", "1,5G"])
def test_what_is_no_size_is_refused_and_nothing_changes(limits, text) -> None:
    with pytest.raises(BadValue):
        limits.set("web", text)
    assert limits.get("web") == Limit(bytes=0)


def test_a_container_cannot_write_more_than_its_limit(store, limits) -> None:
    assert limits.set("web", "8M").bytes == 8 * MIB
    write(store, "fits", 4)
    with pytest.raises(OSError, match="quota") as caught:
        write(store, "does-not", 16)
    assert caught.value.errno == errno.EDQUOT
    now = limits.get("web")
    assert now.bytes == 8 * MIB
    assert now.used is not None
    assert 4 * MIB <= now.used <= 8 * MIB


def test_a_limit_can_be_raised_and_lifted_when_it_is_reached(store, limits) -> None:
    limits.set("web", "4M")
    with pytest.raises(OSError, match="quota"):
        write(store, "a", 8)
    limits.set("web", "32M")
    write(store, "b", 8)
    assert limits.set("web", "0") == limits.get("web") == Limit(bytes=0)
    write(store, "c", 40)


def test_a_limit_binds_one_container_only(store, limits) -> None:
    store.create_container(names=["other"])
    limits.set("other", "1M")
    write(store, "a", 8)
    assert limits.get("web").bytes == 0


def test_a_limit_survives_rollback_and_another_process(store, limits) -> None:
    limits.set("web", "8M")
    history = History(store)
    with closing(history.state):
        history.take("web", "a")
        history.rollback("web", "a")
    assert Limits(Store(store.options)).get("web").bytes == 8 * MIB
    with pytest.raises(OSError, match="quota"):
        write(store, "big", 16)


def test_a_limit_below_the_driver_s_minimum_is_a_bad_value(store_dirs) -> None:
    options = StoreOptions(
        graphroot=str(store_dirs.graphroot),
        runroot=str(store_dirs.runroot),
        driver="btrfs",
        driver_options=("btrfs.min_space=1g",),
    )
    with Store(options) as store:
        store.create_container(names=["web"])
        try:
            with pytest.raises(BadValue, match="min_space"):
                Limits(store).set("web", "1m")
        finally:
            store.driver.quotas.disable()


def test_an_unknown_container_is_said_so(limits) -> None:
    with pytest.raises(ContainerUnknown):
        limits.set("nobody", "1G")
    with pytest.raises(ContainerUnknown):
        limits.get("nobody")


def test_a_driver_without_quota_says_so(btrfs_dir) -> None:
    options = StoreOptions(graphroot=str(btrfs_dir / "vg"), runroot=str(btrfs_dir / "vr"), driver="vfs")
    with Store(options) as store:
        store.create_container(names=["web"])
        limits = Limits(store)
        assert not limits.supported
        for call in (
            lambda: limits.get("web"),
            lambda: limits.set("web", "1G"),
            lambda: limits.set("web", "0"),
        ):
            with pytest.raises(NotSupported, match="vfs"):
                call()
