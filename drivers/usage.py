"""Logical size of a tree, as containers/storage's ``ReadWriteDiskUsage`` counts it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from drivers.base import DiskUsage
from drivers.changes import Cursor, directory

if TYPE_CHECKING:
    from pathlib import Path


class _Count:
    def __init__(self, root: os.stat_result) -> None:
        self.seen = {(root.st_dev, root.st_ino)}
        self.size = 0

    def directory(self, cursor: Cursor) -> list[bytes]:
        """Count the entries of a directory; returns the names of those to go down to."""
        below = []
        for name, entry in cursor.entries().items():
            identity = (entry.stat.st_dev, entry.stat.st_ino)
            if stat.S_ISDIR(entry.stat.st_mode):
                below.append(name)
            elif identity not in self.seen:
                self.size += entry.stat.st_size
            self.seen.add(identity)
        return below


def tree_usage(root: Path) -> DiskUsage:
    """Sum of ``st_size`` of everything but directories below ``root``, and number of inodes with it.

    A hard-linked file counts once, a sparse one with its full length. Trees of any depth work.

    Raises:
        OSError: a directory cannot be read, was removed, or moved during the walk (``ESTALE``).
    """
    with directory(root) as fd:
        count, cursor = _Count(os.fstat(fd)), Cursor(fd)
        try:
            _walk(cursor, count)
        finally:
            cursor.close()
    return DiskUsage(count.size, len(count.seen))


def _walk(cursor: Cursor, count: _Count) -> None:
    waiting = [iter(count.directory(cursor))]
    while waiting:
        name = next(waiting[-1], None)
        if name is None:
            waiting.pop()
            if waiting:
                cursor.up()
        elif _down(cursor, name):
            waiting.append(iter(count.directory(cursor)))


def _down(cursor: Cursor, name: bytes) -> bool:
    try:
        cursor.down(name)
    except FileNotFoundError:  # removed meanwhile
        return False
    return True
