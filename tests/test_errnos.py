"""Every deliberate failure has an errno; defects become EIO; nothing reaches the FUSE loop."""

from __future__ import annotations

import errno
import os
from typing import Any

import pyfuse3
import pytest
import trio

from drivers import errors as driver_errors
from fsd.errnos import ErrorRing, Failure, barrier, errno_of, explain
from store import errors as store_errors


def _failures() -> list[type[Exception]]:
    found = []
    for module, base in ((store_errors, store_errors.StoreError), (driver_errors, driver_errors.DriverError)):
        found += [
            cls
            for cls in vars(module).values()
            if isinstance(cls, type) and issubclass(cls, base) and cls is not base
        ]
    return found


@pytest.mark.parametrize("cls", _failures(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_errno_is_known_for_every_error_class(cls):
    assert errno_of(cls("text")) is not None


def test_errno_most_specific_class_wins():
    assert errno_of(store_errors.LayerHasChildren("x")) == errno.ENOTEMPTY
    assert errno_of(store_errors.LayerUsedByImage("x")) == errno.EBUSY


def test_errno_of_oserror_is_its_own():
    assert errno_of(OSError(errno.ENOSPC, "full")) == errno.ENOSPC


def test_errno_of_a_defect_is_unknown():
    assert errno_of(KeyError("x")) is None


@barrier
class _Broken(pyfuse3.Operations):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, int, str]] = []

    async def report(self, operation: str, args: tuple[Any, ...], number: int, text: str) -> None:
        self.told.append((operation, number, text))

    async def getattr(self, inode: Any, ctx: Any) -> Any:
        raise KeyError("a defect")

    async def rmdir(self, parent_inode: Any, name: Any, ctx: Any) -> None:
        async with trio.open_nursery():
            raise store_errors.InUse("mounted by podman")

    async def lookup(self, parent_inode: Any, name: Any, ctx: Any) -> Any:
        raise pyfuse3.FUSEError(errno.ENOENT)


def _call(handler: str, *args: object) -> tuple[int, list[tuple[str, int, str]]]:
    operations = _Broken()

    async def run() -> int:
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await getattr(operations, handler)(*args)
        return caught.value.errno

    return trio.run(run), operations.told


def test_barrier_defect_becomes_eio(caplog):
    number, told = _call("getattr", 1, None)
    assert number == errno.EIO
    assert told[0][:2] == ("getattr", errno.EIO)
    assert "KeyError" in caplog.text


def test_barrier_failure_inside_a_nursery_keeps_its_errno():
    number, told = _call("rmdir", 1, b"x", None)
    assert (number, told) == (errno.EBUSY, [("rmdir", errno.EBUSY, "mounted by podman")])


def test_barrier_plain_fuse_error_passes_unreported():
    assert _call("lookup", 1, b"x", None) == (errno.ENOENT, [])


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (OSError(errno.EPERM, "use rmdir"), "use rmdir"),
        (OSError(errno.EBUSY, os.strerror(errno.EBUSY), "/g/x"), "/g/x: Device or resource busy"),
        (OSError(errno.EBUSY, os.strerror(errno.EBUSY), 7), "Device or resource busy"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), b"/g"), "/g: No space left on device; the file"),
    ],
)
def test_text_of_what_the_system_refused_says_where_and_what_to_do(failure, text):
    assert explain(failure, "mkdir")[1].startswith(text)


def test_ring_keeps_the_newest_and_finds_by_inode():
    ring = ErrorRing(size=2)
    for n in range(3):
        ring.add(
            Failure(
                time_ns=0,
                pid=n,
                uid=0,
                operation="mkdir",
                path=f"p{n}",
                number=errno.EEXIST,
                text=f"t\n{n}",
                inode=7,
            )
        )
    assert len(ring) == 2
    assert "p0" not in str(ring)
    assert ring.text_for(7) == "t\n2"
    assert ring.text_for(8) is None
    assert "1970-01-01T00:00:00Z pid=2 uid=0 op=mkdir path=p2 EEXIST: t 2\n" in str(ring)
