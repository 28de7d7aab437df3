"""The home directory of the btrfs driver: where it can be, and what is left in it."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl, syscalls
from drivers.errors import NotSupported, PrerequisitesMissing

if TYPE_CHECKING:
    from pathlib import Path


def require_btrfs(home: Path) -> None:
    """Raise :class:`PrerequisitesMissing` unless ``home`` is, or would be, on btrfs."""
    existing = _existing(home)
    if not btrfs_ioctl.is_btrfs(existing):
        raise PrerequisitesMissing(f"{existing} is not on a btrfs filesystem")


def require_same_filesystem(home: Path, split: Path) -> None:
    """Raise :class:`NotSupported` unless the image store's directory is where ``home`` is."""
    places = _existing(home), _existing(split)
    if btrfs_ioctl.is_btrfs(places[1]):
        one, other = (btrfs_ioctl.filesystem_info(place).fsid for place in places)
        if one == other:
            return
    raise NotSupported(
        f"the image store {split.parent} is on another filesystem than the graphroot {home.parent}: "
        "the btrfs driver makes containers as snapshots of images, which stay on one filesystem"
    )


def make_private(home: Path) -> None:
    """Bind ``home`` on itself, private, as containers/storage does; unprivileged users go without."""
    try:
        if not syscalls.is_mount_root(home):
            syscalls.mount(home, home, flags=syscalls.MS_BIND)
        syscalls.mount("none", home, flags=syscalls.MS_PRIVATE)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL):
            raise


def age(path: Path) -> float:
    """Seconds since a subvolume was made; anything else is as old as can be."""
    if not btrfs_ioctl.is_subvolume(path):
        return float("inf")
    return time.time() - btrfs_ioctl.subvolume_info(path).created_ns / 1e9


def _existing(home: Path) -> Path:
    existing = home.parent
    while not existing.exists():
        existing = existing.parent
    return existing
