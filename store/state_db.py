"""SQLite connections to one file: shared by threads and processes, and replaced when the file is.

A connection serves one thread at a time and is then reused. Before each use the file on disk is
compared with the one the connection has open: if somebody deleted or replaced it, all connections
are dropped and the schema is made anew. A file SQLite cannot read is moved aside.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import struct
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar

from store.replacing import settle_file
from store.state_schema import MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

T = TypeVar("T")
_File = tuple[int, int]  # device and inode
_LONG = struct.Struct("l")
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOCOW_FL = 0x80086601, 0x40086602, 0x00800000
"""<linux/fs.h>; the ioctls' argument is a ``long`` by their number."""
BUSY_TIMEOUT = 10.0
"""Seconds to wait for another process's transaction."""
INDEX_FILE = "-shm"
LOG_FILE = "-wal"
SIDE_FILES = (LOG_FILE, INDEX_FILE)
"""What SQLite keeps beside a database in WAL mode (sqlite.org/wal.html)."""


class Database:
    """A pool of connections to ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._epoch = 0
        self._guard = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._file: _File | None = None
        self._held = threading.local()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.write(lambda _: None)

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Run ``work`` in a write transaction; ``durable`` survives a power failure at return.

        A damaged file is moved aside and ``work`` runs once more, on an empty one.

        Raises:
            OSError: ENOSPC, EROFS, ETIMEDOUT (locked too long) or EIO, with the path
        """
        synchronous = "FULL" if durable else "NORMAL"
        return self._run(work, f"PRAGMA synchronous = {synchronous}", "BEGIN IMMEDIATE")

    def settle(self) -> None:
        """Have what was written on the disk with the next commit of the filesystem, or now."""
        with suppress(FileNotFoundError):
            settle_file(self.path.with_name(f"{self.path.name}{LOG_FILE}"))

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` on one consistent state; waits for no writer. Raises as :meth:`write`."""
        held: sqlite3.Connection | None = getattr(self._held, "connection", None)
        if held is None:
            return self._run(work, "BEGIN DEFERRED")
        try:
            return work(held)
        except sqlite3.DatabaseError as error:
            _raise_os_error(error, self.path)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let all that this thread reads in the block be of one state, at a fraction of the cost.

        Raises as :meth:`write`.
        """
        if getattr(self._held, "connection", None) is not None:
            yield
            return
        self.read(lambda _: None)  # so that damage is found, and mended, outside
        try:
            with self._borrowed() as (connection, _):
                connection.execute("BEGIN DEFERRED")
                self._held.connection = connection
                try:
                    yield
                finally:
                    self._held.connection = None
                    _roll_back(connection)
        except sqlite3.DatabaseError as error:
            _raise_os_error(error, self.path)

    def epoch(self) -> int:
        """A number that grows whenever the content was lost: file new, deleted, or moved aside.

        Whoever derives rows from elsewhere learns from it when to derive them again. Raises as
        :meth:`write`.
        """
        with self._guard:
            if self._file is not None and _identity(self.path) == self._file:
                return self._epoch
        self.read(lambda _: None)
        return self._epoch

    def close(self) -> None:
        """Close every idle connection; the next use opens new ones."""
        with self._guard:
            idle, self._idle, self._file = self._idle, [], None
        for connection in idle:
            connection.close()

    def _run(self, work: Callable[[sqlite3.Connection], T], *before: str) -> T:
        try:
            return self._attempt(work, before)
        except _Damaged as damage:
            with self._guard:
                self._rename_aside(str(damage), damage.file)
        try:
            return self._attempt(work, before)
        except _Damaged as damage:
            raise OSError(errno.EIO, f"fsd's state: {damage}", str(self.path)) from damage

    def _attempt(self, work: Callable[[sqlite3.Connection], T], before: Sequence[str]) -> T:
        file = None
        try:
            with self._borrowed() as (connection, file):
                for statement in before:
                    connection.execute(statement)
                try:
                    result = work(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    _roll_back(connection)
                    raise
                return result
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                raise _Damaged(str(error), file) from error
            _raise_os_error(error, self.path)

    @contextmanager
    def _borrowed(self) -> Iterator[tuple[sqlite3.Connection, _File]]:
        connection, file = self._take()
        try:
            yield connection, file
        except sqlite3.OperationalError as error:
            # With the last connection SQLite removes its side files, which a full disk has no room for anew.
            self._return(connection, file, keep=not connection.in_transaction and not _is_damage(error))
            raise
        except BaseException:
            connection.close()
            raise
        self._return(connection, file, keep=True)

    def _return(self, connection: sqlite3.Connection, file: _File, *, keep: bool) -> None:
        """Let others have a connection, unless the file was replaced meanwhile."""
        with self._guard:
            keep = keep and self._file == file
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def _take(self) -> tuple[sqlite3.Connection, _File]:
        with self._guard:
            current = _identity(self.path)
            if current is None or current != self._file:
                self._open_anew()
            assert self._file is not None
            connection = self._idle.pop() if self._idle else _connect(self.path)
            return connection, self._file

    def _open_anew(self) -> None:
        """Drop connections to a file that is gone, and prepare the one that is there now."""
        stale, self._idle = self._idle, []
        for connection in stale:
            connection.close()
        before = _identity(self.path)
        try:
            connection = self._prepared()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._rename_aside(str(error), before)
            connection = self._prepared()
        self._idle.append(connection)
        self._file = _identity(self.path)
        self._epoch += 1

    def _prepared(self) -> sqlite3.Connection:
        connection = _connect(self.path)
        try:
            _check(connection)
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _rename_aside(self, why: str, file: _File | None) -> None:
        """Rename ``file`` and its side files, to be looked at later, unless somebody else did so already."""
        if file is None or _identity(self.path) != file:
            return
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{os.getpid()}")
        for suffix in ("", *SIDE_FILES):
            source = f"{self.path}{suffix}"
            if os.path.lexists(source):
                os.rename(source, f"{aside}{suffix}")
        log.error("%s cannot be used (%s): moved to %s, starting with an empty one", self.path, why, aside)


class _Damaged(Exception):
    """SQLite cannot use ``file``, which was the state file then."""

    def __init__(self, why: str, file: _File | None) -> None:
        super().__init__(why)
        self.file = file


class _TooNew(sqlite3.DatabaseError):
    """The file was written by a later version with tables this one does not know."""


def _connect(path: Path) -> sqlite3.Connection:
    _make_index_file(path.with_name(f"{path.name}{INDEX_FILE}"))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def _make_index_file(path: Path) -> None:
    """Make the file SQLite maps into memory, such that writing to it needs no space on a full disk.

    On a copy-on-write filesystem a write to a mapped page may need new space, and a process that finds
    none is killed by SIGBUS. SQLite writes each page once when it makes the file, so that without
    copy-on-write (btrfs(5), "nodatacow") all it will ever need is there.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError:  # it is there, or nothing can be made here: SQLite says so itself
        return
    try:
        flags = bytearray(_LONG.size)
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags)
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, _LONG.pack(_LONG.unpack(flags)[0] | FS_NOCOW_FL))
    except OSError:
        pass  # no such flag, and no copy-on-write
    finally:
        os.close(fd)


def _check(connection: sqlite3.Connection) -> None:
    """Switch to WAL and let SQLite read every page once; the file is small."""
    connection.execute("PRAGMA journal_mode = WAL")
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"quick_check: {verdict}")


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise _TooNew(f"version {version} of the schema, this fsd knows {len(MIGRATIONS)}")
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


def _statements(script: str) -> Iterator[str]:
    """Split a script; ``executescript`` would commit the transaction first."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _identity(path: Path) -> _File | None:
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Damage comes as the bare class; what a program or the disk did wrong has subclasses.

    A file emptied under an open connection shows as a missing table.
    """
    return type(error) in (sqlite3.DatabaseError, _TooNew) or "no such table" in str(error)


def _raise_os_error(error: sqlite3.DatabaseError, path: Path) -> NoReturn:
    """An ``OSError`` for a failure of the file or the disk; anything else is a bug and stays itself."""
    text = str(error)
    if isinstance(error, (sqlite3.ProgrammingError, sqlite3.IntegrityError)):
        raise error
    number = next((n for part, n in _ERRNO_OF_TEXT.items() if part in text), errno.EIO)
    full = number == errno.ENOSPC  # said in the words of everybody else who meets a full disk
    raise OSError(number, os.strerror(number) if full else f"fsd's state: {text}", str(path)) from error


# Before Python 3.11 an error does not carry SQLite's code; these texts are sqlite3ErrStr's.
_ERRNO_OF_TEXT = {
    "disk is full": errno.ENOSPC,
    "readonly database": errno.EROFS,
    "is locked": errno.ETIMEDOUT,
}
