"""Orphans: content on disk that nothing names, why it is one, and how it goes.

Three kinds, each the difference of two sets: layers the driver holds, without those that a record names,
somebody is unpacking, or a mount needs; snapshots, without those of containers that exist or are in the
trash; layers set aside, without those of the trash's entries. Only the last two are provably ours. Another
tool may have made the first, so they go only when somebody asks for it.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from drivers.errors import DriverError, NotSupported
from drivers.errors import LayerUnknown as DriverLayerUnknown
from store.durable import remove_tree
from store.errors import InUse, OrphanUnknown, Pinned, SnapshotUnknown
from store.holders import holders
from store.retention import SECOND
from store.sizes import ORPHANS
from store.snapshots import snapshot_key
from store.state import Measure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from store.history import History
    from store.trash import Trash

Kind = Literal["layer", "snapshots", "aside"]

SETTLED: Final = 60.0
"""Seconds a layer without a record is left out: who makes one saves its record in the end."""
MINIMUM_AGE: Final = 24 * 3600.0
"""Seconds before :meth:`Orphans.reap_ours` takes one; as in containers/storage's check."""
_LAYER_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """Content nothing names.

    Attributes:
        id: unique among orphans, one path component.
        key: what the driver calls it: a layer's ID, a container's ID, or the key of a layer set aside.
        born_ns: since when it has been there, in nanoseconds since the epoch; 0 if not known.
        ours: whether it is certain that no other tool made it, or misses it.
        path: directory of its tree; ``None`` for the snapshots of a container, which have many.
        size: bytes its removal would free, as last measured; ``None`` if it never was.
    """

    id: str
    kind: Kind
    key: str
    reason: str
    born_ns: int
    ours: bool
    path: Path | None
    size: int | None = None


class Orphans:
    """The orphans of one store; safe to use from any thread. Methods may raise ``OSError``."""

    def __init__(self, history: History, trash: Trash) -> None:
        self._history = history
        self._store = history.store
        self._state = history.state
        self._trash = trash

    # -- looking -------------------------------------------------------------------------------

    def list(self, now_ns: int | None = None) -> tuple[Orphan, ...]:
        """All orphans, oldest first. Takes no lock and walks no tree."""
        now = time.time_ns() if now_ns is None else now_ns
        found = [*self._layers(now), *self._snapshots(), *self._set_aside()]
        return tuple(sorted(found, key=lambda orphan: (orphan.born_ns, orphan.id)))

    def get(self, orphan_id: str, now_ns: int | None = None) -> Orphan:
        """One orphan; ``OrphanUnknown``."""
        for orphan in self.list(now_ns):
            if orphan.id == orphan_id:
                return orphan
        raise OrphanUnknown(f"there is no orphan {orphan_id!r:.80} (any more)")

    def measure(self, orphan_id: str) -> int | None:
        """Bytes its removal would free, measured now; ``None`` if the driver cannot tell.

        Raises:
            OrphanUnknown, DriverError
        """
        orphan = self.get(orphan_id)
        size = self._freed(orphan)
        if size is not None:
            self._state.put_measure(_measure(orphan, size))
        return size

    def _freed(self, orphan: Orphan) -> int | None:
        driver = self._store.driver
        with suppress(NotSupported):
            if orphan.kind == "layer":
                return driver.freed([orphan.key]).exclusive
            if orphan.kind == "aside":
                return driver.freed([], aside=[orphan.key]).exclusive
            names = (s.name for s in self._history.list(orphan.key))
            return driver.freed([], snapshots=[snapshot_key(orphan.key, n) for n in names]).exclusive
        return None

    def _size(self, orphan_id: str) -> int | None:
        row = self._state.measure(f"{ORPHANS}/{orphan_id}")
        return row.freed if row else None

    # -- the three kinds -----------------------------------------------------------------------

    def _layers(self, now_ns: int) -> Iterator[Orphan]:
        driver = self._store.driver
        for layer_id in sorted(self._unrecorded()):
            with suppress(DriverLayerUnknown, FileNotFoundError):
                born_ns = driver.born_ns(layer_id)
                if now_ns - born_ns >= SETTLED * SECOND:
                    yield Orphan(
                        id=layer_id,
                        kind="layer",
                        key=layer_id,
                        reason=_why(layer_id),
                        born_ns=born_ns,
                        ours=False,
                        path=driver.path_of(layer_id),
                        size=self._size(layer_id),
                    )

    def _unrecorded(self) -> set[str]:
        """Layers in the driver that no record names; none while the table cannot be parsed.

        The disk is read before the records, and no record comes before its content.
        """
        held = set(self._store.driver.layer_ids())
        layers = self._store.tables.layers.peek()
        if any(broken.id.endswith(".json") for broken in layers.broken):
            return set()
        known = {broken.id for broken in layers.broken} | layers.by_id.keys()
        mounted = {mount.id for mount in self._store.mounts_now() if mount.count}
        return held - known - mounted - self._store.staged_ids()

    def _snapshots(self) -> Iterator[Orphan]:
        trashed = {entry.object_id for entry in self._trash.list() if entry.kind == "containers"}
        if self._store.tables.containers.peek().broken:
            return  # they might belong to a container whose record cannot be read
        for group in self._history.list_orphans():
            if group.container_id not in trashed:
                count = len(group.snapshots)
                yield Orphan(
                    id=group.container_id,
                    kind="snapshots",
                    key=group.container_id,
                    reason=f"the container was removed by another tool; {count} of its snapshots are left",
                    born_ns=min(snapshot.created_ns for snapshot in group.snapshots),
                    ours=True,
                    path=None,
                    size=self._size(group.container_id),
                )

    def _set_aside(self) -> Iterator[Orphan]:
        if not self._trash.supported:
            return
        aside = self._trash.moves.aside
        keys = sorted(aside.keys())
        for key in keys:
            entry_id, _, layer_id = key.partition("/")
            if not self._trash.entries.directory(entry_id).exists():
                orphan_id = f"{entry_id}+{layer_id[:12]}"
                yield Orphan(
                    id=orphan_id,
                    kind="aside",
                    key=key,
                    reason="it was in the trash, but its entry is lost",
                    born_ns=_changed_ns(aside.path(key).parent),
                    ours=True,
                    path=aside.path(key),
                    size=self._size(orphan_id),
                )

    # -- reaping -------------------------------------------------------------------------------

    def reap(self, orphan_id: str, now_ns: int | None = None) -> Orphan:
        """Remove an orphan for good, because somebody asks for it.

        Raises:
            OrphanUnknown: also if it turns out under the locks that something names it now
            InUse: a process is at work in it; LayerMounted; Pinned: one of the snapshots
            LockTimeout
        """
        orphan = self.get(orphan_id, now_ns)
        if orphan.path is not None and orphan.path.is_dir():
            at_work = holders(orphan.path)
            if at_work:
                raise InUse(f"orphan {orphan_id} is in use: {at_work[0]}")
        if orphan.kind == "snapshots":
            self._reap_snapshots(orphan)
        else:
            with self._store.transaction(layers="w", images="w", containers="w"):
                self._reap_locked(orphan)
        self._state.drop_measures([f"{ORPHANS}/{orphan.id}"])
        return orphan

    def reap_ours(self, now_ns: int | None = None, minimum_age: float = MINIMUM_AGE) -> tuple[Orphan, ...]:
        """Remove what is provably ours and old enough; snapshots a person named or pinned stay."""
        now = time.time_ns() if now_ns is None else now_ns
        reaped = []
        for orphan in self.list(now):
            if orphan.ours and now - orphan.born_ns >= minimum_age * SECOND and not self._is_wanted(orphan):
                with suppress(OrphanUnknown, InUse, Pinned, DriverError):
                    reaped.append(self.reap(orphan.id, now))
        return tuple(reaped)

    def _is_wanted(self, orphan: Orphan) -> bool:
        if orphan.kind != "snapshots":
            return False
        return any(s.named or s.pinned for s in self._state.snapshots(orphan.key))

    def _reap_snapshots(self, orphan: Orphan) -> None:
        try:
            self._history.reap(orphan.key)
        except SnapshotUnknown:
            raise OrphanUnknown(f"the snapshots of container {orphan.key[:12]} are gone already") from None

    def _reap_locked(self, orphan: Orphan) -> None:
        if orphan.kind == "aside":
            if orphan.id not in {other.id for other in self._set_aside()}:
                raise OrphanUnknown(f"{orphan.id} belongs to an entry of the trash now")
            self._trash.moves.aside.discard(orphan.key)
            return
        if orphan.key not in self._unrecorded():
            raise OrphanUnknown(f"layer {orphan.key} has a record now, or somebody uses it")
        self._store.driver.remove(orphan.key)
        remove_tree(self._store.layer_directory(orphan.key))
        self._store.tar_split_path(orphan.key).unlink(missing_ok=True)


def _why(layer_id: str) -> str:
    if _LAYER_ID.fullmatch(layer_id):
        return (
            "no record names it: it was being made or removed when a tool was killed, or its record was lost"
        )
    return "no record names it, and its name is no layer ID: it was put there by hand"


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _measure(orphan: Orphan, size: int) -> Measure:
    return Measure(
        object=f"{ORPHANS}/{orphan.id}",
        basis="",
        size=size,
        exclusive=size,
        shared=None,
        freed=size,
        method="extents",
        measured_ns=time.time_ns(),
    )
