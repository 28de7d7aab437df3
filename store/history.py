"""Snapshots of containers: taking, listing, renaming, removing, and going back to one.

A snapshot is a read-only copy of a container's layer that the graph driver keeps under the key
``<container id>/<name>``; when, why and whether it is pinned is in :class:`~store.state.State`
(:mod:`store.snapshots` keeps the two together). Operations of several steps are recorded in the
state's intent journal first; :meth:`History.recover` ends those that a dead process left.

A container that another tool deleted leaves its snapshots as an orphan, until somebody reaps it.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from store import retention
from store.ballast import Ballast
from store.errors import ContainerUnknown, InUse, Pinned, SnapshotUnknown
from store.fill import FILL, end_fill
from store.holders import PATIENCE, Holder, holders
from store.oci import NEW_LAYER, end_new_layer
from store.pins import Pins
from store.snapshots import RENAME, SnapshotTable, check_snapshot_name
from store.state import Intent, Snapshot, State, unless_full
from store.state_copy import state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from store.records import Container
    from store.store import Store

__all__ = ["History", "Orphan", "Snapshot", "check_snapshot_name"]

Reason = Literal["manual", "write", "timer", "pre-rollback", "found"]
"""Why a snapshot exists; ``found``: on disk without a row, so nobody knows any more."""

ROLLBACK, DELETE = "rollback", "delete-container"
HOLDERS_NAMED = 3
"""How many holders the text of :class:`InUse` lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """Snapshots whose container is gone; ``container_id`` is the full ID it had."""

    container_id: str
    snapshots: tuple[Snapshot, ...]


class History:
    """The snapshots of one store's containers. Safe to use from any thread.

    Args:
        state: the store's state; opened by :func:`store.state_copy.state_of` when not given.
        policy: what retention keeps, and how much space automatic snapshots need.

    ``container`` arguments are whatever :meth:`Store.container` resolves; where a container may be
    gone, the full ID it had will do. Where the driver keeps no snapshots (:attr:`supported`) there
    are none, and methods that need one raise ``drivers.errors.NotSupported``. Any may raise ``OSError``.
    """

    def __init__(
        self, store: Store, state: State | None = None, policy: retention.Policy = retention.DEFAULT_POLICY
    ) -> None:
        self.store = store
        self.policy = policy
        self.ballast = Ballast(store.graphroot)
        self.ballast.release_if_full()
        self.state = state or state_of(store)
        self.pins = Pins(self.state)
        store.guard = self.pins.refuse
        self._guard = threading.Lock()
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self.writers: Callable[[str], int] = lambda container_id: 0
        """How many files of a container others have this process keep open for writing; a daemon knows."""
        self._deleted_ns: deque[int] = deque(maxlen=1000)
        if not store.read_only:
            self.recover()

    @property
    def supported(self) -> bool:
        """Whether the store's driver keeps snapshots."""
        return self.store.driver.capabilities.snapshots

    @cached_property
    def table(self) -> SnapshotTable:
        """The copies and what is known of them; ``NotSupported``."""
        return SnapshotTable(self.store.driver.snapshots(), self.state)

    # -- reading -------------------------------------------------------------------------------

    def list(self, container: str) -> tuple[Snapshot, ...]:
        """A container's snapshots, oldest first; ``ContainerUnknown``."""
        return self._all(self._container_id(container))

    def get(self, container: str, name: str) -> Snapshot:
        """One snapshot; ``ContainerUnknown``, ``SnapshotUnknown``."""
        return self.table.known(self._container_id(container), name)

    def path(self, container: str, name: str) -> Path:
        """The directory of a snapshot's content; ``ContainerUnknown``, ``SnapshotUnknown``."""
        return self.table.path(self._container_id(container), name)

    def generation(self, container: str) -> int:
        """A number that grows with every change of the container's rootfs; commits changes first."""
        return self.table.copies.generation(self.store.container(container).layer)

    def list_orphans(self) -> tuple[Orphan, ...]:
        """Snapshots whose container is in no table any more, grouped by container."""
        snapshots = self._all()
        catalog = self.store.catalog()
        grouped: defaultdict[str, list[Snapshot]] = defaultdict(list)
        for snapshot in snapshots:
            if catalog.container(snapshot.container_id) is None:
                grouped[snapshot.container_id].append(snapshot)
        return tuple(Orphan(container_id=key, snapshots=tuple(grouped[key])) for key in sorted(grouped))

    # -- one snapshot --------------------------------------------------------------------------

    def take(self, container: str, name: str | None = None, reason: Reason = "manual") -> Snapshot:
        """Snapshot a container as it is now.

        Args:
            name: chosen by a person; without it the time becomes the name (``20260815T143000Z``),
                and retention may remove the snapshot later.

        Raises:
            ContainerUnknown, SnapshotExists, BadName
        """
        if name is not None:
            check_snapshot_name(name)
        found = self.store.container(container)
        with self.locked(found.id):
            return self._take(found, name, reason)

    def take_if_changed(
        self, container: str, reason: Reason = "write", landed: Callable[[], None] | None = None
    ) -> Snapshot | None:
        """An automatic snapshot, unless the container is as it was when the latest one was taken.

        Args:
            landed: called as soon as the content is safe, before what is known of it is written down. A
                crash in between loses no more than the reason; readers of this process wait for it.

        Raises:
            ContainerUnknown; OSError: ENOSPC when less than ``policy.take_floor`` is free
        """
        found = self.store.container(container)
        with self.locked(found.id):
            taken = self.table.all(found.id)
            if taken and self.table.unchanged_since(taken[-1], found.layer):
                return None
            self._require_space()
            return self._take(found, None, reason, landed)

    def record(self, container_id: str, name: str, reason: Reason = "write") -> Snapshot:
        """Write down an automatic snapshot of which there is the copy; ``SnapshotUnknown``.

        The copy was made in the driver's :meth:`~drivers.snapshots.Snapshots.home`, under a name like those
        of :meth:`take`.
        """
        return self.table.record(
            Snapshot(container_id=container_id, name=name, created_ns=time.time_ns(), reason=reason)
        )

    def remove(self, container: str, name: str) -> None:
        """Delete a snapshot; ``ContainerUnknown``, ``SnapshotUnknown``, ``Pinned``."""
        container_id = self._container_id(container)
        with self.locked(container_id):
            snapshot = self.table.known(container_id, name)
            refuse_if_pinned(container_id, [snapshot])
            self.table.drop(snapshot)

    def rename(self, container: str, old: str, new: str) -> Snapshot:
        """Give a snapshot another name, which retention then respects.

        Raises:
            ContainerUnknown, SnapshotUnknown, SnapshotExists, BadName
        """
        check_snapshot_name(new)
        container_id = self._container_id(container)
        with self.locked(container_id):
            return self.table.move(self.table.known(container_id, old), new)

    def pin(self, container: str, name: str, pinned: bool = True) -> Snapshot:
        """Protect a snapshot from removal, or stop protecting it; ``SnapshotUnknown``."""
        container_id = self._container_id(container)
        with self.locked(container_id):
            snapshot = replace(self.table.known(container_id, name), pinned=pinned)
            self.state.put_snapshot(snapshot, durable=True)
            return snapshot

    # -- whole containers ----------------------------------------------------------------------

    def rollback(self, container: str, name: str) -> Snapshot:
        """Make a container's rootfs a writable copy of snapshot ``name``, in one step.

        Returns:
            the snapshot ``pre-rollback-<time>`` that keeps the state before.

        Raises:
            ContainerUnknown, SnapshotUnknown
            InUse: the container is mounted, or a process other than this one is at work in its
                rootfs, or by way of this one has a file there open for writing; nothing was changed.
            NotSupported: files are in subvolumes nested in the rootfs, which no snapshot holds.
        """
        found = self.store.container(container)
        with self.locked(found.id):
            snapshot = self.table.known(found.id, name)
            at_work, writing = holders(self.store.driver.get(found.layer)), self._writing(found.id)
            before = self.table.free_name(found.id, "pre-rollback-")
            details = {"container": found.id, "before": before}
            with self.store.transaction(layers="w") as tables:
                refuse_if_held(found, tables.layers.mounts.view.count(found.layer), at_work, writing)
                with self.state.intent(ROLLBACK, details):
                    return self._restore(found, snapshot, before)

    def delete_container(self, container: str) -> None:
        """Delete a container and its snapshots.

        Raises:
            ContainerUnknown; Pinned: a snapshot of it is; what Store.delete_container raises
            InUse: the container is mounted, or a process other than this one is at work in its
                rootfs; btrfs itself would let both lose their files.
        """
        self.ballast.release_if_full()
        found = self.store.container(container)
        with self.locked(found.id):
            refuse_if_pinned(found.id, self._all(found.id))
            at_work = holders(self.store.driver.path_of(found.layer))
            refuse_if_held(found, self.store.catalog().mount_count(found.layer), at_work)
            with self._deletion_intent(found.id):
                self.store.delete_container(found.id)
                self._forget(found.id)

    def reap(self, container_id: str) -> None:
        """Delete an orphan's snapshots.

        Raises:
            SnapshotUnknown: no such orphan; InUse: the container exists; Pinned
        """
        if self.store.catalog().container(container_id) is not None:
            raise InUse(f"container {container_id[:12]} exists, so its snapshots are no orphan")
        with self.locked(container_id):
            snapshots = self._all(container_id)
            if not snapshots:
                raise SnapshotUnknown(f"there are no snapshots of a container {container_id!r:.80}")
            refuse_if_pinned(container_id, snapshots)
            self._forget(container_id)

    # -- retention -----------------------------------------------------------------------------

    def expire(
        self, *, now_ns: int | None = None, policy: retention.Policy | None = None
    ) -> tuple[retention.Deletion, ...]:
        """Delete what retention lets go now, as far as its pace allows; returns what was deleted.

        Args:
            now_ns: the present, in nanoseconds since the epoch.
            policy: another than the history's own.
        """
        now = time.time_ns() if now_ns is None else now_ns
        planned = retention.plan(
            [_candidate(s) for s in self._all()],
            now_ns=now,
            free=self.free_space(),
            recent_ns=tuple(self._deleted_ns),
            policy=policy or self.policy,
        )
        return tuple(deletion for deletion in planned if self._expire_one(deletion, now))

    def free_space(self) -> float:
        """The fraction of the filesystem below the graphroot that is free to use."""
        info = os.statvfs(self.store.graphroot)
        return info.f_bavail / info.f_blocks if info.f_blocks else 1.0

    def _require_space(self) -> None:
        free = self.free_space()
        if not retention.may_take(free, self.policy):
            raise OSError(
                errno.ENOSPC,
                f"no automatic snapshot: {free:.0%} of the filesystem is free and "
                f"{self.policy.take_floor:.0%} is needed",
                str(self.store.graphroot),
            )

    def _expire_one(self, deletion: retention.Deletion, now_ns: int) -> bool:
        """Delete one snapshot unless it was pinned, renamed or removed meanwhile."""
        candidate = deletion.snapshot
        with self.locked(candidate.container_id):
            snapshot = self.state.snapshot(candidate.container_id, candidate.name)
            if snapshot is None or _candidate(snapshot) != candidate:
                return False
            self.table.drop(snapshot)
        self._deleted_ns.append(now_ns)
        return True

    # -- after a crash -------------------------------------------------------------------------

    def recover(self) -> None:
        """End what processes that died had begun, and reconcile copies and rows. Runs when opened.

        The latest goes first: a layer is made before the layers over it.
        """
        ways: dict[str, Callable[[Intent], None]] = {
            RENAME: lambda intent: self.table.end_rename(intent),
            ROLLBACK: self._end_rollback,
            DELETE: self._end_delete,
            FILL: lambda intent: end_fill(self.store, intent),
            NEW_LAYER: lambda intent: end_new_layer(self.store, intent),
        }
        if self.supported:
            self.table.reconcile()
        for intent in reversed(self.state.pending()):
            if not intent.alive and intent.kind in ways:
                ways[intent.kind](intent)
                self.state.done(intent.id)

    def _end_rollback(self, intent: Intent) -> None:
        """The swap is one step. If it never came, the copy of the state before is not wanted.

        The row of that copy was durable before the swap, so a copy without one means no swap.
        """
        container_id, before = str(intent.details["container"]), str(intent.details["before"])
        row = self.state.snapshot(container_id, before)
        try:
            layer = self.store.container(container_id).layer
        except ContainerUnknown:
            return
        if row and (row.reason == "found" or self.table.unchanged_since(row, layer)):
            self.table.drop(row)

    def _end_delete(self, intent: Intent) -> None:
        container_id = str(intent.details["container"])
        if self.store.catalog().container(container_id) is None:
            self._forget(container_id)

    # -- parts ---------------------------------------------------------------------------------

    @contextmanager
    def locked(self, container_id: str) -> Iterator[None]:
        """One operation at a time on one container's history."""
        with self._guard:
            lock = self._locks[container_id]
        with lock:
            yield

    def _writing(self, container_id: str) -> int:
        """:attr:`writers`, a moment later: that is when we are told of files just closed."""
        ends = time.monotonic() + PATIENCE
        while (found := self.writers(container_id)) and time.monotonic() < ends:
            time.sleep(0.02)
        return found

    def _all(self, container_id: str | None = None) -> tuple[Snapshot, ...]:
        """Snapshots of one container or of all, oldest first; none where the driver keeps none."""
        return tuple(self.table.all(container_id)) if self.supported else ()

    def _container_id(self, container: str) -> str:
        """The full ID of a container, or of one that is gone but has snapshots."""
        try:
            return self.store.container(container).id
        except ContainerUnknown:
            if self._all(container):
                return container
            raise

    def _take(
        self,
        container: Container,
        name: str | None,
        reason: Reason,
        landed: Callable[[], None] | None = None,
    ) -> Snapshot:
        before_rollback = reason == "pre-rollback"
        snapshot = Snapshot(
            container_id=container.id,
            name=name or "",
            created_ns=time.time_ns(),
            reason=reason,
            named=name is not None and not before_rollback,
        )
        if name is None:
            return self.table.take_automatic(container.layer, snapshot, landed)
        return self.table.take(container.layer, snapshot, durable=before_rollback)

    def _restore(self, container: Container, snapshot: Snapshot, before: str) -> Snapshot:
        kept = self._take(container, before, "pre-rollback")
        try:
            self.table.restore(snapshot, container.layer)
        except BaseException:
            self.table.drop(kept)
            raise
        return kept

    @contextmanager
    def _deletion_intent(self, container_id: str) -> Iterator[None]:
        """Record the deletion if there is room for it; else snapshots a crash leaves are an orphan."""
        intent = None
        with unless_full():
            intent = self.state.begin(DELETE, {"container": container_id})
        try:
            yield
        finally:
            with unless_full():
                if intent is not None:
                    self.state.done(intent)

    def _forget(self, container_id: str) -> None:
        for snapshot in self._all(container_id):
            with unless_full():  # the copy goes first, and a row without one is dropped later
                self.table.drop(snapshot)
        with unless_full():
            self.state.forget_container(container_id)


def refuse_if_held(container: Container, mounts: int, at_work: list[Holder], writing: int = 0) -> None:
    """Raise :class:`InUse`, which names the first holders, if there are any."""
    if not mounts and not at_work and not writing:
        return
    who = [str(holder) for holder in at_work[:HOLDERS_NAMED]]
    if len(at_work) > HOLDERS_NAMED:
        who.append(f"{len(at_work) - HOLDERS_NAMED} more")
    if writing:
        who.append(f"whoever has {writing} of its files open for writing through fsd")
    if mounts:
        who.insert(0, f"a mount (count {mounts}: it runs, or was mounted by hand)")
    label = container.names[0] if container.names else container.id[:12]
    raise InUse(f"container {label} is in use: {', '.join(who)}; stop or unmount it, then try again")


def refuse_if_pinned(container_id: str, snapshots: Iterable[Snapshot]) -> None:
    """Raise :class:`Pinned` if one of a container's snapshots is."""
    pinned = ", ".join(s.name for s in snapshots if s.pinned)
    if pinned:
        raise Pinned(f"pinned snapshots of container {container_id[:12]}: {pinned}; unpin them first")


def _candidate(snapshot: Snapshot) -> retention.Candidate:
    return retention.Candidate(
        container_id=snapshot.container_id,
        name=snapshot.name,
        created_ns=snapshot.created_ns,
        exempt=snapshot.pinned or snapshot.named,
    )
