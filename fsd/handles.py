"""File handles: names of inodes that outlive descriptors (name_to_handle_at(2), open_by_handle_at(2)).

A handle is kept as the raw ``struct file_handle`` (header and ``f_handle``), so two handles of one
filesystem are equal exactly when they name the same inode in the same generation. The content is
the filesystem's business and is never looked into. All functions raise ``OSError`` with errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

AT_EMPTY_PATH: Final = 0x1000
_HEADER: Final = ctypes.sizeof(ctypes.c_uint) + ctypes.sizeof(ctypes.c_int)
_MAX_HANDLE: Final = 128
"""MAX_HANDLE_SZ of <fcntl.h>, bytes of ``f_handle``."""

_libc = ctypes.CDLL(None, use_errno=True)
_name_to_handle_at = _libc.name_to_handle_at
_name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)
_open_by_handle_at = _libc.open_by_handle_at
_open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def _failure(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def handle_of(fd: int) -> tuple[bytes, int]:
    """Handle of the object ``fd`` (``O_PATH`` suffices) refers to, and the ID of the mount it is on.

    Needs no privilege. ``EOPNOTSUPP`` where the filesystem has no handles.
    """
    buffer = ctypes.create_string_buffer(_HEADER + _MAX_HANDLE)
    length = ctypes.c_uint.from_buffer(buffer)
    length.value = _MAX_HANDLE
    mount_id = ctypes.c_int()
    if _name_to_handle_at(fd, b"", ctypes.addressof(buffer), mount_id, AT_EMPTY_PATH):
        raise _failure("name_to_handle_at")
    return buffer.raw[: _HEADER + length.value], mount_id.value


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open the inode ``handle`` names; ``mount_fd`` is any real descriptor on the same filesystem.

    The new descriptor lives on the mount of ``mount_fd``. Needs CAP_DAC_READ_SEARCH (``EPERM``);
    ``ESTALE`` when the inode is gone.
    """
    fd: int = _open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC)
    if fd < 0:
        raise _failure("open_by_handle_at")
    return fd


def identity(path: str | os.PathLike[str]) -> bytes:
    """What tells a directory from any other, also across reboots: its file handle.

    Where the filesystem has none, device and inode number. A symbolic link is not followed.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return identity_of(fd)
    finally:
        os.close(fd)


def identity_of(fd: int) -> bytes:
    """:func:`identity` of an open object."""
    try:
        return handle_of(fd)[0]
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EOVERFLOW):
            raise
    info = os.fstat(fd)
    return f"{info.st_dev}:{info.st_ino}".encode()
