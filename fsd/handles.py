"""What tells a directory from any other, also across reboots and under another name: its file handle."""

from __future__ import annotations

import errno
import os
import struct

from drivers import syscalls

_HEADER = struct.Struct("Ii")
"""``struct file_handle`` without what is in it: how many bytes that are, and of which kind."""


def identity(path: str | os.PathLike[str]) -> bytes:
    """A directory's ``struct file_handle``; where the filesystem has none, device and inode number.

    A symbolic link is not followed.

    Raises:
        OSError: there is nothing at the path.
    """
    try:
        kind, handle, _ = syscalls.file_handle(syscalls.AT_FDCWD, path)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EOVERFLOW):
            raise
        info = os.lstat(path)
        return f"{info.st_dev}:{info.st_ino}".encode()
    return _HEADER.pack(len(handle), kind) + handle
