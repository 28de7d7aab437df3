"""Removal of subvolumes: one ioctl where possible, file by file where it is refused."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl, btrfs_tree
from drivers.copytree import remove_tree

if TYPE_CHECKING:
    from pathlib import Path

_REFUSED = (errno.EPERM, errno.EACCES, errno.EROFS)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def destroy_tree(path: Path) -> None:
    """Destroy the subvolume ``path`` with all nested ones; a plain directory is deleted as such.

    An unprivileged owner without the mount option ``user_subvol_rm_allowed`` may not destroy subvolumes,
    but may empty and rmdir(2) them (Linux 4.18).
    """
    try:
        btrfs_ioctl.destroy(path.parent, path.name)
    except btrfs_ioctl.BtrfsError as error:
        if error.errno == errno.ENOTEMPTY:
            _destroy_nested(path)
        elif error.errno == errno.EINVAL and not btrfs_ioctl.is_subvolume(path):
            remove_tree(path)
        elif error.errno in _REFUSED and os.geteuid() != 0:
            _delete_by_hand(path)
        else:
            raise


def _destroy_nested(path: Path) -> None:
    try:
        nested = btrfs_tree.nested_subvolumes(path, btrfs_ioctl.subvolume_id(path))
    except btrfs_ioctl.BtrfsError as error:
        if error.errno not in _REFUSED:
            raise
        _delete_by_hand(path)
        return
    places = [path / inner.path for inner in nested]
    for place in (path, *places):
        _make_writable(place)
    for place in (*places, path):
        btrfs_ioctl.destroy(place.parent, place.name)


def _make_writable(subvolume: Path | int) -> None:
    """Clear the read-only property, with which nothing inside can be removed."""
    if btrfs_ioctl.is_read_only(subvolume):
        btrfs_ioctl.set_read_only(subvolume, False)


def _delete_by_hand(path: Path) -> None:
    if btrfs_ioctl.is_subvolume(path):
        _make_writable(path)
    path.chmod(0o700)
    _unlock(os.open(path, _DIRECTORY))
    remove_tree(path)


def _unlock(top: int) -> None:
    """Let the owner into every directory below an open one, which is closed."""
    stack = [(top, _inner_directories(top))]
    while stack:
        fd, names = stack[-1]
        name = next(names, None)
        if name is None:
            os.close(stack.pop()[0])
            continue
        inner = os.open(name, _DIRECTORY, dir_fd=fd)
        stack.append((inner, _inner_directories(inner)))


def _inner_directories(fd: int) -> Iterator[str]:
    for name in os.listdir(fd):
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            continue
        if status.st_ino == btrfs_ioctl.ROOT_INODE:
            _unlock_subvolume(fd, name)
        elif status.st_mode & 0o700 != 0o700:
            os.chmod(name, 0o700, dir_fd=fd)
        yield name


def _unlock_subvolume(fd: int, name: str) -> None:
    inner = os.open(name, _DIRECTORY, dir_fd=fd)
    try:
        _make_writable(inner)
        os.fchmod(inner, 0o700)
    finally:
        os.close(inner)
