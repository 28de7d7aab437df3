"""Requests inside real directory trees: what fsd adds around ``fsd.rootfs``, and how failures are told.

* A refused write to a read-only view says why, and what to do instead, in ``control/errors``.
* A process whose unlink of an attribute file was refused is refused removals inside that object's
  trees, and of the object: ``rm -r`` and ``find -delete`` go on after the first refusal and would
  empty the rootfs file by file.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pyfuse3
from pyfuse3 import FUSEError, InodeT, RequestContext

from fsd.errnos import ERROR_XATTR, Failure
from fsd.inodes import REAL_TREES

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.rootfs import Rootfs
    from fsd.site import Site
    from fsd.views import Views

    Place = Callable[[int], tuple[str, InodeT, int, int]]

_REMOVALS = frozenset({"unlink", "rmdir", "rename"})
_REMEMBERED = 256


class RealTrees:
    """Forwards requests to the views of one mount."""

    def __init__(self, site: Site, rootfs: Rootfs, views: Views) -> None:
        self._site = site
        self._rootfs = rootfs
        self._views = views
        self._refused: OrderedDict[tuple[int, int, str], None] = OrderedDict()

    async def call(self, name: str, args: tuple[Any, ...]) -> Any:
        """Serve one request whose first argument is a node or handle of a real tree."""
        if name in _REMOVALS and (spec := self._views.spec_of(args[0])):
            self.check_removal(spec.owner, args[-1], spec.key)
        if name == "getxattr" and args[1] == ERROR_XATTR:
            return self._error_text(args[0])
        try:
            return await getattr(self._rootfs, name)(*args)
        except FUSEError as exc:
            if exc.errno == errno.EROFS:
                self._explain(name, args)
            raise

    def remember_refusal(self, key: str, pid: int) -> None:
        """A process was refused the unlink of an attribute below the node ``key``."""
        owner = key.split("/", 1)[0]
        if owner:
            self._refused[pid, _started(pid), owner] = None
            while len(self._refused) > _REMEMBERED:
                self._refused.popitem(last=False)

    def report(self, operation: str, args: tuple[Any, ...], number: int, text: str, place: Place) -> None:
        """Add a failure to the ring; ``place`` knows where synthetic nodes and handles are."""
        path, inode, pid, uid = self._where(args, place)
        if len(args) > 1 and isinstance(args[1], bytes) and operation not in ("write", "setxattr"):
            path = f"{path}/{os.fsdecode(args[1])}"
        ctx = args[-1] if args and isinstance(args[-1], RequestContext) else None
        self._site.errors.add(
            Failure(
                time_ns=time.time_ns(),
                pid=ctx.pid if ctx else pid,
                uid=ctx.uid if ctx else uid,
                operation=operation,
                path=path,
                number=number,
                text=text,
                inode=inode,
            )
        )

    def _where(self, args: tuple[Any, ...], place: Place) -> tuple[str, InodeT, int, int]:
        first = args[0] if args and isinstance(args[0], int) else 0
        if not first & REAL_TREES:
            return place(first)
        spec = self._views.spec_of(first)
        return (spec.shown or spec.key if spec else f"inode {first}"), InodeT(first), 0, 0

    def _explain(self, name: str, args: tuple[Any, ...]) -> None:
        spec = self._views.spec_of(args[0])
        text = (spec.refusal if spec else "") or "this view is read-only"
        self.report(name, args, errno.EROFS, text, lambda inode: ("", InodeT(inode), 0, 0))

    def check_removal(self, owner: str, ctx: RequestContext, path: str) -> None:
        """Raise ``PermissionError`` for a process that was refused an attribute of ``owner``."""
        if self._refused and (ctx.pid, _started(ctx.pid), owner) in self._refused:
            raise PermissionError(
                errno.EPERM,
                "this process was refused the removal of the object's attributes, so all of it stays; "
                "to remove the object use rmdir alone",
                path,
            )

    def _error_text(self, inode: int) -> bytes:
        text = self._site.errors.text_for(inode)
        if text is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return text.encode()


def _started(pid: int) -> int:
    """Start time of a process in clock ticks (proc(5), field 22), which tells a reused pid apart."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as found:
            return int(found.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
