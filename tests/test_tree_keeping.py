"""What a mount takes and lets go by itself, seen through its tree: snapshots by number, age and space; trash.

Time is shortened by the settings that people have. Where age counts, snapshots are real and their rows
in the state say that they are older.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.support import loops
from tests.support.features import require
from tests.support.filled import errno_of, eventually, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from store.history import History
    from store.store import Store
    from tests.support.mounted import Mounted

SECOND = 10**9
OFTEN = "[background]\nexpire = 0.1\ntimer = 0.1\n"
SMALL = 512 << 20


@pytest.fixture(scope="module")
def btrfs_root(run_dir: Path) -> Iterator[Path]:
    """A filesystem of this module's own, so small that a test fills it."""
    require("btrfs")
    mkfs = ("mkfs.btrfs", "-q")
    with loops.loop_mount(run_dir, "keeping", mkfs=mkfs, size=SMALL, options=loops.UNFLUSHED) as point:
        yield point


@pytest.fixture
def serve(
    store: Store, mounted_with: Callable[..., AbstractContextManager[Mounted]]
) -> Callable[..., object]:
    """``serve(SETTINGS)`` mounts the store, which has two containers ``a`` and ``b``."""
    store.create_container(names=["a"])
    store.create_container(names=["b"])

    def start(settings: str = OFTEN, *, expect_trouble: bool = False) -> AbstractContextManager[Mounted]:
        return mounted_with(settings, expect_trouble=expect_trouble)

    return start


def snapshots(tree: Mounted, container: str) -> set[str]:
    return set(os.listdir(tree.path / "containers" / container / "snapshots"))


def reasons(tree: Mounted, container: str) -> list[str]:
    place = tree.path / "containers" / container / "snapshots"
    return [(place / name / "reason").read_text().strip() for name in sorted(os.listdir(place))]


def take(history: History, container: str, ages: list[float], name: str | None = None) -> list[str]:
    """Snapshots that many seconds old; their names in that order."""
    now, found = time.time_ns(), []
    for age in ages:
        taken = history.take(container, name)
        history.state.put_snapshot(replace(taken, created_ns=now - int(age * SECOND)))
        found.append(taken.name)
    return found


def stays(check: Callable[[], bool], seconds: float = 0.5) -> bool:
    deadline = time.monotonic() + seconds
    while check():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.05)
    return False


# -- how many ----------------------------------------------------------------------------------------


def newest_of_each(ages: list[int], format_: str, count: int, now: float) -> set[int]:
    """The youngest of each of the latest ``count`` hours or days that have any."""
    periods: dict[str, int] = {}
    for age in sorted(ages):
        periods.setdefault(time.strftime(format_, time.gmtime(now - age)), age)
    return set(list(periods.values())[:count])


def test_the_last_ten_and_one_of_each_hour_and_day_stay(serve, history):
    ages = [*range(60, 30 * 3600, 1500), *range(31 * 3600, 11 * 86400, 5 * 3600)]
    now = time.time()
    names = dict(zip(ages, take(history, "a", [float(age) for age in ages]), strict=True))
    hourly = newest_of_each(ages, "%d %H", 24, now)
    daily = newest_of_each(ages, "%d", 7, now)
    expected = {names[age] for age in {*ages[:10], *hourly, *daily}}
    assert len(expected) < 41 < len(ages)
    take(history, "a", [20 * 86400.0], "mine")
    (pinned,) = take(history, "a", [20 * 86400.0])
    history.pin("a", pinned)
    with serve(f"{OFTEN}[retention]\ndeletions-per-minute = 1000\n") as tree:
        assert eventually(lambda: snapshots(tree, "a") == {*expected, "mine", pinned})
        assert stays(lambda: snapshots(tree, "a") == {*expected, "mine", pinned})


def test_twenty_go_in_a_minute_and_none_that_is_young(serve, history):
    old = take(history, "a", [8 * 86400.0 + second for second in range(35)])
    young = take(history, "b", [float(second) for second in range(3500, 3515)])
    with serve() as tree:
        assert eventually(lambda: len(snapshots(tree, "a")) == 15)
        assert stays(lambda: len(snapshots(tree, "a")) == 15)
        assert snapshots(tree, "a") == set(old[:15])  # the oldest went first
        assert snapshots(tree, "b") == set(young)


def test_fifty_stay_of_a_container_and_five_hundred_of_a_store(serve, store, history):
    containers = ["a", "b"]
    for number in range(9):
        containers.append(f"c{number}")
        store.create_container(names=containers[-1:])
    took = {}
    for number, container in enumerate(containers):  # the first is the oldest
        base = 40_000.0 - 1000 * number
        took[container] = take(history, container, [base + second for second in range(51)])
    take(history, "a", [90_000.0], "mine")
    settings = f"{OFTEN}[retention]\nkeep-last = 1000\ndeletions-per-minute = 1000\n"
    with serve(settings) as tree:
        expected = {container: set(took[container][:50]) for container in containers}
        expected["a"] = {"mine"}
        assert eventually(lambda: all(snapshots(tree, c) == expected[c] for c in containers), 30)
        assert stays(lambda: all(snapshots(tree, c) == expected[c] for c in containers))
        text = (tree.path / "control/config").read_text()
    for line in ("per-container = 50", "per-store = 500", "keep-hourly = 24", "keep-daily = 7"):
        assert line in text


# -- space -------------------------------------------------------------------------------------------


def settle(top: Path) -> None:
    """Have the space of what was deleted counted as free; every sync wakes the kernel's cleaner."""

    def is_clean() -> bool:
        loops.run("btrfs", "filesystem", "sync", top)
        return not loops.run("btrfs", "subvolume", "list", "-d", top)

    assert eventually(is_clean, 30)
    os.sync()


@contextmanager
def filled_up(top: Path, free: float) -> Iterator[None]:
    """Only that fraction of the filesystem is free, by a file somebody else made."""
    path = top / "ballast-of-others"
    settle(top)
    try:
        with open(path, "wb") as file:
            for _ in range(12):  # what metadata takes shows late
                os.sync()
                info = os.statvfs(top)
                surplus = (info.f_bavail - int(free * info.f_blocks)) * info.f_frsize
                with suppress(OSError):
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), max(surplus // 2, 4096))
        yield
    finally:
        path.unlink()


def test_the_oldest_go_below_the_floor_of_space(serve, history, btrfs_root):
    take(history, "a", [7300.0], "mine")
    old = take(history, "a", [7200.0, 7100.0])
    young = take(history, "b", [60.0])
    with serve() as tree:
        assert stays(lambda: snapshots(tree, "a") == {"mine", *old})
        with filled_up(btrfs_root, 0.15):
            assert eventually(lambda: snapshots(tree, "a") == {"mine"})
            assert stays(lambda: snapshots(tree, "b") == set(young))


def test_no_snapshot_is_taken_below_the_lower_floor(serve, store, btrfs_root):
    real = store.driver.path_of(store.container("a").layer)
    with serve(f"{OFTEN}[bursts]\nquiet = 0\ninterval = 0\n[timer]\ninterval = 0.2\n") as tree:
        rootfs = tree.path / "containers/a/rootfs"
        with filled_up(btrfs_root, 0.07):
            before = snapshots(tree, "a")
            (real / "change").write_text("that no snapshot holds")
            (rootfs / "file").write_text("written")
            assert "10% is needed" in tree.errors(), os.statvfs(btrfs_root)
            assert stays(lambda: snapshots(tree, "a") == before)
            (tree.path / "containers/a/snapshots/asked").mkdir()
            assert snapshots(tree, "a") == {*before, "asked"}
        (rootfs / "file").write_text("there is room again")
        assert eventually(lambda: len(snapshots(tree, "a")) > len(before) + 1)


def test_removal_frees_space_at_once_where_the_disk_is_short(serve, store, btrfs_root):
    layer = store.driver.path_of(store.container("a").layer)
    with serve() as tree:
        (tree.path / "containers/b").rmdir()
        (kept,) = os.listdir(tree.path / "trash")
        (layer / "large").write_bytes(os.urandom(32 << 20))
        with filled_up(btrfs_root, 0.05):
            before = os.statvfs(btrfs_root).f_bavail
            (tree.path / "containers/a").rmdir()
            assert eventually(lambda: os.listdir(tree.path / "trash") == [])  # not even the young one
            settle(btrfs_root)
            assert os.statvfs(btrfs_root).f_bavail - before > (30 << 20) // 4096
        assert not layer.exists()
        assert kept.startswith("b@")


# -- a snapshot that fails ---------------------------------------------------------------------------


@pytest.fixture
def unwritable(store: Store, history: History) -> Iterator[None]:
    """The directory of container ``a``'s snapshots takes none."""
    history.take("a", "first")
    place = history.path("a", "first").parent
    (store.driver.path_of(store.container("a").layer) / "kept").write_text("kept")
    subprocess.run(["chattr", "+i", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", place], check=True)


BURSTS = "[bursts]\nquiet = 0\ninterval = 0\n"
"""Every write begins a burst."""


def test_a_write_proceeds_although_its_snapshot_fails(serve, unwritable):
    with serve(BURSTS) as tree:
        place = tree.path / "containers/a"
        (place / "rootfs/file").write_text("written")
        assert (place / "rootfs/file").read_text() == "written"
        assert snapshots(tree, "a") == {"first"}
        (line,) = tree.errors().splitlines()
        assert "containers/a" in line
        assert "no snapshot before a write" in line
        assert "Operation not permitted" in line


def test_a_write_is_denied_when_its_snapshot_fails_and_settings_say_so(serve, unwritable):
    with serve(f'{BURSTS}on-error = "deny"\n') as tree:
        rootfs = tree.path / "containers/a/rootfs"
        attempts = {
            "create": lambda: (rootfs / "file").write_text("x"),
            "truncate": lambda: (rootfs / "kept").write_text("x"),
            "append": lambda: (rootfs / "kept").open("a"),
            "remove": lambda: (rootfs / "kept").unlink(),
            "rename": lambda: (rootfs / "kept").rename(rootfs / "file"),
            "mkdir": lambda: (rootfs / "file").mkdir(),
            "chmod": lambda: (rootfs / "kept").chmod(0o600),
        }
        for attempt in attempts.values():
            assert errno_of(attempt) == errno.EPERM
        assert os.listdir(rootfs) == ["kept"]
        assert (rootfs / "kept").read_text() == "kept"
        assert sum("no snapshot before a write" in line for line in tree.errors().splitlines()) == len(
            attempts
        )
        (tree.path / "containers/b/rootfs/file").write_text("another container is not concerned")
        write(tree.path / "containers/a/on-write", "none")
        (rootfs / "file").write_text("no snapshot is wanted, so none can fail")


# -- the timer and the choice of a container ---------------------------------------------------------


def test_what_is_written_past_the_mount_is_snapshot_by_the_timer(serve, store, history):
    real = {name: store.driver.path_of(store.container(name).layer) / "file" for name in "ab"}
    with serve(f"{OFTEN}[timer]\ninterval = 1\n") as tree:
        write(tree.path / "containers/b/on-write", "none")
        for number in range(2):
            for path in real.values():
                path.write_text(str(number))
            assert eventually(lambda: reasons(tree, "a") == ["timer"] * (number + 1))  # noqa: B023
            if number == 0:
                before = snapshots(tree, "b")  # a look may have begun before the choice
        assert stays(lambda: reasons(tree, "a") == ["timer"] * 2, 1.5)  # nothing changed since
        assert snapshots(tree, "b") == before
        newest = max(snapshots(tree, "a"))
        (tree.path / "containers/a/rootfs/file").write_text("a write so soon after is in the same burst")
        assert set(reasons(tree, "a")) == {"timer"}  # which is due again
        assert (tree.path / "containers/a/snapshots" / newest / "rootfs/file").read_text() == "1"


def test_the_timer_looks_at_each_container_once_in_its_interval(serve, store):
    real = store.driver.path_of(store.container("a").layer) / "file"
    real.write_text("0")
    with serve(f"{OFTEN}[timer]\ninterval = 3600\n") as tree:
        assert eventually(lambda: len(snapshots(tree, "a")) == 1)
        real.write_text("1")
        assert stays(lambda: len(snapshots(tree, "a")) == 1)
    with serve("[background]\ntimer = 0\n[timer]\ninterval = 0.1\n") as tree:
        assert stays(lambda: len(snapshots(tree, "a")) == 1)


def test_on_write_is_each_containers_own(serve):
    with serve(f'{BURSTS}[on-write]\ncontainers = "none"\n') as tree:
        for name in "ab":
            assert (tree.path / "containers" / name / "on-write").read_text() == "none\n"
        write(tree.path / "containers/a/on-write", "snapshot")
        for name in "ab":
            (tree.path / "containers" / name / "rootfs/file").write_text("written")
        assert reasons(tree, "a") == ["write"]
        assert reasons(tree, "b") == []
    with serve(BURSTS) as tree:  # chosen for good
        assert (tree.path / "containers/a/on-write").read_text() == "snapshot\n"


# -- trash -------------------------------------------------------------------------------------------


def test_trash_expires_when_its_time_is_over_and_not_before(serve, store):
    with serve(f"{OFTEN}[trash]\nlifetime = 2\n") as tree:
        for name in "ab":
            (tree.path / "containers" / name).rmdir()
        second = max(os.listdir(tree.path / "trash"))
        (tree.path / "trash" / second / "pinned").touch()
        assert stays(lambda: len(os.listdir(tree.path / "trash")) == 2)
        assert eventually(lambda: os.listdir(tree.path / "trash") == [second])
        assert stays(lambda: os.listdir(tree.path / "trash") == [second])
        (tree.path / "trash" / second / "pinned").unlink()
        assert eventually(lambda: os.listdir(tree.path / "trash") == [])
    assert store.layers() == []


def test_trash_that_is_switched_off_keeps_nothing(serve, store):
    with serve("[trash]\nlifetime = 0\n") as tree:
        (tree.path / "containers/a").rmdir()
        assert os.listdir(tree.path / "trash") == []
        assert len(store.layers()) == 1
