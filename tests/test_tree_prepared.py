"""The first write of a burst as the tree shows it: its snapshot was laid ready, or could not be."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from store.fill import fill
from tests.support.filled import eventually, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from store.history import History
    from store.store import Store
    from tests.support.mounted import Mounted

ALWAYS = "[bursts]\nquiet = 0\ninterval = 0\n"
"""Every write begins a burst."""
LOOK = 3.0
"""Seconds in which what another process did is found out."""


@pytest.fixture
def serve(
    store: Store, mounted_with: Callable[..., AbstractContextManager[Mounted]]
) -> Callable[..., object]:
    """``serve(SETTINGS)`` mounts the store, which has a container ``a``."""
    store.create_container(names=["a"])

    @contextmanager
    def start(settings: str = "") -> Iterator[Mounted]:
        with mounted_with(settings) as tree:
            os.listdir(tree.path / "containers/a/rootfs")
            yield tree

    return start


def container(tree: Mounted) -> Path:
    return tree.path / "containers/a"


def snapshots(tree: Mounted) -> list[str]:
    return sorted(os.listdir(container(tree) / "snapshots"))


def reasons(tree: Mounted) -> list[str]:
    return [(container(tree) / "snapshots" / name / "reason").read_text().strip() for name in snapshots(tree)]


def prepared(tree: Mounted) -> int:
    """How many snapshots the plane took without being told to."""
    text = (tree.path / "control/metrics").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("fsd_snapshots_prepared_total")]
    return int(float(line.split()[-1]))


def ready(tree: Mounted) -> None:
    """A moment in which what has changed is attended to."""
    time.sleep(0.3)
    os.listdir(container(tree) / "rootfs")


def test_whoever_saw_a_write_finds_its_snapshot(serve, store):
    real = store.driver.path_of(store.container("a").layer)
    (real / "file").write_text("before")
    together = threading.Barrier(64)

    def add(tree: Mounted, number: int) -> list[str]:
        together.wait()
        write(container(tree) / f"rootfs/new{number}", str(number))
        return reasons(tree)

    with serve() as tree, ThreadPoolExecutor(64) as pool, open(tree.path / "control/events") as events:
        assert list(pool.map(add, [tree] * 64, range(64))) == [["write"]] * 64
        assert prepared(tree) == 1
        (snapshot,) = snapshots(tree)
        assert os.listdir(container(tree) / "snapshots" / snapshot / "rootfs") == ["file"]
        event = next(found for found in map(json.loads, events) if found["table"] == "snapshots")
        assert (event["names"], event["reason"]) == ([snapshot], "write")


def test_each_burst_takes_the_snapshot_that_was_laid_ready(serve):
    with serve(ALWAYS) as tree:
        for number in range(5):
            ready(tree)
            write(container(tree) / "rootfs/file", str(number))
            assert len(snapshots(tree)) == number + 1
        assert prepared(tree) == 5
        kept = [(container(tree) / "snapshots" / name / "rootfs/file") for name in snapshots(tree)[1:]]
        assert [path.read_text() for path in kept] == ["0", "1", "2", "3"]


def test_a_container_without_snapshots_on_write_gets_none_until_that_is_chosen(serve):
    with serve(ALWAYS) as tree:
        write(container(tree) / "on-write", "none")
        write(container(tree) / "rootfs/file", "0")
        assert snapshots(tree) == []
        write(container(tree) / "on-write", "snapshot")
        ready(tree)
        write(container(tree) / "rootfs/file", "1")
        assert (reasons(tree), prepared(tree)) == (["write"], 1)


def test_what_a_snapshot_of_a_person_holds_is_not_taken_again(serve, store):
    (store.driver.path_of(store.container("a").layer) / "file").write_text("before")
    with serve(ALWAYS) as tree:
        (container(tree) / "snapshots/mine").mkdir()
        write(container(tree) / "rootfs/new", "at once")
        assert snapshots(tree) == ["mine"]
        ready(tree)
        write(container(tree) / "rootfs/new", "later")
        assert len(snapshots(tree)) == 2


def test_what_another_process_took_is_not_taken_again(serve, store, history):
    (store.driver.path_of(store.container("a").layer) / "file").write_text("before")
    with serve(ALWAYS) as tree:
        history.take("a", "mine")
        time.sleep(LOOK)
        write(container(tree) / "rootfs/new", "x")
        assert snapshots(tree) == ["mine"]


def test_what_a_container_was_filled_with_is_taken_though_its_generation_is_that_of_a_snapshot(
    serve, store, history
):
    (store.driver.path_of(store.container("a").layer) / "dir").mkdir()
    late = store.create_container(names=["late"])  # in the same commit, unless the kernel makes one by itself
    history.take(late.id, "empty")
    fill(store, late.id, "a", state=history.state)
    with serve(ALWAYS) as tree:
        os.listdir(tree.path / "containers/late/rootfs")
        ready(tree)
        write(tree.path / "containers/late/rootfs/new", "x")
        assert prepared(tree) == 1
        (name,) = set(os.listdir(tree.path / "containers/late/snapshots")) - {"empty"}
    assert os.listdir(history.path(late.id, name)) == ["dir"]


def test_rollback_under_a_file_open_for_writing_is_refused_and_the_write_stays(serve):
    with serve() as tree:
        path = container(tree) / "rootfs/file"
        write(path, "good")
        (container(tree) / "snapshots/good").mkdir()
        with open(path, "r+b", buffering=0) as file:
            with pytest.raises(OSError, match="busy") as caught:
                write(container(tree) / "rollback", "good")
            assert caught.value.errno == errno.EBUSY
            assert "1 of its files open for writing" in tree.errors()
            file.write(b"more")
        assert path.read_text() == "more"
        with open(path, "rb"):
            write(container(tree) / "rollback", "good")
        assert path.read_text() == "good"


def test_a_write_after_a_rollback_keeps_what_came_back(serve):
    with serve(ALWAYS) as tree:
        write(container(tree) / "rootfs/file", "good")
        (container(tree) / "snapshots/good").mkdir()
        ready(tree)
        write(container(tree) / "rootfs/file", "bad")
        write(container(tree) / "rollback", "good")
        ready(tree)
        write(container(tree) / "rootfs/other", "x")
        ready(tree)
        write(container(tree) / "rootfs/file", "new")
        newest = max(name for name in snapshots(tree) if name[0].isdigit())
        kept = container(tree) / "snapshots" / newest / "rootfs"
        assert (kept / "file").read_text() == "good"
        assert (kept / "other").read_text() == "x"


def test_a_burst_goes_on_after_a_restart(serve):
    with serve() as tree:
        write(container(tree) / "rootfs/file", "0")
        assert prepared(tree) == 1
        before = snapshots(tree)
    with serve() as tree:
        write(container(tree) / "rootfs/file", "1")
        assert (snapshots(tree), reasons(tree), prepared(tree)) == (before, ["write"], 0)


def test_a_snapshot_is_found_although_the_daemon_was_killed_at_once(serve, store_dirs, btrfs_dir, store):
    (store.driver.path_of(store.container("a").layer) / "file").write_text("before")
    with suppress(AssertionError), serve() as tree:  # it is told that the daemon died
        write(container(tree) / "rootfs/new", "x")
        tree.process.send_signal(signal.SIGKILL)
        tree.process.wait()
    assert tree.process.returncode == -signal.SIGKILL
    with serve() as tree:
        (name,) = snapshots(tree)
        assert reasons(tree)[0] in ("found", "write")
        assert os.listdir(container(tree) / "snapshots" / name / "rootfs") == ["file"]
        assert (container(tree) / "rootfs/new").read_text() == "x"


def test_names_that_settings_call_noise_do_not_open_the_burst_of_others(serve, history: History):
    with serve('[bursts]\nnoise = ["*.tmp"]\n') as tree:
        write(container(tree) / "rootfs/a.tmp", "noise")
        assert snapshots(tree) == []
        write(container(tree) / "rootfs/.a.swp", "no noise any more")
        (name,) = snapshots(tree)
        assert os.listdir(container(tree) / "snapshots" / name / "rootfs") == ["a.tmp"]


def test_a_container_that_goes_to_the_trash_and_comes_back_is_written_to(serve, store):
    with serve(ALWAYS) as tree:
        write(container(tree) / "rootfs/file", "0")
        container(tree).rmdir()
        (kept,) = os.listdir(tree.path / "trash")
        os.rename(tree.path / "trash" / kept, container(tree))
        ready(tree)
        write(container(tree) / "rootfs/file", "1")
        assert eventually(lambda: len(snapshots(tree)) == 2)
