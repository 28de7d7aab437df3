"""Requests inside real directory trees: what fsd adds around ``fsd.plane``, and how failures are told.

* A refused write to a read-only view says why, and what to do instead, in ``control/errors``.
* A process that was refused the removal of an attribute is refused removals inside that object's
  trees, and of the object: ``rm -r`` and ``find -delete`` go on after the first refusal and would
  empty the rootfs file by file.
* ``rsync --delete`` removes directories first, the last ones before all. A process that listed a container
  is therefore refused removals in its ``userdata`` and ``rundata``, of which there are no snapshots, and
  after the first such refusal everywhere else in it.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

from pyfuse3 import InodeT, RequestContext

from drivers.processes import started
from fsd.errnos import Failure
from fsd.plane import OURS
from fsd.views import PRIVATE, owner_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.plane import Event
    from fsd.site import Site
    from fsd.views import Views

    Place = Callable[[int], tuple[str, InodeT, int, int]]

_REMEMBERED = 256
OF_A_NAME = frozenset({"unlink", "rmdir", "rename"})
"""Operations on a directory that are about the entry of the name they give."""
_KEPT = (
    "this process was refused the removal of the object's attributes, so all of it stays; "
    "to remove the object use rmdir alone"
)
_LISTED = (
    "this process listed the container, so it removes nothing from its private directories, which have no "
    "snapshots; remove single files by their path, and the container with rmdir"
)


class RealTrees:
    """What is told about the views of one mount, and who must not empty them."""

    def __init__(self, site: Site, views: Views) -> None:
        self._site = site
        self._views = views

    def remember_refusal(self, key: str, pid: int) -> None:
        """A process was refused the removal of an attribute below the node ``key``."""
        owner = key.split("/", 1)[0]
        if owner:
            _remember(self._views, pid, owner)

    def remember_listing(self, key: str, pid: int) -> None:
        """A process lists what is in the node ``key``; with a container that may be to empty it."""
        if key.startswith("containers:") and "/" not in key and pid:
            _deny(self._views, pid, f"{PRIVATE}{key}")

    def report(
        self,
        operation: str,
        args: tuple[Any, ...],
        number: int,
        text: str,
        place: Place,
        child: int = 0,
    ) -> None:
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
                child=child,
            )
        )

    def _where(self, args: tuple[Any, ...], place: Place) -> tuple[str, InodeT, int, int]:
        first = args[0] if args and isinstance(args[0], int) else 0
        if not first & OURS:
            return place(first)
        spec = self._views.spec_of(first)
        return (spec.shown or spec.key if spec else f"inode {first}"), InodeT(first), 0, 0

    def check_removal(self, owner: str, ctx: RequestContext, path: str) -> None:
        """Raise ``PermissionError`` for a process that was refused an attribute of ``owner``."""
        refused = self._views.refused
        if refused and (ctx.pid, _started(ctx.pid), owner) in refused:
            raise PermissionError(errno.EPERM, _KEPT, path)


def refusal(site: Site, views: Views, event: Event) -> None:
    """Report a mutation the plane refused."""
    spec = views.spec_of(event.nodeid)
    owner = spec.owner if spec else ""
    text = _KEPT
    if event.error != errno.EPERM:
        text = (spec.refusal if spec else "") or "this view is read-only"
    elif owner.startswith(PRIVATE):
        text = _LISTED
        _remember(views, event.pid, owner.removeprefix(PRIVATE))
    failure(site, views, event, event.error, text)


def failure(site: Site, views: Views, event: Event, number: int, text: str) -> None:
    """Report a mutation that failed before it was tried."""
    spec = views.spec_of(event.nodeid)
    path = "/".join(
        [spec.shown or spec.key if spec else f"inode {event.nodeid}", *map(os.fsdecode, event.names[:1])]
    )
    site.errors.add(
        Failure(
            time_ns=time.time_ns(),
            pid=event.pid,
            uid=event.uid,
            operation=event.operation,
            path=path,
            number=number,
            text=text,
            inode=event.nodeid,
            child=_child(views, event),
        )
    )


def _child(views: Views, event: Event) -> int:
    """The node of the entry a mutation of a directory was about."""
    if event.operation not in OF_A_NAME or not event.names:
        return 0
    return views.exports.plane.child(event.nodeid, event.names[0])


def _remember(views: Views, pid: int, owner: str) -> None:
    """Refuse a process every removal in an object from now on."""
    for trees in (owner, f"{PRIVATE}{owner}"):
        _deny(views, pid, trees)
    views.refused[pid, _started(pid), owner] = None
    while len(views.refused) > _REMEMBERED:
        views.refused.popitem(last=False)


def _deny(views: Views, pid: int, owner: str) -> None:
    views.exports.plane.deny(pid, _started(pid), owner_number(owner))


def _started(pid: int) -> int:
    """Start time of a process in clock ticks, which tells a reused pid apart; 0 if it is gone."""
    return int(started(pid) or 0)
