"""Places where a layer is put together, or taken apart, before anybody can see it.

A driver without atomic copies builds a layer in a private directory and renames it to its ID when it is
whole; a removal renames first and deletes then. Each private directory is locked (flock(2)) by the process
that works in it, so what a crash left is told from what is in use and swept at the next open.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from drivers.copytree import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Staging:
    """Private directories below ``root``, which must be on the filesystem of the layers.

    Thread-safe and safe between processes. ``root`` is there only while something is in it: other tools
    that manage the directory above take what they do not know for a layer.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A fresh locked directory, mode 0700; whatever is left in it at the end is deleted."""
        path, fd = self._make()
        try:
            yield path
        finally:
            try:
                remove_tree(path)
            finally:
                os.close(fd)
            self._drop_root()

    def _make(self) -> tuple[Path, int]:
        while True:
            path = self.root / os.urandom(8).hex()
            with suppress(FileNotFoundError, FileExistsError):  # others make and remove the root too
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.mkdir(mode=0o700)
                fd = _lock(path, fcntl.LOCK_EX)
                if fd is not None:
                    return path, fd

    def _drop_root(self) -> None:
        with suppress(OSError):
            self.root.rmdir()

    def sweep(self) -> int:
        """Delete what no living process works on; returns how many directories that were.

        What cannot be deleted stays and keeps nobody from opening the store.
        """
        swept = 0
        for name in _names(self.root):
            with suppress(OSError):
                swept += self._sweep(self.root / name)
        self._drop_root()
        return swept

    def _sweep(self, path: Path) -> bool:
        fd = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if fd is None:
            return False
        try:
            remove_tree(path)
        finally:
            os.close(fd)
        return True


def _names(root: Path) -> list[str]:
    try:
        return os.listdir(root)
    except FileNotFoundError:
        return []


def _lock(path: Path, how: int) -> int | None:
    """Descriptor of a locked directory; ``None`` if it is locked elsewhere, or swept meanwhile."""
    try:
        fd = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError):
        fcntl.flock(fd, how)
        if os.fstat(fd).st_nlink:
            return fd
    os.close(fd)
    return None
