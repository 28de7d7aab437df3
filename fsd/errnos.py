"""What a failure looks like to the program that made the system call.

One table maps exceptions of the layers below to errno; the most specific class wins. ``OSError`` keeps
its own number. Anything the table does not know is a defect: it is logged with its traceback and
becomes EIO. :func:`barrier` puts that between every handler and the FUSE loop, which dies of any
exception but ``FUSEError``.

The text of a failure is kept in an :class:`ErrorRing` (``control/errors``) and answers the extended
attribute ``user.fsd.error`` of the path it happened on.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3

from drivers import errors as driver
from store import errors as store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger("fsd")

ERROR_XATTR = b"user.fsd.error"
DEFECT = "internal error"
"""How the text of a failure nobody foresaw begins."""

ERRNOS: dict[type[BaseException], int] = {
    store.Unknown: errno.ENOENT,
    store.Taken: errno.EEXIST,
    store.Busy: errno.EBUSY,
    store.LayerHasChildren: errno.ENOTEMPTY,
    store.Invalid: errno.EINVAL,
    store.NotPristine: errno.ENOTEMPTY,
    store.StoreReadOnly: errno.EROFS,
    store.LockTimeout: errno.ETIMEDOUT,
    store.BadRecord: errno.EIO,
    store.LayerNotMounted: errno.EINVAL,
    store.SizeUnknown: errno.ENODATA,
    store.DigestUnknown: errno.ENODATA,
    driver.LayerUnknown: errno.ENOENT,
    driver.SnapshotUnknown: errno.ENOENT,
    driver.LayerExists: errno.EEXIST,
    driver.SnapshotExists: errno.EEXIST,
    driver.LayerMounted: errno.EBUSY,
    driver.BadLayerID: errno.EINVAL,
    driver.BadOption: errno.EINVAL,
    driver.ArchiveError: errno.EINVAL,
    driver.IntegrityError: errno.EIO,
    driver.SeveralDrivers: errno.EINVAL,
    driver.NotSupported: errno.EOPNOTSUPP,
    driver.PrerequisitesMissing: errno.EOPNOTSUPP,
    driver.IncompatibleFilesystem: errno.EOPNOTSUPP,
}

REMEDIES = {
    errno.ENOSPC: "the filesystem of the graphroot is full: see control/prune/preview for what can go",
    errno.EDQUOT: "a quota of the filesystem is used up: see the 'limit' of the container",
    errno.EROFS: "the filesystem of the graphroot is mounted read-only",
    errno.EIO: "the disk or the filesystem failed: see the kernel's log",
}
"""What can be done where the system itself refused."""


def errno_of(exc: BaseException) -> int | None:
    """The errno of a known failure; ``None`` for a defect."""
    if isinstance(exc, OSError):
        return exc.errno or errno.EIO
    for cls in type(exc).__mro__:
        if cls in ERRNOS:
            return ERRNOS[cls]
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One refused or failed operation; ``time_ns`` is since the epoch, ``inode`` where it was seen.

    ``child`` is the node of the entry there that it was about, 0 if there is none.
    """

    time_ns: int
    pid: int
    uid: int
    operation: str
    path: str
    number: int
    text: str
    inode: int
    child: int = 0

    def __str__(self) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.time_ns // 10**9))
        name = errno.errorcode.get(self.number, str(self.number))
        text = " ".join(self.text.split())
        return f"{stamp} pid={self.pid} uid={self.uid} op={self.operation} path={self.path} {name}: {text}"


class ErrorRing:
    """The last failures, oldest first. Reading does not clear it."""

    def __init__(self, size: int = 64) -> None:
        self._failures: deque[Failure] = deque(maxlen=size)
        self.total = 0
        """How many there ever were."""
        self.told: Callable[[list[int]], object] = lambda nodes: None
        """Told of the nodes there is a text about, whenever there is another."""

    def add(self, failure: Failure) -> None:
        """Remember a failure; the oldest one goes when the ring is full."""
        self._failures.append(failure)
        self.total += 1
        nodes = {node for kept in list(self._failures) for node in (kept.inode, kept.child) if node}
        self.told(list(nodes))
        log.info("%s", failure)

    def note(self, operation: str, path: str, number: int, text: str) -> None:
        """Remember a failure of fsd's own work, which no process asked for."""
        self.add(
            Failure(
                time_ns=time.time_ns(),
                pid=0,
                uid=0,
                operation=operation,
                path=path,
                number=number,
                text=text,
                inode=0,
            )
        )

    def text_for(self, inode: int) -> str | None:
        """Text of the newest failure on ``inode``."""
        return next((f.text for f in reversed(self._failures) if inode in (f.inode, f.child)), None)

    def since(self, time_ns: int, *, number: int = 0, defects: bool = False) -> int:
        """How many kept failures are not older: with that errno, or, with ``defects``, unforeseen ones."""
        found = [failure for failure in self._failures if failure.time_ns >= time_ns]
        found = [failure for failure in found if not number or failure.number == number]
        return sum(1 for failure in found if not defects or failure.text.startswith(DEFECT))

    def __str__(self) -> str:
        return "".join(f"{failure}\n" for failure in self._failures)

    def __len__(self) -> int:
        return len(self._failures)


T = TypeVar("T", bound=pyfuse3.Operations)


def barrier(cls: type[T]) -> type[T]:
    """Class decorator: let nothing but ``FUSEError`` leave any handler of an Operations class.

    The class must offer a coroutine ``report(operation, args, number, text)``, which is told of every
    failure that carries a text, that is, of everything but a bare ``FUSEError``.
    """
    for name, method in list(vars(cls).items()):
        if inspect.iscoroutinefunction(method) and hasattr(pyfuse3.Operations, name):
            setattr(cls, name, _guard(name, method))
    return cls


def _guard(name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def handler(self: Any, *args: Any) -> Any:
        try:
            return await method(self, *args)
        except pyfuse3.FUSEError:
            raise
        except Exception as exc:
            number, text = explain(_single(exc), name)
            await self.report(name, args, number, text)
            raise pyfuse3.FUSEError(number) from exc

    return handler


def explain(exc: BaseException, operation: str) -> tuple[int, str]:
    """Errno and text of a failure; a defect is logged with its traceback."""
    number = errno_of(exc)
    if number is None:
        log.error("unforeseen failure in %s", operation, exc_info=exc)
        return errno.EIO, f"{DEFECT}: {type(exc).__name__}: {exc}"
    if isinstance(exc, OSError):
        return number, _text(exc, number)
    return number, str(exc)


def _text(exc: OSError, number: int) -> str:
    """The text of a failure; where the system gave it, with the file it is about and what can be done."""
    text = exc.strerror or str(exc)
    if text not in ("", os.strerror(number)):
        return text
    place = f"{os.fsdecode(exc.filename)}: " if isinstance(exc.filename, str | bytes) else ""
    remedy = f"; {REMEDIES[number]}" if number in REMEDIES else ""
    return f"{place}{os.strerror(number)}{remedy}"


def _single(exc: BaseException) -> BaseException:
    """The one failure inside a group that holds only one (nurseries wrap what they raise)."""
    inner = getattr(exc, "exceptions", None)
    while isinstance(inner, tuple) and len(inner) == 1:
        exc = inner[0]
        inner = getattr(exc, "exceptions", None)
    return exc
