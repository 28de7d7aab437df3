"""Making and taking away the mount itself: mount(2), umount2(2), or fusermount3 without privilege."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
from typing import TYPE_CHECKING, Final

from drivers import syscalls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOATIME: Final = 1024
_MNT_FORCE: Final = 1
_HELPER_SECONDS: Final = 30


def mount(mountpoint: Path, *, source: str = "fsd", subtype: str = "fsd", allow_other: bool = False) -> int:
    """Mount a FUSE filesystem without anything that serves it yet; the device descriptor.

    With privilege by mount(2), else through the set-user-ID helper fusermount3.

    Raises:
        OSError: the mount was refused.
    """
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            return direct(mountpoint, source, subtype, allow_other)
    options = [f"fsname={source}", f"subtype={subtype}", "default_permissions", "nosuid", "nodev", "noatime"]
    return through_helper(mountpoint, options + ["allow_other"] * allow_other)


def unmount(mountpoint: Path) -> None:
    """Detach a mount; requests under way fail. One that is gone already is fine."""
    try:
        detach(mountpoint)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOENT):
            raise


def direct(mountpoint: Path, source: str, subtype: str, allow_other: bool) -> int:
    """Open the device and mount it; needs CAP_SYS_ADMIN. Set-user-ID and devices have no effect there."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = stat.S_IFMT(os.stat(mountpoint).st_mode)
        options = f"fd={device},rootmode={mode:o},user_id={os.geteuid()},group_id={os.getegid()}"
        options += ",default_permissions"
        if allow_other:
            options += ",allow_other"
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME
        syscalls.mount(source, mountpoint, f"fuse.{subtype}", flags, options)
    except BaseException:
        os.close(device)
        raise
    return device


def through_helper(mountpoint: Path, options: Sequence[str]) -> int:
    """Let fusermount3 mount and send the device; any user may ask for it.

    Raises:
        OSError: there is no helper (ENOENT), or it refused; its words are the text.
    """
    helper = shutil.which("fusermount3")
    if helper is None:
        raise FileNotFoundError(errno.ENOENT, "fusermount3 is not installed", str(mountpoint))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [helper, "-o", ",".join(options), "--", os.fspath(mountpoint)],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
            capture_output=True,
            text=True,
            check=False,
            timeout=_HELPER_SECONDS,
        )
        if done.returncode:
            raise PermissionError(errno.EPERM, done.stderr.strip() or "fusermount3 refused", str(mountpoint))
        return _received(ours)


def _received(end: socket.socket) -> int:
    found = array.array("i")
    _, ancillary, _, _ = end.recvmsg(1, socket.CMSG_SPACE(found.itemsize))
    found.frombytes(ancillary[0][2][: found.itemsize])
    os.set_inheritable(found[0], False)
    return found[0]


def detach(mountpoint: Path) -> None:
    """Take the mount away at once; requests under way fail with ECONNABORTED."""
    if os.geteuid() == 0:
        syscalls.umount(mountpoint, _MNT_FORCE | syscalls.MNT_DETACH)
        return
    helper = shutil.which("fusermount3") or "fusermount3"
    subprocess.run([helper, "-u", "-z", "--", os.fspath(mountpoint)], check=False, capture_output=True)
