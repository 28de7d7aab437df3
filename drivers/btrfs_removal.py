"""Removal of subvolumes: one ioctl where possible, file by file where it is refused.

The ioctl itself is quick, but the kernel evicts the cached inodes of the subvolume within it, a second for
100,000 files, and holds the lock of the directory it is in. :class:`Remover` therefore moves a large layer
aside first and does not wait for the end of that.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl, btrfs_tree
from drivers.copytree import remove_tree

if TYPE_CHECKING:
    from drivers.btrfs_quota import Quotas

_log = logging.getLogger(__name__)
_GRACE = 0.02
"""Seconds a removal waits for the ioctl before it leaves it to a thread."""
_MANY = 4000
"""Inodes the kernel evicts in some 40 ms."""
_OWN_TREE = 0
"""Stands for the tree of the subvolume that is asked (btrfs_ioctl_search_key)."""
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


class Remover:
    """Removes layers and returns within milliseconds, however many of their inodes are cached; thread-safe.

    What a crash leaves aside is swept at the next open; the interpreter does not exit before the threads
    are done.
    """

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._threads = ThreadPoolExecutor(2, "btrfs-remover")
        self._running: set[futures.Future[None]] = set()
        self._lock = threading.Lock()

    def remove(self, path: Path, aside: Path) -> None:
        """Remove the layer at ``path`` by way of ``aside``, a free name on the same filesystem.

        Raises:
            FileNotFoundError: there is nothing at ``path``.
            OSError: the kernel refuses; the layer is where it was.
        """
        if not _is_large(path):
            self._destroy(path)
            return
        try:
            path.rename(aside)
        except OSError:  # a read-only subvolume, a foreign owner or a full disk: remove it where it is
            os.lstat(path)
            self._destroy(path)
            return
        future = self._threads.submit(self._destroy, aside)
        try:
            future.result(_GRACE)
        except futures.TimeoutError:
            self._leave(future)
        except OSError:
            aside.rename(path)
            raise

    def wait(self) -> None:
        """Wait until everything removed is destroyed."""
        with self._lock:
            running = list(self._running)
        futures.wait(running)

    def _destroy(self, path: Path) -> None:
        with self._quotas.removing(path):
            destroy_tree(path)

    def _leave(self, future: futures.Future[None]) -> None:
        with self._lock:
            self._running.add(future)
        future.add_done_callback(self._done)

    def _done(self, future: futures.Future[None]) -> None:
        with self._lock:
            self._running.discard(future)
        error = future.exception()
        if error is not None:
            _log.warning("a removed layer stays on disk until the next start: %s", error)


def _is_large(path: Path) -> bool:
    """Whether the subvolume may hold many inodes: their numbers only grow, so a high one tells.

    True too where the tree may not be searched.
    """
    high = btrfs_tree.Range(tree=_OWN_TREE, objectids=(btrfs_ioctl.ROOT_INODE + _MANY, btrfs_tree.LAST_FREE))
    try:
        return next(btrfs_tree.tree_search(path, high, buffer_size=4096), None) is not None
    except btrfs_ioctl.BtrfsError:
        return True


def nested_places(path: Path) -> list[Path]:
    """Directories of the subvolumes in subvolume ``path``, at any depth; without privilege it is walked."""
    places = _searched(path)
    if places is None:
        below = (Path(top, name) for top, names, _ in os.walk(path) for name in names)
        return [place for place in below if place.lstat().st_ino == btrfs_ioctl.ROOT_INODE]
    return places


def _searched(path: Path) -> list[Path] | None:
    """The same by a search of btrfs's trees, the deepest first; ``None`` where that is not allowed."""
    try:
        nested = btrfs_tree.nested_subvolumes(path, btrfs_ioctl.subvolume_id(path))
    except btrfs_ioctl.BtrfsError as error:
        if error.errno not in _REFUSED:
            raise
        return None
    return [path / inner.path for inner in nested]


def _destroy_nested(path: Path) -> None:
    places = _searched(path)
    if places is None:
        _delete_by_hand(path)
        return
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
