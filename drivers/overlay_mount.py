"""Overlay mounts: mount(2) with names relative to a directory, the new mount API, or a mount program.

mount(2) takes one page of options. Names relative to the driver's home keep 128 layers within it; a
longer stack is built one layer at a time by fsconfig(2) ``lowerdir+`` (Linux 6.8).
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers import syscalls
from drivers.errors import NotSupported
from drivers.overlay_options import mount_flags

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_FS = 0x200
_PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 4
# System call numbers are the same on every architecture from 424 on.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_ATTRIBUTES = {1: 0x1, 2: 0x2, 4: 0x4, 8: 0x8, 1024: 0x10, 2048: 0x80, 1 << 24: 0x20}
"""MS_* flags to MOUNT_ATTR_* (linux/mount.h): ro, nosuid, nodev, noexec, noatime, nodiratime, strictatime."""
_LOG_SIZE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One overlay mount: ``lowers`` nearest first, names relative to ``base`` or absolute.

    ``upper`` and ``work`` are empty for a read-only mount, which needs two lower directories. ``owner`` is
    who the kernel makes its own files as; an upper directory on a mount with shifted IDs needs one of those.
    """

    base: Path
    target: Path
    lowers: tuple[str, ...]
    upper: str = ""
    work: str = ""
    options: tuple[str, ...] = ()
    owner: tuple[int, int] | None = None

    def data(self, extra: list[str]) -> str:
        """The option string of mount(2) and of mount programs."""
        parts = ["lowerdir=" + ":".join(_escape(name, ":,\\") for name in self.lowers)]
        if self.upper:
            parts += ["upperdir=" + _escape(self.upper, ",\\"), "workdir=" + _escape(self.work, ",\\")]
        return ",".join(parts + extra)


def _escape(name: str, special: str) -> str:
    return "".join("\\" + letter if letter in special else letter for letter in name)


def mount_overlay(wanted: Mount) -> None:
    """Mount by the kernel.

    Raises:
        NotSupported: too many layers for a page, and this kernel has no other way.
        OSError: the kernel refused; the text has its reason where it gave one.
    """
    flags, extra = mount_flags(wanted.options)
    data = wanted.data(extra)
    if len(os.fsencode(data)) < PAGE:
        _mount_in(wanted, lambda: syscalls.mount("overlay", wanted.target, "overlay", flags, data))
    else:
        _mount_in(wanted, lambda: _mount_stepwise(wanted, flags, extra))


def _mount_in(wanted: Mount, action: Callable[[], None]) -> None:
    """Run ``action`` in a thread that shares its working directory, which is ``base``, with nobody."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            if _LIBC.unshare(_CLONE_FS) != 0:
                raise OSError(ctypes.get_errno(), "unshare(CLONE_FS)")
            os.chdir(wanted.base)
            if wanted.owner is not None:
                _become(*wanted.owner)
            action()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="overlay-mount")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _become(uid: int, gid: int) -> None:
    """Let this thread make files as somebody else and keep its capabilities (capabilities(7))."""
    if _LIBC.prctl(_PR_SET_SECUREBITS, ctypes.c_ulong(_NO_SETUID_FIXUP), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECUREBITS)")
    _LIBC.setfsgid(gid)
    _LIBC.setfsuid(uid)


def _mount_stepwise(wanted: Mount, flags: int, extra: list[str]) -> None:
    context = _call(_FSOPEN, b"overlay", _CLOEXEC)
    try:
        _configure(context, "source", "overlay")
        try:
            for name in wanted.lowers:
                _configure(context, "lowerdir+", name)
        except OSError as error:
            raise NotSupported(
                f"{len(wanted.lowers)} layers need more than the {PAGE} bytes of options mount(2) takes, "
                f"and this kernel cannot add them one by one: {error}"
            ) from error
        if wanted.upper:
            _configure(context, "upperdir", wanted.upper)
            _configure(context, "workdir", wanted.work)
        for option in extra:
            key, equals, value = option.partition("=")
            _configure(context, key, value if equals else None)
        _call_logged(context, _CREATE, None, None)
        tree = _call(_FSMOUNT, context, _CLOEXEC, _mount_attributes(flags))
        try:
            syscalls.attach_tree(tree, wanted.target)
        finally:
            os.close(tree)
    finally:
        os.close(context)


def _mount_attributes(flags: int) -> int:
    attributes = 0
    for flag, attribute in _ATTRIBUTES.items():
        if flags & flag:
            attributes |= attribute
    return attributes


def _configure(context: int, key: str, value: str | None) -> None:
    command = _SET_FLAG if value is None else _SET_STRING
    _call_logged(context, command, key.encode(), None if value is None else os.fsencode(value))


def _call_logged(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    try:
        _call(_FSCONFIG, context, command, key, value, 0)
    except OSError as error:
        raise OSError(error.errno, f"overlay mount: {_log(context) or error.strerror}") from error


def _log(context: int) -> str:
    """What the kernel said, one message per read; each begins with a letter for its kind."""
    messages = []
    try:
        while message := os.read(context, _LOG_SIZE):
            messages.append(message.decode("utf-8", "replace").strip()[2:])
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
    return "; ".join(messages)


def _call(number: int, *arguments: int | bytes | None) -> int:
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _LIBC.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mount_by_program(program: str, wanted: Mount) -> None:
    """Mount by a program such as fuse-overlayfs; it returns once the mount is there.

    Raises:
        OSError: ``EIO`` with what the program wrote, if it failed.
    """
    argv = [program, "-o", wanted.data(list(wanted.options)), str(wanted.target)]
    done = subprocess.run(
        argv, cwd=wanted.base, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if done.returncode:
        text = done.stderr.decode("utf-8", "replace").strip() or f"exit status {done.returncode}"
        raise OSError(errno.EIO, f"{program}: {text}", str(wanted.target))


def unmount(target: Path) -> None:
    """Unmount now, or, while something is still open below, as soon as that is closed."""
    try:
        syscalls.umount(target)
    except OSError as error:
        if error.errno == errno.EINVAL:  # nothing is mounted there
            return
        if error.errno != errno.EBUSY:
            raise
        syscalls.umount(target, syscalls.MNT_DETACH)


def is_mounted(target: Path) -> bool:
    """Whether something is mounted at ``target``; a dead FUSE mount counts."""
    try:
        return syscalls.is_mount_root(target)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return True
        raise


def make_private(home: Path) -> bool:
    """Bind ``home`` on itself, private, so that layer mounts stay in this namespace; false if refused."""
    try:
        if not is_mounted(home):
            syscalls.mount(home, home, flags=syscalls.MS_BIND)
        syscalls.mount("none", home, flags=syscalls.MS_PRIVATE)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL):
            raise
        return False
    return True
