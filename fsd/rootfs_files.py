"""Open files of exported trees: data in and out, off the event loop where it may block."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import pyfuse3
import trio

from fsd.rootfs_calls import magic
from fsd.rootfs_nodes import OURS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyfuse3 import RequestContext

    from fsd.rootfs_nodes import Node

T = TypeVar("T")

DATA_THREADS: Final = 16
_PASSED_ON: Final = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A descriptor on the real file; ``strips`` when its writes must take set-user-ID away."""

    fd: int
    node: Node
    strips: bool


class OpenFiles:
    """The open files of one mount, by the file handle number the kernel was given."""

    def __init__(self) -> None:
        self._files: dict[int, OpenFile] = {}
        self._next = OURS + 1
        self._limiter = trio.CapacityLimiter(DATA_THREADS)

    def __len__(self) -> int:
        return len(self._files)

    def get(self, fh: int) -> OpenFile:
        """The open file of a handle; ``EBADF`` when there is none."""
        try:
            return self._files[fh]
        except KeyError:
            raise OSError(errno.EBADF, f"file handle {fh:#x} is not open") from None

    def node_of(self, fh: int) -> Node:
        """The node a handle was opened on; ``EBADF``."""
        return self.get(fh).node

    def add(self, node: Node, fd: int, *, strips: bool) -> int:
        """Take over an open descriptor; the number it is known by from now on."""
        fh = self.number()
        self._files[fh] = OpenFile(fd, node, strips)
        node.files.append(fd)
        return fh

    def number(self) -> int:
        """A number no open file or directory has."""
        self._next += 1
        return self._next

    async def remove(self, fh: int) -> None:
        """Close a file. The last close of a removed file frees its blocks, which may take long."""
        file = self.get(fh)
        del self._files[fh]
        file.node.files.remove(file.fd)
        if os.fstat(file.fd).st_nlink:
            os.close(file.fd)
        else:
            await self.in_thread(os.close, file.fd)

    def close(self) -> None:
        """Close every file, when the mount is gone."""
        for file in self._files.values():
            file.node.files.remove(file.fd)
            os.close(file.fd)
        self._files.clear()

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes at ``offset``; fewer only at the end of the file."""
        fd = self.get(fh).fd
        data = _read_cached(fd, offset, size)
        return data if data is not None else await self.in_thread(_read, fd, offset, size)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """Write at ``offset``, or at the end of a file opened to append; how many bytes were written."""
        file = self.get(fh)
        written = await self.in_thread(_write, file.fd, offset, data)
        if file.strips:
            drop_privileges(file.fd)
        return written

    async def in_thread(self, function: Callable[..., T], *args: object) -> T:
        """Run blocking I/O in one of the threads reserved for it."""
        return await trio.to_thread.run_sync(partial(function, *args), limiter=self._limiter)


def appends_only(flags: int) -> bool:
    """Whether an open can neither read nor map the file, and every write goes to its end.

    Such a file bypasses the page cache and keeps ``O_APPEND``, so that lines appended here and
    on the real path never overwrite each other. Any other open must not carry ``O_APPEND`` down: Linux
    appends then even when told an offset (pwrite(2), BUGS), and the kernel writes mapped
    pages back by offset.
    """
    return bool(flags & os.O_APPEND) and flags & os.O_ACCMODE == os.O_WRONLY


def real_flags(flags: int) -> int:
    """What of an open's flags goes to the real file. O_DIRECT would demand aligned memory."""
    return flags & (_PASSED_ON | (os.O_APPEND if appends_only(flags) else 0))


def drop_privileges(fd: int) -> None:
    """Take set-user-ID, set-group-ID and capabilities off a file that someone else's data went into.

    The kernel asks for this itself except for files opened with direct_io and on ``O_TRUNC``, where it
    leaves it to filesystems with FUSE_HANDLE_KILLPRIV_V2, which pyfuse3 cannot announce.
    """
    mode = os.fstat(fd).st_mode
    drop = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
    if mode & drop:
        os.fchmod(fd, stat.S_IMODE(mode) & ~drop)
    with contextlib.suppress(OSError):
        os.removexattr(fd, "security.capability")


def drop_group_privilege(fd: int, ctx: RequestContext) -> None:
    """What chmod(2) does and a new ACL must do too: set-group-ID is for members of the group only.

    The kernel leaves it to the filesystem, with a flag (FUSE_SETXATTR_EXT) that pyfuse3 cannot ask for.
    """
    info = os.stat(magic(fd))
    if ctx.uid != 0 and info.st_mode & stat.S_ISGID and info.st_gid != ctx.gid:
        with contextlib.suppress(OSError, RuntimeError):  # the caller may be gone
            if info.st_gid in pyfuse3.get_sup_groups(ctx.pid):
                return
        os.chmod(magic(fd), stat.S_IMODE(info.st_mode) & ~stat.S_ISGID)


def _read_cached(fd: int, offset: int, size: int) -> bytes | None:
    """What a read gives without waiting for the disk; ``None`` when it would have to."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return None
        raise
    if count < size and offset + count < os.fstat(fd).st_size:
        return None
    return bytes(memoryview(buffer)[:count])


def _read(fd: int, offset: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.pread(fd, size, offset)):
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write(fd: int, offset: int, data: bytes) -> int:
    view = memoryview(data)
    done = 0
    while done < len(view):
        try:
            done += os.pwrite(fd, view[done:], offset + done)
        except OSError:
            if done:
                break  # the caller is told how much arrived and meets the error at its next write
            raise
    return done
