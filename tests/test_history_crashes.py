"""History through crashes, lost state and several processes at once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from store.errors import SnapshotExists
from store.fill import fill
from store.history import History
from tests.support.crash import crash

if TYPE_CHECKING:
    from store.records import Container
    from store.store import Store


@pytest.fixture
def web(store) -> Container:
    container = store.create_container(names=["web"])
    (rootfs(store, container) / "file").write_text("one")
    return container


def rootfs(store: Store, container: Container) -> Path:
    return store.driver.get(store.container(container.id).layer)


def names(history: History) -> list[str]:
    return [snapshot.name for snapshot in history.list("web")]


def reopened(store: Store) -> History:
    return History(store)


# -- several at once -------------------------------------------------------------------------------

TAKE_MANY = """
    import sys
    from store.config import StoreOptions
    from store.history import History
    from store.store import Store

    graphroot, runroot, count = sys.argv[1:]
    history = History(Store(StoreOptions(graphroot=graphroot, runroot=runroot, driver="btrfs")))
    for _ in range(int(count)):
        history.take("web", reason="timer")
"""


def test_processes_and_threads_that_take_at_once_all_get_their_snapshot(store, history, web) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(TAKE_MANY), store.graphroot, store.runroot, "5"]
    root = Path(__file__).parent.parent
    others = [subprocess.Popen(list(map(str, argv)), cwd=root, stderr=subprocess.PIPE) for _ in range(2)]
    threads = [
        threading.Thread(target=history.take, args=["web"], kwargs={"reason": "write"}) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        assert other.communicate(timeout=60)[1] == b""
    taken = history.list("web")
    assert sorted(s.reason for s in taken) == ["timer"] * 10 + ["write"] * 8
    assert len(list(history.table.copies.keys())) == 18


def test_one_of_many_that_want_a_name_gets_it(history, web) -> None:
    outcomes: list[object] = []

    def take() -> None:
        try:
            outcomes.append(history.take("web", "wanted"))
        except SnapshotExists as error:
            outcomes.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not isinstance(outcome, SnapshotExists) for outcome in outcomes) == 1
    assert len(outcomes) == 8


# -- loss of state ---------------------------------------------------------------------------------


def test_without_the_state_file_snapshots_are_found_again(store, history, web) -> None:
    history.take("web", "named")
    automatic = history.take("web")
    before = history.rollback("web", "named")
    history.state.close()
    for path in history.state.path.parent.glob("state.db*"):
        path.unlink()
    with closing(reopened(store).state) as state:
        found = {s.name: s for s in state.snapshots(web.id)}
    assert set(found) == {"named", automatic.name, before.name}
    assert {s.reason for s in found.values()} == {"found"}
    assert found["named"].named
    assert not found[automatic.name].named
    assert not found[before.name].named
    assert abs(found[automatic.name].created_ns - automatic.created_ns) < 2_000_000_000
    assert abs(found["named"].created_ns - automatic.created_ns) < 60_000_000_000


def test_a_state_file_deleted_under_an_open_history_is_derived_again(history, web) -> None:
    history.take("web", "a")
    history.state.path.unlink()
    assert names(history) == ["a"]
    history.remove("web", "a")
    assert names(history) == []


def test_a_row_without_a_copy_is_dropped(store, history, web) -> None:
    history.take("web", "a")
    history.table.copies.remove(f"{web.id}/a")
    with closing(reopened(store).state) as state:
        assert state.snapshots() == []


# -- crashes ---------------------------------------------------------------------------------------


def test_a_crash_after_an_automatic_snapshot_landed_leaves_it(store, history, web) -> None:
    call = "history.take_if_changed('web', landed=lambda: open(store.driver.get(%r) / 'file', 'w').close())"
    crash(store, "before", "history.state.put_snapshot", call % store.container("web").layer)
    with closing(reopened(store).state) as state:
        (left,) = state.snapshots(web.id)
        assert not left.named
    assert (history.path("web", left.name) / "file").read_text() == "one"
    assert (rootfs(store, web) / "file").read_text() == ""


def test_a_crash_between_copy_and_row_leaves_a_snapshot_that_is_found(store, history, web) -> None:
    crash(store, "before", "history.state.put_snapshot", "history.take('web', 'a')")
    with closing(reopened(store).state) as state:
        assert [s.name for s in state.snapshots(web.id)] == ["a"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_in_a_rename_leaves_one_name_with_its_facts(store, history, web, when) -> None:
    taken = history.take("web", "old", reason="timer")
    crash(store, when, "history.table.copies.rename", "history.rename('web', 'old', 'new')")
    with closing(reopened(store).state) as state:
        (left,) = state.snapshots(web.id)
        assert left.name == ("new" if when == "after" else "old")
        assert (left.created_ns, left.reason) == (taken.created_ns, "timer")
        assert state.pending() == []


@pytest.mark.parametrize(
    ("target", "when", "happened"),
    [
        ("history.table.copies.take", "before", False),
        ("history.table.copies.take", "after", False),
        ("history.table.copies.restore", "before", False),
        ("history.table.copies.restore", "after", True),
        ("history.state.done", "before", True),
    ],
)
def test_a_crash_in_a_rollback_leaves_all_of_it_or_nothing(
    store, history, web, target, when, happened
) -> None:
    history.take("web", "good")
    (rootfs(store, web) / "file").write_text("two")
    crash(store, when, target, "history.rollback('web', 'good')")
    with closing(reopened(store).state) as state:
        left = [s.name for s in state.snapshots(web.id)]
        assert state.pending() == []
    assert (rootfs(store, web) / "file").read_text() == ("one" if happened else "two")
    assert len(left) == (2 if happened else 1)
    if happened:
        assert (history.path("web", left[1]) / "file").read_text() == "two"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_while_deleting_a_container_leaves_all_of_it_or_nothing(store, history, web, when) -> None:
    history.take("web", "a")
    crash(store, when, "store.delete_container", "history.delete_container('web')")
    with closing(reopened(store).state) as state:
        assert state.pending() == []
        assert len(state.snapshots()) == (1 if when == "before" else 0)
    assert len(list(history.table.copies.keys())) == (1 if when == "before" else 0)


def test_work_of_a_living_process_is_not_ended_for_it(store, history, web) -> None:
    history.take("web", "a")
    history.state.begin("delete-container", {"container": "0" * 64})
    with closing(reopened(store).state) as state:
        assert len(state.pending()) == 1


# -- another tree of the same generation -----------------------------------------------------------


@pytest.fixture
def filled(store, history) -> str:
    """ID of a container with a snapshot ``empty``, filled then with a tree of that one's generation."""
    source = store.create_container(names=["source"])
    for number in range(10):  # the kernel may commit at any moment by itself
        (rootfs(store, source) / f"d{number}").mkdir()
        made = store.create_container(names=[f"c{number}"])
        if history.generation(source.id) == history.generation(made.id):
            history.take(made.id, "empty")
            fill(store, made.id, "source", state=history.state)
            return made.id
    raise AssertionError("the kernel commits every time")


def test_content_of_another_tree_is_another_though_the_generations_are_equal(history, filled) -> None:
    taken = history.take_if_changed(filled)
    assert taken is not None
    assert list(history.path(filled, taken.name).iterdir())
    assert history.take_if_changed(filled) is None


def test_crash_after_a_swap_for_a_tree_of_the_same_generation_keeps_the_state_before(
    store, history, filled
) -> None:
    crash(store, "after", "history.table.restore", f"history.rollback({filled!r}, 'empty')")
    assert not list(store.driver.get(store.container(filled).layer).iterdir())
    with closing(reopened(store).state):
        _, before = history.list(filled)
        assert list(history.path(filled, before.name).iterdir())


def test_snapshot_whose_copy_another_tool_deleted_is_taken_anew(store, history, web) -> None:
    first = history.take("web")
    history.table.copies.remove(f"{web.id}/{first.name}")
    assert history.take_if_changed("web") is not None
