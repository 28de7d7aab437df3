"""Letting everything written to a subvolume show in its generation, without waiting for the disk.

Data that a program wrote counts in a subvolume's ``ctransid`` once the kernel has given it a place on the
disk. A commit of the filesystem sees to that, and costs milliseconds. A snapshot sees to it for its source
alone, nowadays before it looks at the name it is to have (``btrfs_mksnapshot`` in ``fs/btrfs/ioctl.c``, by
the change "reduce lock contention when creating snapshot"), so that one with an impossible name does
nothing else. Nothing promises that order: it is tried once before it is relied on.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Flusher:
    """Has written data counted, by a flush where that works, else by a commit; thread-safe.

    Args:
        scratch_path: gives a free name for a subvolume to try it with.
        discard: removes a subvolume.
    """

    def __init__(self, scratch_path: Callable[[], Path], discard: Callable[[Path], None]) -> None:
        self._scratch_path = scratch_path
        self._discard = discard
        self._works: bool | None = None

    def settle(self, fd: int) -> None:
        """Have all that was written to an open subvolume counted in its ``ctransid``; ``OSError``."""
        if self._works is None:
            self._works = self._tried()
        if not self._works or not _flush(fd):
            btrfs_ioctl.sync(fd)

    def _tried(self) -> bool | None:
        """Whether a flush is enough; ``None`` where that cannot be tried now."""
        path = self._scratch_path()
        try:
            btrfs_ioctl.create_subvolume(path.parent, path.name)
        except OSError:
            return None
        try:
            return _shows_by_flush(path)
        except OSError:
            return None
        finally:
            self._discard(path)


def _flush(fd: int) -> bool:
    """Begin the snapshot that cannot be; false where the kernel would not begin one at all."""
    try:
        btrfs_ioctl.flush(fd)
    except btrfs_ioctl.BtrfsError:
        return False
    return True


def _shows_by_flush(path: Path) -> bool:
    """Whether a write to an empty subvolume counts after a flush, and did not before."""
    with btrfs_ioctl.opened(path) as fd:
        file = os.open("tried", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            btrfs_ioctl.sync(fd)
            os.write(file, b"x")
            before = btrfs_ioctl.ctransid(fd)
            return _flush(fd) and btrfs_ioctl.ctransid(fd) > before
        finally:
            os.close(file)
