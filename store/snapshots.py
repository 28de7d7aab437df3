"""A container's snapshots as pairs: the driver's copy on disk, and the state's row about it.

The copies are the truth. Each step here changes the copy first and the row second, so that a crash
between the two leaves a difference :meth:`SnapshotTable.reconcile` knows how to settle.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from drivers import errors as driver_errors
from drivers.base import NAME_MAX
from store.errors import BadName, SnapshotExists, SnapshotUnknown
from store.state import Intent, Snapshot, State, unless_full

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from drivers.snapshots import Snapshots

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@+-]*")
TIMESTAMP = "%Y%m%dT%H%M%SZ"
AUTOMATIC_NAME = re.compile(r"(?:pre-rollback-)?\d{8}T\d{6}Z(?:_\d+)?")
_COURTESY = 0.0005
"""Seconds by which a row comes after the writers it let go, who else had to share the processor with it."""
_BEHIND = -1
"""An epoch the state never has: some rows are of copies that are gone."""
RENAME = "snapshot-rename"
"""The kind of intent :meth:`SnapshotTable.move` records."""


def check_snapshot_name(name: str) -> None:
    """Raise :class:`BadName` unless ``name`` can name a snapshot."""
    if not NAME.fullmatch(name):
        raise BadName(
            f"{name!r:.80} cannot name a snapshot: use letters, digits and _ . : @ + -, "
            "with a letter or digit first"
        )
    if len(name) > NAME_MAX:
        raise BadName(f"snapshot name {name[:32]!r}… has {len(name)} bytes, {NAME_MAX} are possible")


class SnapshotTable:
    """Copies and rows of one store; ``container_id`` is always a full ID.

    The caller keeps two operations on one container from running at once.
    """

    def __init__(self, copies: Snapshots, state: State) -> None:
        self.copies = copies
        self.state = state
        self.catch_up: Callable[[], object] = lambda: None
        """Called before rows are read: writes down (:meth:`record`) what others of this process took."""
        self._epoch = 0
        self._recorded = threading.Condition()
        self._unrecorded: dict[object, str] = {}
        """Copies whose row is being written though writes to the layer go on; by container."""

    def all(self, container_id: str | None = None) -> list[Snapshot]:
        """Snapshots of one container, or of all, oldest first."""
        self.refresh()
        self._await_rows(container_id)
        return self.state.snapshots(container_id)

    def known(self, container_id: str, name: str) -> Snapshot:
        """One snapshot; ``SnapshotUnknown``."""
        self.refresh()
        self._await_rows(container_id)
        snapshot = self.state.snapshot(container_id, name)
        if snapshot is None:
            raise SnapshotUnknown(f"container {container_id[:12]} has no snapshot {name!r:.80}")
        return snapshot

    def path(self, container_id: str, name: str) -> Path:
        """Directory of a snapshot's content; ``SnapshotUnknown``."""
        with _translated(container_id, name):
            return self.copies.path(snapshot_key(container_id, name))

    def free_name(self, container_id: str, prefix: str = "") -> str:
        """``prefix`` and the time in UTC, with a number if there is a snapshot of that name."""
        names = _names(prefix)
        return next(name for name in names if not self.copies.exists(snapshot_key(container_id, name)))

    def take_automatic(
        self, layer: str, snapshot: Snapshot, landed: Callable[[], None] | None = None
    ) -> Snapshot:
        """:meth:`take` under the first free name."""
        for name in _names():
            with suppress(SnapshotExists):
                return self.take(layer, replace(snapshot, name=name), landed=landed)
        raise AssertionError("names have no end")

    def take(
        self,
        layer: str,
        snapshot: Snapshot,
        *,
        durable: bool = False,
        landed: Callable[[], None] | None = None,
    ) -> Snapshot:
        """Copy ``layer``; time and generation are the copy's own. ``SnapshotExists``.

        Args:
            durable: have the row on disk at return.
            landed: called when the copy is there, and its row is not yet.
        """
        self.refresh()
        with (
            _translated(snapshot.container_id, snapshot.name),
            self._recording(snapshot.container_id) as begin,
        ):
            self.copies.take(layer, snapshot_key(snapshot.container_id, snapshot.name))
            if landed is None:
                return self._record_or_remove(snapshot, durable)
            begin()
            landed()
            time.sleep(_COURTESY)
            return self._record(snapshot, durable)

    def record(self, snapshot: Snapshot, *, durable: bool = False) -> Snapshot:
        """Write down a copy that is there; time and generation are its own. ``SnapshotUnknown``."""
        with _translated(snapshot.container_id, snapshot.name):
            return self._record(snapshot, durable)

    def _record_or_remove(self, snapshot: Snapshot, durable: bool) -> Snapshot:
        """Write down a copy just made, for somebody who will be told that there is none if that fails."""
        try:
            return self._record(snapshot, durable)
        except BaseException:
            with suppress(driver_errors.DriverError, OSError):  # why there is no row says more
                self.copies.remove(snapshot_key(snapshot.container_id, snapshot.name))
            raise

    def _record(self, snapshot: Snapshot, durable: bool) -> Snapshot:
        facts = self.copies.describe(snapshot_key(snapshot.container_id, snapshot.name))
        taken = replace(snapshot, created_ns=facts.created_ns, generation=facts.generation)
        self.state.put_snapshot(taken, durable=durable)
        return taken

    @contextmanager
    def _recording(self, container_id: str) -> Iterator[Callable[[], None]]:
        """A call from which on readers wait until the block ends."""
        ticket = object()

        def begin() -> None:
            with self._recorded:
                self._unrecorded[ticket] = container_id

        try:
            yield begin
        finally:
            with self._recorded:
                if self._unrecorded.pop(ticket, None) is not None:
                    self._recorded.notify_all()

    def _await_rows(self, container_id: str | None) -> None:
        """Return when the copies that are there now have their rows: who saw a write finds its snapshot."""
        self.catch_up()
        with self._recorded:
            awaited = [ticket for ticket, its in self._unrecorded.items() if container_id in (None, its)]
            self._recorded.wait_for(lambda: not any(ticket in self._unrecorded for ticket in awaited))

    def unchanged_since(self, snapshot: Snapshot, layer: str) -> bool:
        """Whether ``layer`` still has the content it had when the snapshot was taken.

        What changed usually shows at once; only when nothing shows is unwritten data waited for.
        """
        return self.is_of(snapshot, layer) and all(
            self.copies.generation(layer, settle=settle) == snapshot.generation for settle in (False, True)
        )

    def is_of(self, snapshot: Snapshot, layer: str) -> bool:
        """Whether a snapshot's copy is there and is one of the tree that ``layer`` has now."""
        try:
            return self.copies.is_copy_of(snapshot_key(snapshot.container_id, snapshot.name), layer)
        except driver_errors.SnapshotUnknown:
            return False

    def restore(self, snapshot: Snapshot, layer: str) -> None:
        """Swap the content of ``layer`` for the snapshot's, in one step; ``SnapshotUnknown``."""
        with _translated(snapshot.container_id, snapshot.name):
            self.copies.restore(snapshot_key(snapshot.container_id, snapshot.name), layer)

    def drop(self, snapshot: Snapshot) -> None:
        """Delete a snapshot; nothing is left to do if its copy is gone.

        A full disk may keep the row, which goes as soon as that can be written.
        """
        with suppress(driver_errors.SnapshotUnknown):
            self.copies.remove(snapshot_key(snapshot.container_id, snapshot.name))
        with unless_full():
            try:
                self.state.drop_snapshot(snapshot.container_id, snapshot.name)
            except BaseException:
                self._epoch = _BEHIND
                raise

    def move(self, snapshot: Snapshot, new: str) -> Snapshot:
        """Give a snapshot a name a person chose; ``SnapshotUnknown``, ``SnapshotExists``."""
        container_id, old = snapshot.container_id, snapshot.name
        details = {"container": container_id, "old": old, "new": new}
        with self.state.intent(RENAME, details), _translated(container_id, old, new):
            self.copies.rename(snapshot_key(container_id, old), snapshot_key(container_id, new))
            return self._moved(snapshot, new)

    # -- copies and rows that differ -----------------------------------------------------------

    def refresh(self) -> None:
        """Reconcile if the state's content was lost since the last time, or a row could not be dropped."""
        if self._epoch != self.state.epoch:
            with unless_full():
                self.reconcile()

    def reconcile(self) -> None:
        """Drop rows that have no copy, add rows for copies that have none; renames under way are left."""
        epoch = self.state.epoch
        moving = {key for i in self.state.pending() if i.kind == RENAME for key in _rename_keys(i)}
        keys = self.copies.keys()
        on_disk = {key for key in keys if key.count("/") == 1} - moving
        rows = {snapshot_key(s.container_id, s.name): s for s in self.state.snapshots()}
        for key in rows.keys() - on_disk - moving:
            if not self.copies.exists(key):  # it may be new since the disk was read
                self.state.drop_snapshot(rows[key].container_id, rows[key].name)
        for key in on_disk - rows.keys():
            self._adopt(*key.split("/"))
        self._epoch = epoch

    def end_rename(self, intent: Intent) -> None:
        """The driver's rename is one step, so either nothing happened or only the row lags."""
        container_id = str(intent.details["container"])
        old, new = (str(intent.details[k]) for k in ("old", "new"))
        row = self.state.snapshot(container_id, old)
        if row and not self.copies.exists(snapshot_key(container_id, old)):
            if self.copies.exists(snapshot_key(container_id, new)):
                self._moved(row, new)
            else:
                self.state.drop_snapshot(container_id, old)

    def _adopt(self, container_id: str, name: str) -> None:
        """Make a row for a copy, with what the copy itself tells."""
        try:
            facts = self.copies.describe(snapshot_key(container_id, name))
        except (FileNotFoundError, driver_errors.SnapshotUnknown):
            return
        found = Snapshot(
            container_id=container_id,
            name=name,
            created_ns=facts.created_ns,
            reason="found",
            generation=facts.generation,
            named=not AUTOMATIC_NAME.fullmatch(name),
        )
        self.state.put_snapshot(found, replace=False)  # whoever takes it just now knows more

    def _moved(self, snapshot: Snapshot, new: str) -> Snapshot:
        moved = replace(snapshot, name=new, named=True)
        self.state.put_snapshot(moved)
        self.state.drop_snapshot(snapshot.container_id, snapshot.name)
        return moved


def _names(prefix: str = "") -> Iterator[str]:
    """``prefix`` and the time in UTC, then the same with a number."""
    stamp = prefix + time.strftime(TIMESTAMP, time.gmtime())
    yield stamp
    yield from (f"{stamp}_{number}" for number in itertools.count(1))


def snapshot_key(container_id: str, name: str) -> str:
    """The driver's key of a container's snapshot."""
    return f"{container_id}/{name}"


def _rename_keys(intent: Intent) -> tuple[str, str]:
    container_id, old, new = (str(intent.details[k]) for k in ("container", "old", "new"))
    return snapshot_key(container_id, old), snapshot_key(container_id, new)


@contextmanager
def _translated(container_id: str, name: str, new: str = "") -> Iterator[None]:
    """The driver's words about a key become the store's about a container's snapshot."""
    short = container_id[:12]
    try:
        yield
    except driver_errors.SnapshotUnknown:
        raise SnapshotUnknown(f"container {short} has no snapshot {name!r:.80}") from None
    except driver_errors.SnapshotExists:
        raise SnapshotExists(f"container {short} already has a snapshot {new or name!r:.80}") from None
