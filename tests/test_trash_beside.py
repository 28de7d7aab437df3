"""The trash on a full disk, from many threads, and beside podman at work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from store.config import StoreOptions
from store.errors import ContainerUnknown, DuplicateName, TrashUnknown
from store.history import History
from store.store import Store
from store.trash import Trash
from tests.support.loops import loop_mount

MIB = 1 << 20
ROOT = Path(__file__).parents[1]


def fill_up(path, mebibytes=10**6) -> None:
    for size in (4 * MIB, 4096):
        with suppress(OSError), path.open("ab", buffering=0) as file:
            while os.fstat(file.fileno()).st_size < mebibytes * MIB:
                file.write(os.urandom(size))
        os.sync()


def in_full_store(point):
    """A store with an entry in the trash, on a disk filled to the last byte by a container and an image."""
    options = StoreOptions(graphroot=str(point / "g"), runroot=str(point / "r"), driver="btrfs")
    store = Store(options)
    history = History(store)
    trash = Trash(history)
    assert history.ballast.path.stat().st_blocks
    for name in ("early", "late", "later"):
        store.create_container(names=[name])
    image = store.create_image(names=["localhost/a:1"], layer=store.create_layer().id)
    entry = trash.remove_container("early")
    fill_up(store.driver.path_of(image.layer) / "some", 64)
    fill_up(store.driver.path_of(store.container("late").layer) / "big")
    assert history.free_space() * 300 < 4
    return store, trash, entry


@pytest.mark.parametrize(
    "order", [("container", "image", "trash"), ("trash", "image"), ("image", "container")]
)
def test_a_full_disk_can_be_freed(run_dir, require, order) -> None:
    require("btrfs")
    with loop_mount(run_dir, "full", mkfs=("mkfs.btrfs", "-q"), size=300 * MIB) as point:
        store, trash, entry = in_full_store(point)
        steps = {
            "container": lambda: trash.remove_container("late"),
            "image": lambda: trash.remove_image("localhost/a:1"),
            "trash": lambda: trash.purge(entry.id),
        }
        with closing(trash.history.state):
            for step in order:
                steps[step]()
            assert len(store.containers()) == 2 - order.count("container")
            assert len(trash.list()) == 1 - order.count("trash")
        store.shutdown(force=True)


def test_another_process_can_free_a_full_disk(run_dir, require) -> None:
    require("btrfs")
    with loop_mount(run_dir, "full", mkfs=("mkfs.btrfs", "-q"), size=300 * MIB) as point:
        store, trash, _ = in_full_store(point)
        trash.history.state.close()
        code = (
            "import sys\nfrom store.config import StoreOptions\nfrom store.history import History\n"
            "from store.store import Store\nfrom store.trash import Trash\n"
            "store = Store(StoreOptions(graphroot=sys.argv[1], runroot=sys.argv[2], driver='btrfs'))\n"
            "Trash(History(store)).remove_container('late')\n"
        )
        argv = [sys.executable, "-c", code, str(store.graphroot), str(store.runroot)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert [container.names for container in store.containers()] == [("later",)]
        assert trash.history.ballast.restore() in (True, False)
        store.driver.finish_removals()
        store.shutdown(force=True)


def test_one_of_many_removes_and_one_restores(store, trash) -> None:
    store.create_container(names=["web"])
    barrier = threading.Barrier(8)

    def attempt(call):
        barrier.wait()
        try:
            return call()
        except (ContainerUnknown, TrashUnknown, DuplicateName):
            return None

    with ThreadPoolExecutor(8) as pool:
        calls = [lambda: trash.remove_container("web") for _ in range(8)]
        entries = [entry for entry in pool.map(attempt, calls) if entry]
    assert len(entries) == len(trash.list()) == 1
    with ThreadPoolExecutor(8) as pool:
        calls = [lambda: trash.restore(entries[0].id) for _ in range(8)]
        assert len([record for record in pool.map(attempt, calls) if record]) == 1
    with ThreadPoolExecutor(8) as pool:
        trash.remove_container("web")
        entry_id = trash.list()[0].id
        calls = [lambda: trash.restore(entry_id)] * 4 + [lambda: trash.purge(entry_id) or True] * 4
        assert len([done for done in pool.map(attempt, calls) if done]) == 1
    assert trash.list() == ()
    assert store.check() == []


def test_processes_and_podman_work_while_things_come_and_go(store, trash, podman, rootfs_tar) -> None:
    podman("import", rootfs_tar, "localhost/base:1")
    image = store.image("localhost/base:1").id
    done = threading.Event()

    def churn(name: str) -> int:
        rounds = 0
        while not done.is_set() or not rounds:
            store.create_container(names=[name], image=image)
            entry = trash.remove_container(name)
            trash.restore(entry.id)
            entry = trash.remove_container(name)
            trash.purge(entry.id)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(churn, name) for name in ("a", "b")]
        try:
            for number in range(4):
                run = podman("run", "--rm", "localhost/base:1", "echo", str(number))
                assert run.stdout == f"{number}\n"
        finally:
            done.set()
        assert all(other.result() for other in others)
    assert trash.list() == ()
    assert store.containers() == []
    assert store.check() == []
    assert podman("images", "-q").stdout.strip() in image


def test_a_snapshot_removed_on_a_full_disk_is_gone_for_good(run_dir, require) -> None:
    require("btrfs")
    with loop_mount(run_dir, "ghost", mkfs=("mkfs.btrfs", "-q"), size=300 * MIB) as point:
        store, trash, _ = in_full_store(point)
        history = trash.history
        history.ballast.release_if_full()
        history.take("late", "kept")
        history.take("late", "doomed")
        rest = store.driver.path_of(store.container("later").layer) / "rest"
        fill_up(rest)
        with suppress(OSError):  # the state's file has room of its own
            while True:
                history.state.set_setting("o", os.urandom(8).hex(), "x" * 4000)
        history.remove("late", "doomed")
        os.truncate(rest, 0)
        subprocess.run(["sync", "-f", point], check=True)
        assert [snapshot.name for snapshot in history.list("late")] == ["kept"]
        history.state.close()
