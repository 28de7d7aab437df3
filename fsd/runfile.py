"""Which daemon serves a store: ``<runroot>/fsd/daemon.json``, and the lock its process holds.

A record counts only while its process lives: pid and start time (proc(5), field 22) must both match, so a
reused pid is never mistaken for the daemon.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from drivers.processes import stat_fields

if TYPE_CHECKING:
    from collections.abc import Iterator


class AlreadyUp(Exception):
    """Another daemon serves this store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A daemon's record; ``started`` is in seconds since the epoch, ``ticks`` in clock ticks after boot."""

    pid: int
    ticks: int
    mountpoint: Path
    graphroot: Path
    started: float

    @property
    def alive(self) -> bool:
        """Whether the process that wrote the record still runs."""
        return start_ticks(self.pid) == self.ticks

    def serves(self, graphroot: Path) -> bool:
        """Whether that is the store it has: several may be told to keep their state in one runroot."""
        return os.path.realpath(graphroot) == os.path.realpath(self.graphroot)


def directory(runroot: Path) -> Path:
    """Where records, locks and logs of a store's daemon are."""
    return runroot / "fsd"


def start_ticks(pid: int) -> int:
    """When ``pid`` began, in clock ticks after boot; 0 when there is no such process, or it is a zombie."""
    try:
        fields = stat_fields(pid)
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def read(runroot: Path) -> Running | None:
    """The live daemon's record; ``None`` without one (a dead one's record is ignored)."""
    try:
        data = json.loads((directory(runroot) / "daemon.json").read_text(encoding="utf-8"))
        running = Running(
            pid=int(data["pid"]),
            ticks=int(data["ticks"]),
            mountpoint=Path(data["mountpoint"]),
            graphroot=Path(data["graphroot"]),
            started=float(data["started"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return running if running.alive else None


def serving(runroot: Path, graphroot: Path) -> Running | None:
    """The live daemon of the store with these places."""
    running = read(runroot)
    return running if running is not None and running.serves(graphroot) else None


def refuse(running: Running, graphroot: Path) -> NoReturn:
    """Raise ``AlreadyUp``: a daemon has the runroot; the text says what to do if its store is another."""
    text = f"fsd is already up at {running.mountpoint} (pid {running.pid})"
    if not running.serves(graphroot):
        text += f" with this runroot, for {running.graphroot}; choose another for {graphroot} with --runroot"
    raise AlreadyUp(text) from None


@contextlib.contextmanager
def registered(runroot: Path, *, graphroot: Path, mountpoint: Path) -> Iterator[None]:
    """Be the store's daemon for the length of a ``with`` block; ``AlreadyUp``."""
    home = directory(runroot)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(home / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(lock, runroot, graphroot)
        record = home / "daemon.json"
        _write(record, graphroot, mountpoint)
        try:
            yield
        finally:
            record.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _take(lock: int, runroot: Path, graphroot: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        running = read(runroot)
        if running is not None:
            refuse(running, graphroot)
        raise AlreadyUp("fsd is already up") from None


def _write(record: Path, graphroot: Path, mountpoint: Path) -> None:
    me = Running(
        pid=os.getpid(),
        ticks=start_ticks(os.getpid()),
        mountpoint=mountpoint,
        graphroot=graphroot,
        started=time.time(),
    )
    draft = record.with_suffix(".tmp")
    draft.write_text(json.dumps(asdict(me), default=str) + "\n", encoding="utf-8")
    draft.rename(record)
