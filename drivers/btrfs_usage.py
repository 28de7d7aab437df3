"""How much a btrfs layer holds: logical, exclusive and shared bytes.

*Logical* is what a walk of the tree adds up to. *Exclusive* is what removing the layer would free, *shared*
what it has in common with others. Full qgroups count both as data and metadata at every commit; without
them extents are asked one by one, which sees data only.
"""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl, btrfs_tree, syscalls
from drivers.base import Ownership
from drivers.btrfs_quota import Mode
from drivers.usage import tree_usage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers.base import DiskUsage
    from drivers.btrfs_quota import Quotas

BY_QGROUP = "qgroup"
BY_EXTENT = "extents"


class Usage:
    """Sizes of one driver's layers; safe to use from many threads."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._known: dict[str, tuple[int, int, DiskUsage]] = {}
        self._lock = threading.Lock()

    def logical(self, layer_id: str, path: Path, *, commit: bool = True) -> DiskUsage:
        """Bytes and inodes; walks only when the subvolume or its generation is another than last time.

        Without ``commit`` writes of the last seconds may be missing, and nothing waits for the disk.
        """
        if not btrfs_ioctl.is_subvolume(path):
            return tree_usage(path)
        with btrfs_ioctl.opened(path) as fd:
            if commit:
                btrfs_ioctl.sync(fd)
            info = btrfs_ioctl.subvolume_info(fd)
        with self._lock:
            identifier, generation, usage = self._known.get(layer_id, (0, 0, None))
        if usage is not None and (identifier, generation) == (info.id, info.generation):
            return usage
        usage = tree_usage(path)
        with self._lock:
            self._known[layer_id] = (info.id, info.generation, usage)
        return usage

    def forget(self, layer_id: str) -> None:
        """Drop what is remembered about a layer."""
        with self._lock:
            self._known.pop(layer_id, None)

    def ownership(self, path: Path) -> Ownership:
        """Exclusive and shared bytes of the subvolume at ``path``, as of a commit made for it."""
        return self.by_qgroup(path) or _by_extents(path)

    def by_qgroup(self, path: Path) -> Ownership | None:
        """What full qgroups count for the subvolume; ``None`` where they are not on, or not complete."""
        btrfs_ioctl.sync(path)
        status = self._quotas.status()
        if status.mode is not Mode.FULL or not status.consistent or status.rescanning:
            return None
        counted = self._quotas.usage(path)
        if counted is None:
            return None
        shared = counted.referenced - counted.exclusive
        return Ownership(exclusive=counted.exclusive, shared=shared, method=BY_QGROUP)


def _by_extents(root: Path) -> Ownership:
    """Ask FIEMAP for every extent; its SHARED flag also marks what files of this layer share, so those
    seen twice are resolved to the subvolumes that refer to them."""
    lengths: dict[int, int] = {}
    shared: dict[int, int] = {}
    for extent in _extents_below(root):
        seen = extent.physical in lengths
        lengths[extent.physical] = max(extent.length, lengths.get(extent.physical, 0))
        if extent.shared:
            shared[extent.physical] = shared.get(extent.physical, 0) + 1 if seen else 1
    own = btrfs_ioctl.subvolume_id(root)
    foreign = {physical for physical, count in shared.items() if count == 1 or _others(root, physical, own)}
    total = sum(lengths.values())
    outside = sum(lengths[physical] for physical in foreign)
    return Ownership(exclusive=total - outside, shared=outside, method=BY_EXTENT)


def _others(root: Path, physical: int, own: int) -> bool:
    try:
        return any(other != own for other in btrfs_tree.referring_subvolumes(root, physical))
    except PermissionError:
        return True


def _extents_below(root: Path) -> Iterator[syscalls.Extent]:
    device = os.lstat(root).st_dev
    seen: set[int] = set()
    pending = [os.fspath(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if status.st_dev != device or status.st_ino in seen:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(entry.path)
                elif stat.S_ISREG(status.st_mode) and status.st_blocks:
                    seen.add(status.st_ino)
                    yield from extents_of(entry.path)


def extents_of(path: str) -> Iterator[syscalls.Extent]:
    """The extents of a file that have a place on the disk of their own."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # O_NOATIME is the owner's privilege
        fd = os.open(path, flags)
    try:
        yield from (extent for extent in syscalls.extents(fd) if extent.addressable)
    finally:
        os.close(fd)
