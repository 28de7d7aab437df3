"""fsd's own state beside a store: snapshots, view numbers, intents, sizes, bursts, settings.

It is one SQLite file, ``<graphroot>/fsd/state.db`` (``store/state_schema.py`` describes its
tables), shared by every thread and process that works on the store. Nothing in it is needed to
find data: without it snapshots are found on disk again, and views get new numbers.
"""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivers.processes import own_start, started
from store.errors import StoreReadOnly
from store.state_db import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping

STATE_FILE = "fsd/state.db"
"""Below the graphroot."""
CHOICES = ("on-write", "pinned")
"""Settings that people make."""
VIEW_NUMBERS = 2**21
"""View numbers are 1 up to this, exclusive: they share a 64-bit inode number with a file's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known of one snapshot; the columns of table ``snapshots``."""

    container_id: str
    name: str
    created_ns: int
    reason: str
    generation: int = -1
    pinned: bool = False
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """An operation that began and has not ended; ``alive`` while the process that began it is."""

    id: int
    kind: str
    details: Mapping[str, Any]
    begun_ns: int
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A measured size in bytes, the layer's generation then, and when it was measured."""

    bytes: int
    generation: int
    measured_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What an object holds, in bytes; the columns of table ``measures``."""

    object: str
    basis: str
    size: int
    exclusive: int | None
    shared: int | None
    freed: int | None
    method: str
    measured_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstTimes:
    """When the latest burst of a container began, and its last recorded mutation."""

    started_ns: int
    mutated_ns: int


class State:
    """The state file at ``path``; made, with its directory, when it is missing.

    Args:
        kept: false for a copy that nobody reads later, in which nothing can be chosen.

    Methods are safe to call from any thread. Each raises ``OSError`` with errno and path when the
    file cannot be read or written; damage to the file is repaired by starting an empty one.
    """

    def __init__(self, path: Path, *, kept: bool = True) -> None:
        self.path = Path(path)
        self._kept = kept
        self._db = Database(self.path)
        self._ended: set[int] = set()
        """Intents of ours that ended and are still to be removed."""
        self.followers: list[Callable[[str], object]] = []
        """Told of each object, as ``containers/<id>``, about which this process wrote something down."""

    @property
    def epoch(self) -> int:
        """Grows whenever rows may have been lost, so that they are to be derived again."""
        return self._db.epoch()

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        self._db.close()

    def changed(self, obj: str) -> None:
        """Tell the followers of an object."""
        for told in self.followers:
            told(obj)

    def reading(self) -> AbstractContextManager[None]:
        """A block in which this thread reads one state, and many rows cheaply."""
        return self._db.reading()

    # -- snapshots -----------------------------------------------------------------------------

    def snapshots(self, container_id: str | None = None) -> list[Snapshot]:
        """The snapshots of one container, or of all, oldest first."""
        where, values = ("WHERE container_id = ?", [container_id]) if container_id else ("", [])
        query = f"SELECT * FROM snapshots {where} ORDER BY created_ns, container_id, name"
        return [_snapshot(row) for row in self._rows(query, values)]

    def latest_generations(self) -> dict[str, int]:
        """The generation of each container's latest snapshot, as :meth:`snapshots` orders them."""
        query = "SELECT container_id, generation FROM snapshots ORDER BY created_ns, name"
        return {row["container_id"]: row["generation"] for row in self._rows(query, [])}

    def snapshot(self, container_id: str, name: str) -> Snapshot | None:
        """One snapshot, or ``None``."""
        query = "SELECT * FROM snapshots WHERE container_id = ? AND name = ?"
        rows = self._rows(query, [container_id, name])
        return _snapshot(rows[0]) if rows else None

    def put_snapshot(self, row: Snapshot, *, durable: bool = False, replace: bool = True) -> None:
        """Add a snapshot.

        Args:
            durable: be on disk at return.
            replace: replace what is known of it already; otherwise that stays.
        """
        columns = tuple(Snapshot.__dataclass_fields__)
        marks = ", ".join("?" * len(columns))
        otherwise = "REPLACE" if replace else "IGNORE"
        self._execute(
            f"INSERT OR {otherwise} INTO snapshots ({', '.join(columns)}) VALUES ({marks})",
            [getattr(row, column) for column in columns],
            durable=durable,
        )
        self.changed(f"containers/{row.container_id}")

    def drop_snapshot(self, container_id: str, name: str) -> None:
        """Forget a snapshot; nothing happens when it is not known."""
        self._execute("DELETE FROM snapshots WHERE container_id = ? AND name = ?", [container_id, name])
        self.changed(f"containers/{container_id}")

    # -- views ---------------------------------------------------------------------------------

    def view_number(self, key: str) -> int:
        """The number of view ``key``, always the same; a new key gets one that no key has.

        Raises:
            OverflowError: all numbers are in use
        """
        rows = self._rows("SELECT number FROM views WHERE key = ?", [key])
        return int(rows[0]["number"]) if rows else self._db.write(lambda c: _new_view_number(c, key))

    def view_keys(self) -> list[str]:
        """The keys of all views that have a number."""
        return [row["key"] for row in self._rows("SELECT key FROM views ORDER BY number", [])]

    def drop_views(self, keys: Iterable[str]) -> None:
        """Free the numbers of views that will not be shown again."""
        rows = [(key,) for key in keys]
        if rows:
            self._db.write(lambda c: c.executemany("DELETE FROM views WHERE key = ?", rows))

    # -- intents -------------------------------------------------------------------------------

    def begin(self, kind: str, details: Mapping[str, Any], *, settled: bool = False) -> int:
        """Record, durably, that an operation begins; the ID is for :meth:`done`.

        Args:
            details: what is needed to finish or undo the operation; must be JSON.
            settled: leave it to the operation to :func:`store.replacing.secure` this with its own files.
        """
        text = json.dumps(details, sort_keys=True)

        def insert(connection: sqlite3.Connection) -> int:
            cursor = connection.execute(
                "INSERT INTO intents (kind, details, owner, begun_ns) VALUES (?, ?, ?, ?)",
                [kind, text, _owner(os.getpid()), time.time_ns()],
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

        intent_id = self._db.write(insert, durable=not settled)
        self._ended.discard(intent_id)  # of a file that was lost
        if settled:
            self._db.settle()
        return intent_id

    def done(self, intent_id: int) -> None:
        """The operation ended, or was undone. On a full disk that is written down with the next that ends."""
        self._ended.add(intent_id)
        ended = list(self._ended)
        with unless_full():
            self._db.write(lambda c: c.executemany("DELETE FROM intents WHERE id = ?", [(i,) for i in ended]))
            self._ended.difference_update(ended)

    @contextmanager
    def intent(self, kind: str, details: Mapping[str, Any], *, settled: bool = False) -> Iterator[int]:
        """:meth:`begin` and :meth:`done` around a block that cleans up after its own failures."""
        intent_id = self.begin(kind, details, settled=settled)
        try:
            yield intent_id
        finally:
            self.done(intent_id)

    def pending(self) -> list[Intent]:
        """Operations that have not ended, oldest first."""
        return [_intent(row) for row in self._rows("SELECT * FROM intents ORDER BY id", [])]

    # -- sizes, bursts, settings ---------------------------------------------------------------

    def size(self, key: str) -> Size | None:
        """The size last measured under ``key``."""
        rows = self._rows("SELECT bytes, generation, measured_ns FROM sizes WHERE key = ?", [key])
        return Size(**dict(rows[0])) if rows else None

    def put_sizes(self, sizes: Mapping[str, Size]) -> None:
        """Remember measured sizes by their keys, all or none."""
        rows = [(key, size.generation, size.bytes, size.measured_ns) for key, size in sizes.items()]
        statement = "INSERT OR REPLACE INTO sizes (key, generation, bytes, measured_ns) VALUES (?, ?, ?, ?)"
        self._db.write(lambda connection: connection.executemany(statement, rows))

    def measure(self, obj: str) -> Measure | None:
        """What was last measured of an object such as ``layers/<id>``."""
        rows = self._rows("SELECT * FROM measures WHERE object = ?", [obj])
        return Measure(**dict(rows[0])) if rows else None

    def measures(self) -> dict[str, Measure]:
        """Everything that was measured, by object."""
        return {row["object"]: Measure(**dict(row)) for row in self._rows("SELECT * FROM measures", [])}

    def put_measure(self, row: Measure) -> None:
        """Remember what an object holds."""
        columns = tuple(Measure.__dataclass_fields__)
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        values = [getattr(row, column) for column in columns]
        self._execute(f"INSERT OR REPLACE INTO measures ({names}) VALUES ({marks})", values)
        self.changed(row.object)

    def drop_measures(self, objects: Iterable[str]) -> None:
        """Forget what was measured of objects that are gone."""
        rows = [(obj,) for obj in objects]
        self._db.write(lambda c: c.executemany("DELETE FROM measures WHERE object = ?", rows))

    def burst(self, container_id: str) -> BurstTimes | None:
        """The times of a container's latest burst; ``None`` when it was never written through us."""
        query = "SELECT started_ns, mutated_ns FROM bursts WHERE container_id = ?"
        rows = self._rows(query, [container_id])
        return BurstTimes(**dict(rows[0])) if rows else None

    def put_burst(self, container_id: str, times: BurstTimes) -> None:
        """Remember the times of a container's latest burst."""
        self._execute(
            "INSERT OR REPLACE INTO bursts (container_id, started_ns, mutated_ns) VALUES (?, ?, ?)",
            [container_id, times.started_ns, times.mutated_ns],
        )

    def settings(self, obj: str) -> dict[str, str]:
        """All settings of an object such as ``containers/<id>``."""
        rows = self._rows("SELECT key, value FROM settings WHERE object = ? ORDER BY key", [obj])
        return {row["key"]: row["value"] for row in rows}

    def settings_of(self, key: str) -> dict[str, str]:
        """The objects that have the setting ``key``, and its values."""
        rows = self._rows("SELECT object, value FROM settings WHERE key = ? ORDER BY object", [key])
        return {row["object"]: row["value"] for row in rows}

    def set_setting(self, obj: str, key: str, value: str | None) -> None:
        """Choose a value for an object; ``None`` returns to the default.

        Raises:
            StoreReadOnly: people chose it, and it would be lost.
        """
        if not self._kept and key in CHOICES:
            raise StoreReadOnly(f"{key} cannot be chosen in a store that is on read-only media")
        if value is None:
            self._execute("DELETE FROM settings WHERE object = ? AND key = ?", [obj, key])
        else:
            self._execute("INSERT OR REPLACE INTO settings VALUES (?, ?, ?)", [obj, key, value])
        self.changed(obj)

    def objects(self) -> list[str]:
        """Everything settings, measures or bursts are kept for, as ``containers/<id>``; also what is gone."""
        query = (
            "SELECT object FROM settings UNION SELECT object FROM measures "
            "UNION SELECT 'containers/' || container_id FROM bursts"
        )
        return [row["object"] for row in self._rows(query, [])]

    def forget_container(self, container_id: str) -> None:
        """Drop what is kept for a container that was deleted; its snapshots' rows stay."""
        obj = f"containers/{container_id}"

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM bursts WHERE container_id = ?", [container_id])
            connection.execute("DELETE FROM settings WHERE object = ?", [obj])
            connection.execute("DELETE FROM measures WHERE object = ?", [obj])
            for table in ("sizes", "views"):
                connection.execute(
                    f"DELETE FROM {table} WHERE key = ? OR substr(key, 1, ?) = ?",
                    [obj, len(obj) + 1, f"{obj}/"],
                )

        self._db.write(delete)
        self.changed(obj)

    def _rows(self, query: str, values: list[Any]) -> list[sqlite3.Row]:
        def fetch(connection: sqlite3.Connection) -> list[sqlite3.Row]:
            return connection.execute(query, values).fetchall()

        return self._db.read(fetch)

    def _execute(self, statement: str, values: list[Any], *, durable: bool = False) -> None:
        self._db.write(lambda connection: connection.execute(statement, values), durable=durable)


@contextmanager
def unless_full() -> Iterator[None]:
    """Around what only tidies up the state: a full disk must not keep anybody from removing things."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def journal(graphroot: Path, state: State | None) -> AbstractContextManager[State]:
    """``state`` as it is, or the state of the store at ``graphroot``, opened for one block."""
    return nullcontext(state) if state is not None else closing(State(graphroot / STATE_FILE))


def _snapshot(row: sqlite3.Row) -> Snapshot:
    values = dict(row)
    return Snapshot(**values | {"pinned": bool(values["pinned"]), "named": bool(values["named"])})


def _intent(row: sqlite3.Row) -> Intent:
    return Intent(
        id=row["id"],
        kind=row["kind"],
        details=json.loads(row["details"]),
        begun_ns=row["begun_ns"],
        alive=_is_alive(row["owner"]),
    )


def _new_view_number(connection: sqlite3.Connection, key: str) -> int:
    """One more than the highest; once those are used up, the lowest number that is free."""
    row = connection.execute("SELECT number FROM views WHERE key = ?", [key]).fetchone()
    if row:  # another thread was faster
        return int(row["number"])
    number = int(connection.execute("SELECT ifnull(max(number), 0) + 1 FROM views").fetchone()[0])
    if number >= VIEW_NUMBERS:
        number = _lowest_free_number(connection)
    connection.execute("INSERT INTO views (number, key) VALUES (?, ?)", [number, key])
    return number


def _lowest_free_number(connection: sqlite3.Connection) -> int:
    expected = 1
    for row in connection.execute("SELECT number FROM views ORDER BY number"):
        if row["number"] != expected:
            return expected
        expected += 1
    raise OverflowError(f"all {VIEW_NUMBERS - 1} view numbers are in use")


def _owner(pid: int) -> str:
    """A process for all time: the boot, the pid, and when it started (proc(5), stat field 22)."""
    return f"{_boot_id()} {pid} {own_start(pid)}"


def _is_alive(owner: str) -> bool:
    boot, pid, start = owner.split(" ")
    return boot == _boot_id() and start != "" and start == started(int(pid))


@lru_cache(maxsize=1)
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
