"""Snapshots of containers on a real btrfs store, through crashes, loss of state and other tools."""

from __future__ import annotations

import errno
import mmap
import os
import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers import btrfs_ioctl
from drivers.errors import NotSupported
from store.config import StoreOptions
from store.errors import (
    BadName,
    ContainerUnknown,
    InUse,
    Pinned,
    SnapshotExists,
    SnapshotUnknown,
)
from store.history import History
from store.retention import DAY, Policy
from store.state import State
from store.store import Store

if TYPE_CHECKING:
    from store.records import Container

AUTOMATIC = re.compile(r"\d{8}T\d{6}Z(_\d+)?")
TICK = 20_000_000
"""The kernel's clock for inodes may be this far behind, in nanoseconds."""
NOTHING_KEPT = Policy(keep_last=0, keep_hourly=0, keep_daily=0, minimum_age=0.0)


@pytest.fixture
def web(store) -> Container:
    container = store.create_container(names=["web"])
    (rootfs(store, container) / "file").write_text("one")
    return container


def rootfs(store: Store, container: Container) -> Path:
    return store.driver.get(store.container(container.id).layer)


def names(history: History, container: str = "web") -> list[str]:
    return [snapshot.name for snapshot in history.list(container)]


def reopened(store: Store) -> History:
    return History(store)


# -- one snapshot ----------------------------------------------------------------------------------


def test_a_snapshot_keeps_the_state_while_the_container_goes_on(store, history, web) -> None:
    before = time.time_ns()
    taken = history.take("web", "first")
    (rootfs(store, web) / "file").write_text("two")
    assert (history.path("web", "first") / "file").read_text() == "one"
    assert (taken.container_id, taken.name, taken.reason, taken.named) == (web.id, "first", "manual", True)
    assert before - TICK <= taken.created_ns <= time.time_ns()
    assert history.list(web.id) == (taken,)
    assert history.get("web", "first") == taken
    with pytest.raises(OSError, match="Read-only"):
        (history.path("web", "first") / "file").write_text("three")


def test_automatic_names_are_times_and_never_clash(history, web) -> None:
    taken = [history.take("web", reason="write") for _ in range(4)]
    assert len({s.name for s in taken}) == 4
    assert all(AUTOMATIC.fullmatch(s.name) and not s.named for s in taken)


def test_a_taken_name_is_refused_and_the_snapshot_stays(store, history, web) -> None:
    history.take("web", "a")
    (rootfs(store, web) / "file").write_text("two")
    with pytest.raises(SnapshotExists, match="a"):
        history.take("web", "a")
    assert (history.path("web", "a") / "file").read_text() == "one"


def fill(state: State) -> None:
    for number in range(10_000):
        state.set_setting("containers/x", f"k{number}", "x" * 100)


def test_a_snapshot_that_cannot_be_written_down_is_none(store, history, web, small_disk) -> None:
    """It was there all the same as soon as the disk had room again."""
    with closing(State(small_disk / "state.db")) as state:
        crowded = History(store, state)
        with pytest.raises(OSError, match="No space left"):
            fill(state)
        with pytest.raises(OSError, match="No space left"):
            crowded.take("web", "refused")
    assert list(history.table.copies.keys()) == []
    history.table.reconcile()
    assert names(history) == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a b", "x" * 256, "a\n", "ä", "_a"])
def test_a_bad_name_is_refused(history, web, name) -> None:
    with pytest.raises(BadName):
        history.take("web", name)
    assert names(history) == []


def test_the_longest_name_and_every_allowed_character_work(history, web) -> None:
    for name in ("x" * 255, "a_b.c:d@e+f-9", "0"):
        history.take("web", name)
    assert sorted(names(history)) == sorted(["x" * 255, "a_b.c:d@e+f-9", "0"])


def test_an_unknown_container_or_snapshot_is_said_so(history, web) -> None:
    with pytest.raises(ContainerUnknown):
        history.take("nobody")
    with pytest.raises(ContainerUnknown):
        history.list("nobody")
    for call in (history.get, history.path, history.remove, history.rollback, history.pin):
        with pytest.raises(SnapshotUnknown, match="nothing"):
            call("web", "nothing")
    with pytest.raises(SnapshotUnknown):
        history.rename("web", "nothing", "b")


def test_a_removed_snapshot_is_gone_from_the_disk(history, web) -> None:
    history.take("web", "a")
    path = history.path("web", "a")
    history.remove("web", "a")
    assert not path.exists()
    assert names(history) == []


def test_a_pinned_snapshot_stays_until_unpinned(history, web) -> None:
    history.take("web", "a")
    assert history.pin("web", "a").pinned
    with pytest.raises(Pinned, match="a"):
        history.remove("web", "a")
    with pytest.raises(Pinned, match="a"):
        history.delete_container("web")
    history.pin("web", "a", False)
    history.remove("web", "a")
    assert names(history) == []


def test_a_renamed_snapshot_keeps_everything_but_its_name(history, web) -> None:
    taken = history.take("web", reason="write")
    renamed = history.rename("web", taken.name, "before-upgrade")
    assert renamed.created_ns == taken.created_ns
    assert renamed.reason == "write"
    assert renamed.named
    assert names(history) == ["before-upgrade"]
    assert (history.path("web", "before-upgrade") / "file").read_text() == "one"
    history.take("web", "other")
    with pytest.raises(SnapshotExists, match="other"):
        history.rename("web", "before-upgrade", "other")
    with pytest.raises(BadName):
        history.rename("web", "before-upgrade", "../x")
    assert sorted(names(history)) == ["before-upgrade", "other"]


def test_the_generation_moves_with_content_and_not_with_snapshots(store, history, web) -> None:
    first = history.generation("web")
    taken = history.take("web")
    assert taken.generation == first == history.generation("web")
    (rootfs(store, web) / "file").read_text()
    assert history.generation("web") == first
    (rootfs(store, web) / "file").write_text("two")
    assert history.generation("web") > first


def test_no_automatic_snapshot_is_taken_when_nothing_changed(store, history, web) -> None:
    first = history.take_if_changed("web")
    assert first is not None
    assert first.reason == "write"
    assert not first.named
    (rootfs(store, web) / "file").read_text()
    assert history.take_if_changed("web") is None
    history.rename("web", first.name, "kept")
    assert history.take_if_changed("web") is None


def test_an_automatic_snapshot_lands_before_its_row_and_readers_wait_for_that(store, history, web) -> None:
    landed, readers = [], []
    copies = store.graphroot / "btrfs/fsd/snapshots"

    def land() -> None:
        landed.append(history.state.snapshots(web.id))
        landed.append([path.parent.name for path in copies.glob(f"{web.id}/*")])
        (rootfs(store, web) / "file").write_text("two")
        readers.append(pool.submit(names, history))

    with ThreadPoolExecutor() as pool:
        taken = history.take_if_changed("web", landed=land)
    assert landed == [[], [web.id]]
    assert readers[0].result() == [taken.name]
    assert (history.path("web", taken.name) / "file").read_text() == "one"
    assert history.take_if_changed("web") is not None


def test_short_of_space_only_people_take_snapshots(store, history, web) -> None:
    crowded = History(store, history.state, Policy(take_floor=1.0))
    with pytest.raises(OSError, match=r"no automatic snapshot: .* 100% is needed") as caught:
        crowded.take_if_changed("web")
    assert caught.value.errno == errno.ENOSPC
    crowded.take("web", "by-hand")
    assert crowded.take_if_changed("web") is None
    assert names(history) == ["by-hand"]


def overwrite(path: Path) -> None:
    with open(path, "r+") as file:
        file.write("X")


def map_and_store(path: Path) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0] = 88


@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        map_and_store,
        lambda path: path.chmod(0o600),
        lambda path: os.setxattr(path, "user.x", b"1"),
        lambda path: path.unlink(),
        lambda path: tempfile.mkdtemp(dir=path.parent),
        lambda path: os.truncate(path, 1),
    ],
    ids=["write", "mmap", "chmod", "xattr", "unlink", "mkdir", "truncate"],
)
def test_every_kind_of_change_is_noticed_at_once(store, history, web, change) -> None:
    for _ in range(3):
        history.take("web")
        path = rootfs(store, web) / "file"
        path.write_text("one")
        assert history.take_if_changed("web") is not None
        change(path)
        assert history.take_if_changed("web") is not None
        assert history.take_if_changed("web") is None


# -- rollback --------------------------------------------------------------------------------------


def test_rollback_brings_the_state_back_and_keeps_the_one_before(store, history, web) -> None:
    history.take("web", "good")
    (rootfs(store, web) / "file").write_text("broken")
    (rootfs(store, web) / "more").mkdir()
    before = history.rollback("web", "good")
    assert os.listdir(rootfs(store, web)) == ["file"]
    assert (rootfs(store, web) / "file").read_text() == "one"
    (rootfs(store, web) / "file").write_text("writable again")
    assert before.name.startswith("pre-rollback-")
    assert (before.reason, before.named) == ("pre-rollback", False)
    assert (history.path("web", before.name) / "file").read_text() == "broken"
    assert (history.path("web", "good") / "file").read_text() == "one"
    history.rollback("web", before.name)
    assert (rootfs(store, web) / "file").read_text() == "broken"


def test_rollback_that_would_lose_files_of_a_nested_subvolume_is_refused(store, history, web) -> None:
    btrfs_ioctl.create_subvolume(rootfs(store, web), "own")
    history.take("web", "first")
    (rootfs(store, web) / "own" / "precious").write_text("only here")
    with pytest.raises(NotSupported, match="/own is a subvolume of its own"):
        history.rollback("web", "first")
    assert (rootfs(store, web) / "own" / "precious").read_text() == "only here"
    assert [snapshot.name for snapshot in history.list("web")] == ["first"]
    (rootfs(store, web) / "own" / "precious").unlink()
    history.rollback("web", "first")
    assert not list((rootfs(store, web) / "own").iterdir())


def test_rollback_of_a_mounted_container_is_refused_and_changes_nothing(store, history, web) -> None:
    history.take("web", "good")
    store.mount(web.id)
    try:
        with pytest.raises(InUse, match="count 1"):
            history.rollback("web", "good")
    finally:
        store.unmount(web.id)
    assert names(history) == ["good"]
    history.rollback("web", "good")


def test_rollback_under_a_working_process_is_refused_and_names_it(store, history, web) -> None:
    history.take("web", "good")
    (rootfs(store, web) / "file").write_text("two")
    child = subprocess.Popen(["sleep", "60"], cwd=rootfs(store, web))
    try:
        with pytest.raises(InUse, match=rf"process {child.pid} \(sleep\) by its working directory"):
            history.rollback("web", "good")
    finally:
        child.kill()
        child.wait()
    assert names(history) == ["good"]
    assert (rootfs(store, web) / "file").read_text() == "two"


def test_rollback_while_podman_runs_the_container_is_refused(store, history, podman, rootfs_tar) -> None:
    podman("import", rootfs_tar, "base")
    podman("create", "--name", "c", "base", "sleep", "60")
    history.take("c", "good")
    podman("start", "c")
    try:
        with pytest.raises(InUse, match=r"container c is in use: a mount \(count 1: .*sleep"):
            history.rollback("c", "good")
    finally:
        podman("kill", "c")
        podman("wait", "c", check=False)
    podman("umount", "c", check=False)
    history.rollback("c", "good")


def test_a_rollback_that_fails_leaves_no_trace(store, history, web, monkeypatch) -> None:
    history.take("web", "good")
    (rootfs(store, web) / "file").write_text("two")

    def fail(key: str, layer_id: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(history.table.copies, "restore", fail)
    with pytest.raises(OSError, match="No space"):
        history.rollback("web", "good")
    assert names(history) == ["good"]
    assert (rootfs(store, web) / "file").read_text() == "two"
    assert history.state.pending() == []


# -- containers that go ----------------------------------------------------------------------------


def test_deleting_a_container_through_us_deletes_its_snapshots(store, history, web) -> None:
    history.take("web", "a")
    history.take("web", "b")
    path = history.path("web", "a")
    history.delete_container("web")
    assert not path.exists()
    assert history.list_orphans() == ()
    with pytest.raises(ContainerUnknown):
        store.container("web")
    assert list(history.table.copies.keys()) == []


def test_snapshots_of_a_container_another_tool_deleted_are_an_orphan(
    store, history, web, containers_storage
) -> None:
    taken = history.take("web", "a")
    history.pin("web", "a")
    containers_storage("delete-container", web.id)
    (orphan,) = history.list_orphans()
    assert (orphan.container_id, [s.name for s in orphan.snapshots]) == (web.id, ["a"])
    assert (history.path(web.id, "a") / "file").read_text() == "one"
    assert history.list(web.id)[0].created_ns == taken.created_ns
    with pytest.raises(Pinned):
        history.reap(web.id)
    history.pin(web.id, "a", False)
    history.reap(web.id)
    assert history.list_orphans() == ()
    assert list(history.table.copies.keys()) == []
    with pytest.raises(SnapshotUnknown):
        history.reap(web.id)


def test_a_container_that_exists_cannot_be_reaped(history, web) -> None:
    history.take("web", "a")
    with pytest.raises(InUse):
        history.reap(web.id)
    assert names(history) == ["a"]


# -- retention -------------------------------------------------------------------------------------


def test_expire_deletes_automatic_snapshots_and_spares_named_and_pinned(history, web) -> None:
    history.take("web", "named")
    pinned = history.take("web")
    history.pin("web", pinned.name)
    doomed = history.take("web")
    now = time.time_ns()
    assert history.expire(now_ns=now, policy=Policy()) == ()
    (gone,) = history.expire(now_ns=now, policy=NOTHING_KEPT)
    assert gone.snapshot.name == doomed.name
    assert set(names(history)) == {"named", pinned.name}


def test_expire_keeps_the_pace_over_several_calls(history, web) -> None:
    for _ in range(5):
        history.take("web")
    slow = Policy(keep_last=0, keep_hourly=0, keep_daily=0, minimum_age=0.0, deletions_per_minute=2)
    now = time.time_ns()
    assert len(history.expire(now_ns=now, policy=slow)) == 2
    assert history.expire(now_ns=now + 1, policy=slow) == ()
    assert len(history.expire(now_ns=now + DAY, policy=slow)) == 2
    assert len(names(history)) == 1


# -- without snapshots -----------------------------------------------------------------------------


def test_a_driver_without_snapshots_has_no_history_and_works_otherwise(ext4_dir) -> None:
    options = StoreOptions(graphroot=str(ext4_dir / "g"), runroot=str(ext4_dir / "r"), driver="vfs")
    with Store(options) as store, closing(History(store).state) as state:
        history = History(store, state)
        container = store.create_container(names=["web"])
        assert not history.supported
        assert history.list("web") == ()
        assert history.list_orphans() == ()
        assert history.expire() == ()
        with pytest.raises(NotSupported):
            history.take("web")
        with pytest.raises(NotSupported):
            history.rollback("web", "a")
        history.delete_container("web")
        assert container.layer not in set(store.driver.layer_ids())
