"""What removing several subvolumes at once would free.

The extents of all of them together are counted once each, and those that any other subvolume refers to
are taken off. Copies of one file in several subvolumes have the same inode number and times; each such
file is looked at once. So is none that a layer next to them has as well, since its data stay with that.
Files whose extents another program shared afterwards (deduplication) keep their times: the kernel's flag
tells, and only what was skipped escapes it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl, btrfs_tree
from drivers.base import Ownership
from drivers.btrfs_usage import BY_EXTENT, extents_of

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = 512
"""Unit of ``st_blocks``."""
_Version = tuple[int, int, int, int]
"""Inode, change time, modification time and size: the same in every copy nobody wrote to."""


def freed(roots: list[Path], beside: Path | None) -> Ownership:
    """Bytes of data that only ``roots`` refer to, and of what they share with other subvolumes.

    Args:
        roots: subvolumes; nested ones are left out.
        beside: a subvolume that stays; its files are taken to be shared where they are the same.
    """
    for root in roots:
        btrfs_ioctl.sync(root)
    kept = {version for version, _ in _files(beside)} if beside is not None else set()
    count = _Count({btrfs_ioctl.subvolume_id(root) for root in roots}, kept)
    for root in roots:
        for version, entry in _files(root):
            count.add(root, version, entry)
    return Ownership(exclusive=count.exclusive, shared=count.shared, method=BY_EXTENT)


class _Count:
    """Bytes counted so far for subvolumes of the IDs ``own``."""

    def __init__(self, own: set[int], kept: set[_Version]) -> None:
        self._own = own
        self._kept = kept
        self._files: set[_Version] = set()
        self._extents: set[int] = set()
        self._alive: set[int] | None = None
        self.exclusive = 0
        self.shared = 0

    def add(self, root: Path, version: _Version, entry: os.DirEntry[str]) -> None:
        """Count a file unless a copy of it was counted already."""
        if version in self._files:
            return
        self._files.add(version)
        if version in self._kept:
            self.shared += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
            return
        for extent in extents_of(entry.path):
            if extent.physical in self._extents:
                continue
            self._extents.add(extent.physical)
            if extent.shared and self._is_foreign(root, extent.physical):
                self.shared += extent.length
            else:
                self.exclusive += extent.length

    def _is_foreign(self, root: Path, physical: int) -> bool:
        """Whether a subvolume not among the own refers to an extent; without privilege, nobody knows: yes."""
        try:
            others = btrfs_tree.referring_subvolumes(root, physical) - self._own
            if others and self._alive is None:
                self._alive = btrfs_tree.subvolume_ids(root)
        except PermissionError:
            return True
        # The kernel's cleaner may not have come yet to subvolumes that are removed already.
        return bool(others and others & (self._alive or set()))


def _files(root: Path) -> Iterator[tuple[_Version, os.DirEntry[str]]]:
    """Regular files with data in the subvolume ``root``, without those in nested ones."""
    device = os.lstat(root).st_dev
    pending = [os.fspath(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if status.st_dev != device:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(entry.path)
                elif stat.S_ISREG(status.st_mode) and status.st_blocks:
                    yield (status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size), entry
