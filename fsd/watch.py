"""Noticing at once what other processes do to files: inotify(7) on their directories.

The store's tables are replaced by rename, so one event per save of one table is all there is. This module
knows nothing of the tree.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

RENAMED: Final = 0x80
"""A file was renamed into the directory (IN_MOVED_TO)."""
ANYTHING: Final = RENAMED | 0x8 | 0x40 | 0x100 | 0x200
"""An entry was renamed, made or removed, or a file somebody wrote to was closed."""
_IN_NONBLOCK: Final = os.O_NONBLOCK
_IN_CLOEXEC: Final = os.O_CLOEXEC
_READ_SIZE: Final = 65536

_libc = ctypes.CDLL(None, use_errno=True)
_inotify_init1 = _libc.inotify_init1
_inotify_add_watch = _libc.inotify_add_watch
_inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class Watch:
    """Waits until something happens in one of some directories: ``events``. Close it when done.

    Raises:
        OSError: the system's inotify limits are reached, or a directory is missing.
    """

    def __init__(self, directories: Iterable[Path], events: int = RENAMED) -> None:
        self._fd: int = _inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        try:
            for directory in directories:
                if _inotify_add_watch(self._fd, os.fsencode(directory), events) < 0:
                    raise OSError(ctypes.get_errno(), "inotify_add_watch", str(directory))
        except BaseException:
            self.close()
            raise

    async def changed(self) -> None:
        """Return after the next event, or at once if there was one since the last call."""
        await trio.lowlevel.wait_readable(self._fd)
        os.read(self._fd, _READ_SIZE)

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)
