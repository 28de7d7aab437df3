"""Logical size of a tree, as containers/storage's ``ReadWriteDiskUsage`` counts it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from drivers.base import DiskUsage

if TYPE_CHECKING:
    from pathlib import Path


def tree_usage(root: Path) -> DiskUsage:
    """Sum of ``st_size`` of everything but directories below ``root``, and number of inodes with it.

    A hard-linked file counts once, a sparse one with its full length. What vanishes meanwhile is left out.
    """
    status = os.lstat(root)
    seen = {(status.st_dev, status.st_ino)}
    size, pending = 0, [os.fspath(root)]
    while pending:
        for entry in _entries(pending.pop()):
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            identity = found.st_dev, found.st_ino
            if identity in seen:
                continue
            seen.add(identity)
            if stat.S_ISDIR(found.st_mode):
                pending.append(entry.path)
            else:
                size += found.st_size
    return DiskUsage(size, len(seen))


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
