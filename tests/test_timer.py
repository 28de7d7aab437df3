"""The hourly timer: which containers get a snapshot, and what it costs when nothing changed."""

from __future__ import annotations

import subprocess
import time
from contextlib import closing

import pytest

from store.config import StoreOptions
from store.fill import fill
from store.history import History
from store.oci import import_rootfs
from store.store import Store
from store.timer import Timer

HOUR = 3600 * 10**9


@pytest.fixture
def timer(history):
    return Timer(history)


@pytest.fixture
def web(store, rootfs_tar):
    with rootfs_tar.open("rb") as archive:
        import_rootfs(store, archive, "localhost/a:1")
    store.create_container(names=["web"])
    fill(store, "web", "localhost/a:1")
    return store.container("web")


def write(store, text, name="web") -> None:
    (store.driver.path_of(store.container(name).layer) / "file").write_text(text)


def taken(ticked) -> list[str]:
    return [snapshot.container_id for snapshot in ticked.taken]


def test_only_containers_that_changed_get_a_snapshot(store, history, timer, web) -> None:
    now = time.time_ns()
    assert taken(timer.tick(now)) == []
    write(store, "one")
    store.create_container(names=["idle"])
    fill(store, "idle", "localhost/a:1")
    assert taken(timer.tick(now)) == [web.id]
    assert [s.reason for s in history.list("web")] == ["timer"]
    assert taken(timer.tick(now + 2 * HOUR)) == []
    write(store, "two")
    assert taken(timer.tick(now + 2 * HOUR)) == [web.id]


def test_a_container_gets_one_an_hour_however_often_it_is_looked_at(store, timer, web) -> None:
    write(store, "one")
    now = time.time_ns()
    assert taken(timer.tick(now)) == [web.id]
    for later in (0, 1, HOUR // 2, HOUR - 120 * 10**9):
        write(store, str(later))
        assert taken(timer.tick(now + later)) == []
    assert taken(Timer(History(store)).tick(now + HOUR)) == [web.id]


def test_a_change_some_snapshot_holds_already_needs_no_other(store, history, timer, web) -> None:
    write(store, "one")
    history.take("web", "mine")
    assert taken(timer.tick()) == []
    write(store, "two")
    history.rollback("web", "mine")
    assert taken(timer.tick(time.time_ns() + 2 * HOUR)) == []


def test_a_container_may_be_excepted(store, history, timer, web) -> None:
    write(store, "one")
    history.state.set_setting(f"containers/{web.id}", "on-write", "none")
    assert taken(timer.tick()) == []
    history.state.set_setting(f"containers/{web.id}", "on-write", "snapshot")
    assert taken(timer.tick()) == [web.id]


def test_a_short_disk_gets_no_more_snapshots(store, history, timer, web, monkeypatch) -> None:
    write(store, "one")
    monkeypatch.setattr(history, "free_space", lambda: 0.09)
    ticked = timer.tick()
    assert ticked.taken == ()
    assert "space" in ticked.skipped


def test_a_broken_container_keeps_no_other_from_its_snapshot(store, timer, web) -> None:
    store.create_container(names=["broken"])
    write(store, "one")
    store.driver.remove(store.container("broken").layer)
    ticked = timer.tick()
    assert taken(ticked) == [web.id]
    assert [container for container, _ in ticked.failed] == [store.container("broken").id]


def test_looking_at_many_idle_containers_costs_little(store, timer, web) -> None:
    for n in range(50):
        store.create_container(names=[f"c{n}"])
        fill(store, f"c{n}", "localhost/a:1")
    timer.tick()
    subprocess.run(["sync"], check=True)
    start = time.monotonic()
    assert timer.tick(time.time_ns() + 2 * HOUR).taken == ()
    assert time.monotonic() - start < 1


def test_what_a_running_container_writes_is_kept(store, history, timer, podman, rootfs_tar) -> None:
    podman("import", rootfs_tar, "localhost/base:1")
    podman("run", "--name", "web", "localhost/base:1", "sh", "-c", "echo one > /file")
    (container,) = store.containers()
    assert taken(timer.tick()) == [container.id]
    podman("start", "--attach", "web")
    name = history.list(container.id)[0].name
    assert (history.path(container.id, name) / "file").read_text() == "one\n"


def test_a_driver_without_snapshots_is_left_alone(btrfs_dir) -> None:
    options = StoreOptions(graphroot=str(btrfs_dir / "vg"), runroot=str(btrfs_dir / "vr"), driver="vfs")
    with Store(options) as store:
        store.create_container(names=["web"])
        history = History(store)
        with closing(history.state):
            assert "vfs" in Timer(history).tick().skipped
