"""How an answer looks to the kernel: attributes of a node, and errno instead of ``OSError``."""

from __future__ import annotations

import errno
import functools
import inspect
import os
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyfuse3

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pyfuse3 import EntryAttributes

    from fsd.rootfs_nodes import Node

READ_ONLY_TIMEOUT: Final = 300.0
"""Seconds the kernel may keep names and attributes of a read-only view."""
WRITABLE_TIMEOUT: Final = 1.0
"""The same for a writable view, where changes made on the real path must show."""

C = TypeVar("C", bound=type)


def errors_as_fuse(cls: C) -> C:
    """Class decorator: an ``OSError`` of any handler reaches the kernel as its errno."""
    for name, method in list(vars(cls).items()):
        if inspect.iscoroutinefunction(method) and hasattr(pyfuse3.Operations, name):
            setattr(cls, name, _translated(method))
    return cls


def _translated(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def handler(*args: Any) -> Any:
        try:
            return await method(*args)
        except OSError as exc:
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc

    return handler


def attributes(node: Node, info: os.stat_result) -> EntryAttributes:
    """Attributes of ``node`` as stat(2) gave them, with the times the kernel may keep them."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = node.id
    entry.generation = node.generation
    entry.entry_timeout = entry.attr_timeout = READ_ONLY_TIMEOUT if node.view.read_only else WRITABLE_TIMEOUT
    entry.st_mode = info.st_mode
    entry.st_nlink = info.st_nlink
    entry.st_uid = info.st_uid
    entry.st_gid = info.st_gid
    entry.st_rdev = info.st_rdev
    entry.st_size = info.st_size
    entry.st_blksize = info.st_blksize
    entry.st_blocks = info.st_blocks
    entry.st_atime_ns = info.st_atime_ns
    entry.st_mtime_ns = info.st_mtime_ns
    entry.st_ctime_ns = info.st_ctime_ns
    return entry
