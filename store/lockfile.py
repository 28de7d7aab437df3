"""The lock files of a store (FORMAT 3): who may read or write a table now, and when it changed.

Kernel locks are whole-file record locks, which containers/storage takes as process-wide POSIX locks
and we take as *open file description* locks (fcntl(2)). The two kinds exclude each other, but ours
belong to one descriptor: threads of this process exclude each other by the same means, and closing
another descriptor of the file loses nothing.

The first 64 bytes of a lock file are its *stamp*, rewritten with every change of the data it guards.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar, Final

from drivers import syscalls
from store.config import DEFAULT_TIMEOUT
from store.errors import LockTimeout, StoreReadOnly

F_OFD_GETLK: Final = 36
F_OFD_SETLK: Final = 37
F_OFD_SETLKW: Final = 38

STAMP_SIZE: Final = 64

_FLOCK: Final = struct.Struct("@hhqqi4x")
"""struct flock: type, whence, start, length, pid. The pid must be 0 for these commands."""
_SPIN: Final = (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008)
"""Seconds between attempts before a helper thread queues for the lock in the kernel."""
_counter: Final = itertools.count(1)


def _flock(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, _flock(kind))
    except (BlockingIOError, PermissionError):
        return False
    return True


class _Waiter(threading.Thread):
    """Queues for a lock in the kernel, so that a busy lock cannot starve us, and can be given up."""

    def __init__(self, fd: int, kind: int) -> None:
        super().__init__(name="lock waiter", daemon=True)
        self.fd = fd
        self.kind = kind
        self.done = threading.Event()
        self.error: OSError | None = None
        self._guard = threading.Lock()
        self._abandoned = False

    def run(self) -> None:
        try:
            fcntl.fcntl(self.fd, F_OFD_SETLKW, _flock(self.kind))
        except OSError as error:
            self.error = error
        with self._guard:
            self.done.set()
            if self._abandoned:
                os.close(self.fd)

    def acquire(self, timeout: float) -> bool:
        """Wait for the lock; without it the descriptor is closed, now or as soon as the kernel lets go."""
        self.start()
        self.done.wait(timeout)
        with self._guard:
            self._abandoned = not self.done.is_set()
        if self._abandoned:
            return False
        if self.error is not None:
            os.close(self.fd)
            raise self.error
        return True


class Hold:
    """One hold of a lock, from the beginning of a ``with`` block to its end."""

    __slots__ = ("_lock", "fd", "kind", "timeout")

    def __init__(self, lock: LockFile, kind: int, timeout: float | None) -> None:
        self._lock = lock
        self.kind = kind
        self.timeout = timeout
        self.fd = -1

    def __enter__(self) -> None:
        self._lock._take(self)

    def __exit__(self, *exc_info: object) -> None:
        self._lock._release(self)


class LockFile:
    """One lock file of a store; use :meth:`get`, which keeps one object per file.

    Args:
        path: the file; created empty when first locked, mode 0644.
        read_only: open it for reading only and refuse to write-lock it. A missing file on read-only
            media then needs no lock at all.
    """

    _known: ClassVar[dict[tuple[str, bool], LockFile]] = {}
    _known_guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.read_only = read_only
        self._holders: dict[int, Hold] = {}
        """By thread."""

    @classmethod
    def get(cls, path: Path, *, read_only: bool = False) -> LockFile:
        """The lock object of ``path``, the same for every spelling of the path."""
        real = os.path.realpath(path)
        with cls._known_guard:
            return cls._known.setdefault((real, read_only), cls(Path(real), read_only=read_only))

    def __repr__(self) -> str:
        return f"LockFile({str(self.path)!r})"

    def touch(self) -> None:
        """Create the file when it is missing, empty as containers/storage does."""
        os.close(self._open())

    def reading(self, timeout: float | None = None) -> Hold:
        """Hold the lock shared while in the block.

        Raises:
            LockTimeout: somebody kept it exclusively for more than ``timeout`` seconds.
        """
        return Hold(self, fcntl.F_RDLCK, timeout)

    def writing(self, timeout: float | None = None) -> Hold:
        """Hold the lock exclusively while in the block.

        Raises:
            LockTimeout: others kept it for more than ``timeout`` seconds.
            StoreReadOnly: the lock belongs to a read-only store.
        """
        if self.read_only:
            raise StoreReadOnly(f"{self.path.parent} belongs to a read-only store")
        return Hold(self, fcntl.F_WRLCK, timeout)

    def _take(self, hold: Hold) -> None:
        """Lock the file for this thread; read-only media without it need no lock."""
        me = threading.get_ident()
        if (mine := self._holders.get(me)) is not None:
            how = "shared" if mine.kind == fcntl.F_RDLCK else "exclusively"
            raise RuntimeError(f"{self.path} is already locked by this thread ({how})")
        try:
            fd = self._open()
        except OSError:
            if not self.read_only or self.path.exists():
                raise
            return
        hold.fd = self._acquire(fd, hold.kind, DEFAULT_TIMEOUT if hold.timeout is None else hold.timeout)
        self._holders[me] = hold

    def _release(self, hold: Hold) -> None:
        if hold.fd >= 0:
            del self._holders[threading.get_ident()]
            os.close(hold.fd)

    def _open(self) -> int:
        flags = (os.O_RDONLY if self.read_only else os.O_RDWR) | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self.path, flags, 0o644)
        except OSError:
            if self.read_only and self.path.exists():
                return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            raise

    def _acquire(self, fd: int, kind: int, timeout: float) -> int:
        """Lock ``fd``, which is closed on failure."""
        deadline = time.monotonic() + timeout
        owned = True
        try:
            for pause in _SPIN:
                if pause:  # even a sleep of nothing takes a while
                    time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
                if _try(fd, kind):
                    owned = False
                    return fd
            waiter = _Waiter(fd, kind)
            owned = False
            if waiter.acquire(max(0.0, deadline - time.monotonic())):
                return fd
        finally:
            if owned:
                os.close(fd)
        raise self._timeout(kind, timeout)

    def _timeout(self, kind: int, timeout: float) -> LockTimeout:
        holders = self.holders()
        if os.getpid() in holders and self._holders:
            who = "this process"
        else:
            who = ", ".join(f"process {pid} ({_command(pid)})" for pid in holders) or "another process"
        need = "shared" if kind == fcntl.F_RDLCK else "exclusive"
        return LockTimeout(
            f"{self.path} has been locked by {who} for more than {timeout:g} s and {need} access is needed; "
            "try again when it has finished",
            path=str(self.path),
            holders=holders,
        )

    def held(self) -> bool:
        """Whether anybody holds the lock now; false for a file that does not exist."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            answer = fcntl.fcntl(fd, F_OFD_GETLK, _flock(fcntl.F_WRLCK))
        finally:
            os.close(fd)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def holders(self) -> tuple[int, ...]:
        """Processes that hold the lock now, as the kernel shows them in ``/proc/PID/fdinfo``."""
        try:
            wanted = os.stat(self.path)
        except FileNotFoundError:
            return ()
        found = set()
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with contextlib.suppress(OSError):
                if _holds(pid, wanted):
                    found.add(pid)
        return tuple(sorted(found))

    # -- the stamp -------------------------------------------------------------------------------

    def token(self) -> bytes:
        """The stamp now; empty when nothing was ever stamped."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(fd, STAMP_SIZE, 0)
        finally:
            os.close(fd)

    def changed(self, token: bytes) -> bool:
        """Whether the stamp differs from ``token``."""
        return self.token() != token

    def stamp(self) -> bytes:
        """Tell others that the data changes; call it before the change, with the lock held exclusively.

        Format (FORMAT 3.3): nanoseconds, a counter, our process ID, random bytes.
        """
        fixed = struct.pack("<QQI", time.time_ns(), next(_counter), os.getpid())
        token = fixed + os.urandom(STAMP_SIZE - len(fixed))
        hold = self._holders.get(threading.get_ident())
        if hold is None or hold.kind != fcntl.F_WRLCK:
            raise RuntimeError(f"{self.path} is not locked exclusively by this thread")
        os.pwrite(hold.fd, token, 0)
        return token


class LockSet:
    """Lock files that are held together and always taken in this order."""

    def __init__(self, locks: Iterable[LockFile]) -> None:
        self._locks = tuple(locks)

    @contextmanager
    def reading(self, timeout: float | None = None) -> Iterator[None]:
        """Hold all shared, waiting for each as :meth:`LockFile.reading` does."""
        with ExitStack() as held:
            for lock in self._locks:
                held.enter_context(lock.reading(timeout))
            yield

    @contextmanager
    def writing(self, timeout: float | None = None) -> Iterator[None]:
        """Hold all exclusively, waiting for each as :meth:`LockFile.writing` does."""
        with ExitStack() as held:
            for lock in self._locks:
                held.enter_context(lock.writing(timeout))
            yield

    def stamp(self) -> None:
        """Stamp all, whichever data changed: tools look at one of them only."""
        for lock in self._locks:
            lock.stamp()


def _holds(pid: int, wanted: os.stat_result) -> bool:
    for name in os.listdir(f"/proc/{pid}/fd"):
        if syscalls.known_file(f"/proc/{pid}/fd/{name}")[:2] != (wanted.st_dev, wanted.st_ino):
            continue
        with open(f"/proc/{pid}/fdinfo/{name}", encoding="ascii", errors="replace") as info:
            if any(line.startswith("lock:") for line in info):
                return True
    return False


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "gone"
