"""The state file: what it keeps, and how it lives through deletion, damage, threads and crashes."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from store import state_db
from store.state import VIEW_NUMBERS, BurstTimes, Size, Snapshot, State
from store.state_schema import MIGRATIONS


@pytest.fixture
def state(tmp_path: Path):
    state = State(tmp_path / "fsd" / "state.db")
    yield state
    state.close()


def row(name: str, created_ns: int = 1, **more: object) -> Snapshot:
    return Snapshot(container_id="c1", name=name, created_ns=created_ns, reason="manual", **more)  # type: ignore[arg-type]


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        check=False,
        text=True,
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        timeout=60,
    )


def test_snapshot_rows_come_back_oldest_first_with_every_column(state: State) -> None:
    new, old = row("new", 2, pinned=True, generation=7), row("old", 1, named=True)
    state.put_snapshot(new)
    state.put_snapshot(old)
    assert state.snapshots("c1") == [old, new]
    assert state.snapshots() == [old, new]
    assert state.snapshots("c2") == []
    assert state.snapshot("c1", "new") == new
    state.drop_snapshot("c1", "new")
    assert state.snapshot("c1", "new") is None


def test_a_view_keeps_its_number_when_the_state_is_opened_again(state: State) -> None:
    numbers = [state.view_number(f"containers/{n}") for n in range(5)]
    assert len(set(numbers)) == 5
    assert all(0 < n < VIEW_NUMBERS for n in numbers)
    again = State(state.path)
    assert [again.view_number(f"containers/{n}") for n in range(5)] == numbers
    again.close()


def test_view_numbers_past_the_last_one_reuse_those_that_were_freed(state: State) -> None:
    freed = state.view_number("gone")
    state.view_number("stays")
    with sqlite3.connect(state.path) as connection:
        connection.execute("INSERT INTO views VALUES (?, 'last')", [VIEW_NUMBERS - 1])
    connection.close()
    state.drop_views(["gone"])
    assert state.view_number("next") == freed


def test_view_numbers_of_many_threads_never_clash(state: State) -> None:
    found: list[dict[str, int]] = []

    def ask(offset: int) -> None:
        found.append({key: state.view_number(key) for key in (f"k{n + offset}" for n in range(20))})

    threads = [threading.Thread(target=ask, args=[offset]) for offset in range(0, 40, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    merged: dict[str, int] = {}
    for part in found:
        for key, number in part.items():
            assert merged.setdefault(key, number) == number
    assert len(set(merged.values())) == len(merged)


def test_an_intent_is_pending_until_done(state: State) -> None:
    first = state.begin("rollback", {"container": "c1", "n": [1, 2]})
    second = state.begin("rename", {})
    assert [(i.id, i.kind, i.details, i.alive) for i in state.pending()] == [
        (first, "rollback", {"container": "c1", "n": [1, 2]}, True),
        (second, "rename", {}, True),
    ]
    state.done(first)
    assert [i.id for i in state.pending()] == [second]


def test_an_intent_whose_process_was_killed_is_not_alive(state: State) -> None:
    code = """
        import os, signal, sys
        from pathlib import Path
        from store.state import State
        State(Path(sys.argv[1])).begin("rollback", {"container": "c1"})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_python(code, state.path).returncode == -9
    (intent,) = state.pending()
    assert intent.details == {"container": "c1"}
    assert not intent.alive


def test_sizes_bursts_and_settings_of_a_deleted_container_are_forgotten(state: State) -> None:
    sizes = {
        "containers/c1/size": Size(bytes=5, generation=3, measured_ns=9),
        "containers/c10/size": Size(bytes=6, generation=3, measured_ns=9),
    }
    state.put_sizes(sizes)
    state.put_burst("c1", BurstTimes(started_ns=1, mutated_ns=2))
    state.set_setting("containers/c1", "on-write", "none")
    assert state.size("containers/c1/size") == Size(bytes=5, generation=3, measured_ns=9)
    assert state.burst("c1") == BurstTimes(started_ns=1, mutated_ns=2)
    assert state.settings("containers/c1") == {"on-write": "none"}
    state.forget_container("c1")
    assert state.size("containers/c1/size") is None
    assert state.size("containers/c10/size") is not None
    assert state.burst("c1") is None
    assert state.settings("containers/c1") == {}


def test_a_setting_of_none_returns_to_the_default(state: State) -> None:
    state.set_setting("images/i", "pinned", "1")
    state.set_setting("images/i", "pinned", None)
    assert state.settings("images/i") == {}


def test_two_processes_write_the_same_file(state: State) -> None:
    code = """
        import sys
        from pathlib import Path
        from store.state import State
        state = State(Path(sys.argv[1]))
        for n in range(50):
            state.view_number(f"theirs/{n}")
    """
    ours = threading.Thread(target=lambda: [state.view_number(f"ours/{n}") for n in range(50)])
    ours.start()
    theirs = run_python(code, state.path)
    ours.join()
    assert theirs.returncode == 0, theirs.stderr
    with sqlite3.connect(state.path) as connection:
        assert connection.execute("SELECT count(DISTINCT number) FROM views").fetchone() == (100,)
    connection.close()


@pytest.mark.parametrize("leftovers", [False, True])
def test_a_file_deleted_while_open_is_made_again(state: State, leftovers: bool) -> None:
    state.put_snapshot(row("before"))
    epoch = state.epoch
    state.path.unlink()
    if not leftovers:
        for side in ("-wal", "-shm"):
            Path(f"{state.path}{side}").unlink(missing_ok=True)
    assert state.snapshots() == []
    assert state.epoch > epoch
    state.put_snapshot(row("after"))
    other = State(state.path)
    assert [r.name for r in other.snapshots()] == ["after"]
    other.close()


def damage_header(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 100)


def damage_pages(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(os.path.getsize(path) - 4096))


def from_the_future(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()


@pytest.mark.parametrize("damage", [damage_header, damage_pages, from_the_future])
def test_a_file_that_cannot_be_used_is_moved_aside_and_logged(state, damage, caplog) -> None:
    state.put_snapshot(row("lost"))
    state.close()
    for side in ("-wal", "-shm"):
        Path(f"{state.path}{side}").unlink(missing_ok=True)
    damage(state.path)
    content = state.path.read_bytes()
    with caplog.at_level(logging.ERROR):
        again = State(state.path)
    assert again.snapshots() == []
    again.put_snapshot(row("kept"))
    again.close()
    (aside,) = [
        p for p in state.path.parent.glob("state.db.damaged-*") if p.name[-4:] not in ("-wal", "-shm")
    ]
    assert aside.read_bytes() == content
    assert str(aside) in caplog.text


def test_a_file_emptied_while_open_is_replaced(state: State, caplog) -> None:
    state.put_snapshot(row("lost"))
    with sqlite3.connect(state.path) as connection:
        for table in ("snapshots", "views"):
            connection.execute(f"DROP TABLE {table}")
    connection.close()
    assert state.snapshots() == []
    assert state.view_number("again") == 1
    assert "moved to" in caplog.text


def test_a_damaged_file_used_by_many_threads_is_moved_aside_once(state: State) -> None:
    state.put_snapshot(row("lost"))
    state.close()
    damage_header(state.path)
    threads = [threading.Thread(target=state.view_number, args=[f"k{n}"]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    aside = [p for p in state.path.parent.glob("state.db.damaged-*") if not p.name.endswith(("-wal", "-shm"))]
    assert len(aside) == 1
    assert {state.view_number(f"k{n}") for n in range(8)} == set(range(1, 9))


def test_a_migration_adds_to_an_older_file_and_keeps_its_rows(state: State, monkeypatch) -> None:
    state.put_snapshot(row("kept"))
    state.close()
    more = "ALTER TABLE snapshots ADD COLUMN note TEXT NOT NULL DEFAULT 'n; x';\nCREATE TABLE extra (a);"
    monkeypatch.setattr(state_db, "MIGRATIONS", (*MIGRATIONS, more))
    database = state_db.Database(state.path)
    rows = database.read(lambda c: c.execute("SELECT name, note FROM snapshots").fetchall())
    version = database.read(lambda c: c.execute("PRAGMA user_version").fetchone()[0])
    database.close()
    assert [tuple(r) for r in rows] == [("kept", "n; x")]
    assert version == len(MIGRATIONS) + 1


def test_a_failed_transaction_leaves_nothing(state: State) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO settings VALUES ('o', 'k', 'v')")
        raise RuntimeError("half way")

    database = state_db.Database(state.path)
    with pytest.raises(RuntimeError):
        database.write(fail)
    assert state.settings("o") == {}
    database.close()


def test_a_lock_held_too_long_is_a_timeout(state: State, monkeypatch) -> None:
    monkeypatch.setattr(state_db, "BUSY_TIMEOUT", 0.05)
    state.close()
    holder = sqlite3.connect(state.path, isolation_level=None)
    try:
        state.snapshots()
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(OSError, match="locked") as caught:
            state.put_snapshot(row("late"))
        assert caught.value.errno == errno.ETIMEDOUT
        assert state.snapshots() == []
    finally:
        holder.close()


def fill(state: State) -> None:
    for n in range(10_000):
        state.set_setting("o", f"k{n}", "x" * 1000)


def test_a_full_disk_is_enospc(small_disk: Path) -> None:
    state = State(small_disk / "state.db")
    with pytest.raises(OSError, match="No space left") as caught:
        fill(state)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(small_disk / "state.db"))
    assert state.settings("nothing") == {}
    state.close()


def test_what_ends_on_a_full_disk_ends_well_and_its_intent_goes_with_the_next(small_disk: Path) -> None:
    state = State(small_disk / "state.db")
    with state.intent("kind", {}):
        with suppress(OSError), open(small_disk / "rest", "wb", buffering=0) as rest:
            while rest.write(bytes(4096)):
                pass
        with pytest.raises(OSError, match=r"state\.db") as caught:
            fill(state)
        assert caught.value.errno == errno.ENOSPC
    assert len(state.pending()) == 1
    (small_disk / "rest").unlink()
    with state.intent("kind", {}):
        assert len(state.pending()) == 2
    assert state.pending() == []
    state.close()
