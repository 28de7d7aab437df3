"""System calls the rootfs handlers need and ``os`` does not have; each raises ``OSError`` with errno.

Names are single components. Nothing here follows a symbolic link or leaves the directory given.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_MAGICLINKS: Final = 0x02
# These two have one number on every architecture Linux gained them on (asm-generic/unistd.h).
_SYS_OPEN_TREE: Final = 428
_SYS_OPENAT2: Final = 437
_UTIME_OMIT: Final = (1 << 30) - 2
_NOBODY: Final = 2**32 - 1
_NS: Final = 1_000_000_000
_PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_renameat2 = _libc.renameat2
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_utimensat = _libc.utimensat
_utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Timespec), ctypes.c_int)
_setfsuid, _setfsgid = _libc.setfsuid, _libc.setfsgid
for _function in (_setfsuid, _setfsgid):
    _function.argtypes, _function.restype = (ctypes.c_uint,), ctypes.c_uint
_capget, _capset = _libc.capget, _libc.capset

_CHILD_HOW: Final = _OpenHow(_PATH_FLAGS, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS)
_CAP_VERSION_3: Final = 0x20080522
_CAP_DAC_OVERRIDE: Final = 1 << 1
_CAP_DAC_READ_SEARCH: Final = 1 << 2


def _failure(what: str, name: bytes = b"") -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}", name)


def magic(fd: int) -> str:
    """Path that means the object behind ``fd`` itself, for calls that take no ``O_PATH`` descriptor."""
    return f"/proc/self/fd/{fd}"


def open_child(directory: int, name: bytes) -> int:
    """``O_PATH`` descriptor of an entry; where something is mounted on it, of the directory below.

    Staying off foreign mounts keeps the process from waiting on its own mount, and other programs'
    mounts (a container's ``/dev/shm``) from being pinned by us.
    """
    fd: int = _libc.syscall(
        _SYS_OPENAT2, directory, name, ctypes.byref(_CHILD_HOW), ctypes.sizeof(_CHILD_HOW)
    )
    if fd >= 0:
        return fd
    if ctypes.get_errno() == errno.EXDEV:
        return _open_covered(directory, name)
    raise _failure("openat2", name)


def _open_covered(directory: int, name: bytes) -> int:
    """Open an entry in a private copy of its mount, which has nothing mounted below it."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
    clone: int = _libc.syscall(_SYS_OPEN_TREE, directory, b"", flags)
    if clone < 0:
        raise _failure("open_tree", name)
    try:
        return os.open(name, _PATH_FLAGS, dir_fd=clone)
    finally:
        os.close(clone)


def rename(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """renameat2(2) with ``RENAME_NOREPLACE`` or ``RENAME_EXCHANGE``."""
    if _renameat2(old_dir, old, new_dir, new, flags):
        raise _failure("renameat2", new)


def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set either or both times of the object behind ``fd``, nanoseconds since the epoch."""
    times = (_Timespec * 2)(_timespec(atime_ns), _timespec(mtime_ns))
    if _utimensat(_AT_FDCWD, magic(fd).encode(), times, 0):
        raise _failure("utimensat")


def _timespec(ns: int | None) -> _Timespec:
    return _Timespec(0, _UTIME_OMIT) if ns is None else _Timespec(*divmod(ns, _NS))


@contextmanager
def acting_as(uid: int, gid: int) -> Iterator[None]:
    """Objects created inside the block belong to ``uid`` and ``gid`` (setfsuid(2); this thread only).

    The kernel then applies setgid directories and default ACLs itself, and an object never exists
    with the wrong owner. Permission was already decided by the mount's ``default_permissions``, with
    the caller's supplementary groups, so the right to pass directories is kept. The block must
    not switch threads or await. ``EPERM`` where the process may not act for others.
    """
    own_uid, own_gid = os.geteuid(), os.getegid()
    if (uid, gid) == (own_uid, own_gid):
        yield
        return
    try:
        _setfsgid(gid)
        _setfsuid(uid)
        if _setfsuid(_NOBODY) != uid or _setfsgid(_NOBODY) != gid:  # changes nothing, tells what is
            raise PermissionError(errno.EPERM, f"cannot create objects for uid {uid}, gid {gid}")
        if own_uid == 0 and uid != 0:
            _keep_directory_rights()
        yield
    finally:
        _setfsuid(own_uid)
        _setfsgid(own_gid)


def _keep_directory_rights() -> None:
    """Raise the capabilities again that leaving fsuid 0 dropped (capabilities(7)) and creating needs."""
    header = _CapHeader(_CAP_VERSION_3, 0)
    data = (_CapData * 2)()
    if _capget(ctypes.byref(header), data):
        raise _failure("capget")
    data[0].effective |= data[0].permitted & (_CAP_DAC_OVERRIDE | _CAP_DAC_READ_SEARCH)
    if _capset(ctypes.byref(header), data):
        raise _failure("capset")


def administer(may: bool) -> None:
    """Take CAP_SYS_ADMIN away from the calling thread and the threads it starts, or back (capset(2))."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    data[0] = data[0] | 1 << 21 if may else data[0] & ~(1 << 21)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")
