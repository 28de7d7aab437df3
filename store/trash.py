"""The trash: removed containers, images and layers, as they were, until they expire.

The records leave the tables, the layers' content is set aside by the driver, and the rest moves to the
entry's directory (:mod:`store.trash_entries`); no other tool looks there. A removal drops the object's
record first and moves things afterwards, a restoration moves things first and adds the record last, all
under the locks of the tables. So a crash leaves content no record names, never a name without content,
and whoever opens the trash next ends what was begun: the object's record says to which side.

A container's snapshots stay where they are and belong to it again when it comes back. Its directory in
the runroot is kept there, as long as no reboot takes it. Where the driver cannot set layers aside, when
the trash is switched off, or when the disk is short, removal is immediate.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from store import retention
from store.errors import (
    ContainerUnknown,
    InUse,
    NotALayer,
    NotAnImage,
    Pinned,
    SnapshotUnknown,
    TrashUnknown,
)
from store.history import refuse_if_held, refuse_if_pinned
from store.holders import holders
from store.records import Image
from store.state import unless_full
from store.trash_entries import COMPLETE, PENDING, PURGING, Entries, Entry, Kind, Record, new_id
from store.trash_moves import Moves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from store.core import Transaction
    from store.history import History
    from store.records import Layer

__all__ = ["DEFAULT_POLICY", "Entry", "Trash", "TrashPolicy"]

log = logging.getLogger(__name__)

TRASH: Final = "fsd/trash"
"""Below the graphroot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashPolicy:
    """When entries go.

    Attributes:
        lifetime: seconds until an entry expires; 0 switches the trash off.
        minimum_age: seconds an entry is left alone although less than ``space_floor`` is free.
        space_floor: fraction of the filesystem; with less free, the oldest entries go early.
        bypass_floor: with less free, removal is immediate and no entry is left alone.
        purges_per_call: entries that one :meth:`Trash.expire` deletes at most for want of space.
    """

    lifetime: float = 24 * 3600.0
    minimum_age: float = 3600.0
    space_floor: float = 0.20
    bypass_floor: float = 0.10
    purges_per_call: int = 20


DEFAULT_POLICY: Final = TrashPolicy()


class Trash:
    """The removed objects of one store; safe to use from any thread and process.

    Besides what each method names, all may raise ``LockTimeout``, ``StoreReadOnly`` and ``OSError``.
    """

    def __init__(self, history: History, policy: TrashPolicy = DEFAULT_POLICY) -> None:
        self.history = history
        self.store = history.store
        self.pins = history.pins
        self.policy = policy
        self.entries = Entries(self.store.graphroot / TRASH)
        if self.supported and not self.store.read_only:
            self.recover()
            self.history.ballast.restore()

    @property
    def supported(self) -> bool:
        """Whether the store's driver can set layers aside."""
        return self.store.driver.capabilities.snapshots

    @cached_property
    def moves(self) -> Moves:
        """The steps; ``NotSupported``."""
        return Moves(self.store, self.entries)

    @property
    def bypassed(self) -> bool:
        """Whether removal is immediate now."""
        if not self.supported or self.policy.lifetime <= 0:
            return True
        return self.history.free_space() < self.policy.bypass_floor

    # -- looking -------------------------------------------------------------------------------

    def list(self) -> tuple[Entry, ...]:
        """Every entry, oldest first."""
        return tuple(sorted(self.entries.all(), key=lambda entry: (entry.removed_ns, entry.id)))

    def get(self, entry_id: str) -> Entry:
        """One entry; ``TrashUnknown``, ``BadRecord``."""
        return self.entries.read(entry_id)

    def path(self, entry_id: str) -> Path:
        """Directory of the removed object's tree.

        Raises:
            TrashUnknown: also for an object that has no tree of its own, such as an image whose layers
                are still in use.
        """
        entry = self.get(entry_id)
        path = self.moves.content(entry, entry.top) if entry.top else None
        if path is None or not path.is_dir():
            raise TrashUnknown(f"{entry_id} holds no tree: its layers are in use elsewhere")
        return path

    def expires_ns(self, entry: Entry) -> int | None:
        """When an entry expires, in nanoseconds since the epoch; ``None`` while it is pinned."""
        if self.pins.is_pinned("trash", entry.id):
            return None
        return entry.removed_ns + int(self.policy.lifetime * retention.SECOND)

    def expired(self, now_ns: int | None = None) -> tuple[Entry, ...]:
        """What may go now, oldest first: expired, or in the way of new data; pinned entries never."""
        now = time.time_ns() if now_ns is None else now_ns
        pinned = {entry_id for kind, entry_id in self.pins.all() if kind == "trash"}
        entries = [entry for entry in self.list() if entry.id not in pinned]
        due = [entry for entry in entries if _age(entry, now) >= self.policy.lifetime]
        spared = self._spared()
        early = [entry for entry in entries[len(due) :] if spared is not None and _age(entry, now) >= spared]
        return (*due, *early[: self.policy.purges_per_call])

    def _spared(self) -> float | None:
        """Seconds for which an entry stays with the space there is; ``None`` when there is enough."""
        free = self.history.free_space()
        if free < self.policy.bypass_floor:
            return 0.0
        return self.policy.minimum_age if free < self.policy.space_floor else None

    # -- removing ------------------------------------------------------------------------------

    def remove(self, kind: Kind, key: str, *, now: bool = False) -> Entry | None:
        """Remove an object of a kind; ``None`` if it did not go to the trash but for good.

        Args:
            now: for good, whatever the policy says; a container's snapshots go with it.

        Raises:
            what removing an object of that kind raises below
        """
        kept = {"containers": self.remove_container, "images": self.remove_image, "layers": self.remove_layer}
        if not now:
            return kept[kind](key)
        self.history.ballast.release_if_full()
        gone: dict[Kind, Callable[[str], object]] = {
            "containers": self.history.delete_container,
            "images": self.store.delete_image,
            "layers": self.store.delete_layer,
        }
        gone[kind](key)
        return None

    def remove_container(self, container: str) -> Entry | None:
        """Remove a container; ``None`` if it did not go to the trash but for good.

        Raises:
            ContainerUnknown; InUse: mounted, or a process is at work in it; Pinned: it, or a snapshot
        """
        found = self.store.container(container)
        if self.bypassed:
            self.history.delete_container(found.id)
            return None
        with self.history.locked(found.id):
            refuse_if_pinned(found.id, self.history.list(found.id))
            tree = self.store.driver.path_of(found.layer)
            at_work = holders(tree) if tree.is_dir() else []
            with self.store.transaction(layers="w", images="r", containers="w") as tx:
                record = tx.containers.get(found.id)
                if record is None:
                    raise ContainerUnknown(f"container {container!r:.80} was removed meanwhile")
                self.store.ask_guard(record)
                refuse_if_held(record, tx.layers.mounts.view.count(record.layer), at_work)
                layer = tx.layers.get(record.layer)
                own = [] if layer is None or tx.layers.view.children(layer.id) else [layer]
                return self._remove(tx, "containers", record, own)

    def remove_image(self, image: str) -> Entry | None:
        """Remove an image and the layers only it needs; ``None`` if it went for good.

        Raises:
            NotAnImage, ImageUsedByContainer, InUse (one of the layers is mounted), Pinned
        """
        if self.bypassed:
            self.history.ballast.release_if_full()
            self.store.delete_image(image)
            return None
        with self.store.transaction(layers="w", images="w", containers="w") as tx:
            record = tx.images.view.resolve(image)
            if record is None:
                raise NotAnImage(f"no image is called {image!r:.80}")
            doomed = self.store.check_image_unused(tx, record)
            layers = [layer for i in reversed(doomed) if (layer := tx.layers.get(i)) is not None]
            _refuse_if_mounted(tx, layers)
            return self._remove(tx, "images", record, layers)

    def remove_layer(self, layer: str) -> Entry | None:
        """Remove a layer that nothing needs; ``None`` if it went for good.

        Raises:
            NotALayer, LayerHasChildren, LayerUsedByImage, LayerUsedByContainer, InUse (mounted), Pinned
        """
        if self.bypassed:
            self.history.ballast.release_if_full()
            self.store.delete_layer(layer)
            return None
        with self.store.transaction(layers="w", images="w", containers="w") as tx:
            record = tx.layers.view.resolve(layer)
            if record is None:
                raise NotALayer(f"no layer is called {layer!r:.80}")
            self.store.check_layer_unused(tx, record)
            _refuse_if_mounted(tx, [record])
            return self._remove(tx, "layers", record, [record])

    def _remove(self, tx: Transaction, kind: Kind, record: Record, layers: Sequence[Layer]) -> Entry:
        now = time.time_ns()
        moves = self.moves
        entry = self.entries.begin(
            Entry(
                id=new_id(record, now),
                kind=kind,
                record=record,
                layers=tuple(layers),
                removed_ns=now,
                limits=moves.limits(layers),
                mapped_by=moves.mapped_by(tx, kind, record),
            )
        )
        try:
            moves.drop_record(tx, entry)
            moves.sink(tx, entry)
        except BaseException:
            self._give_back(tx, entry)
            raise
        self.entries.advance(entry.id, PENDING, COMPLETE)
        return entry

    def _give_back(self, tx: Transaction, entry: Entry) -> None:
        """After a failed removal; what cannot be given back stays pending for :meth:`recover`."""
        try:
            if not self.moves.is_present(entry):
                self.moves.bring_back(tx, entry, entry.record)
            self._void(entry)
        except Exception:
            log.exception("the removal of %s %s failed half way", entry.kind[:-1], entry.object_id)

    # -- bringing back -------------------------------------------------------------------------

    def restore(self, entry_id: str, name: str | None = None) -> Record:
        """Put an object back as it was.

        What was removed meanwhile is not needed by a container: without its image it names none, and
        without its parent its layer stands for itself.

        Args:
            name: the only name it has then, instead of those it had.

        Returns:
            the record it has now.

        Raises:
            TrashUnknown, BadRecord
            DuplicateName: one of the names was taken meanwhile; give another one.
            DuplicateID: another object of that ID exists. An image of the same content gets the names.
            ParentUnknown: an image or layer needs a layer that was removed since.
        """
        moves = self.moves
        with self.store.transaction(layers="w", images="w", containers="w") as tx:
            entry = self.get(entry_id)
            record = moves.restorable(tx, entry, name)
            if isinstance(record, Image) and moves.is_present(
                entry
            ):  # an image of the same content: it needs the names only
                self.entries.advance(entry.id, COMPLETE, PURGING)
                tx.images.put(record)
                tx.images.flush()
                self._void(entry)
                return record
            self.entries.advance(entry.id, COMPLETE, PENDING)
            try:
                moves.bring_back(tx, entry, record)
            except BaseException:
                self._settle(tx, entry)
                raise
            self._void(entry)
        return record

    # -- deleting ------------------------------------------------------------------------------

    def purge(self, entry_id: str) -> None:
        """Delete an entry for good, with a container's snapshots that are not pinned.

        Raises:
            TrashUnknown, Pinned
        """
        if self.pins.is_pinned("trash", entry_id):
            raise Pinned(f"{entry_id} in the trash is pinned; remove the pin to purge it")
        self.history.ballast.release_if_full()
        entry = self.entries.read(entry_id)
        self.entries.advance(entry_id, COMPLETE, PURGING)
        self._finish_purge(entry)

    def expire(self, now_ns: int | None = None) -> tuple[Entry, ...]:
        """Purge what :meth:`expired` lists; returns what was purged. What was left half way ends first."""
        if self.supported and not self.store.read_only:
            with unless_full():
                self._settle_all()
        gone = []
        for entry in self.expired(now_ns):
            with suppress(TrashUnknown, Pinned):
                self.purge(entry.id)
                gone.append(entry)
        if not self.store.read_only:
            self.history.ballast.restore()
        return tuple(gone)

    def _finish_purge(self, entry: Entry) -> None:
        if entry.kind == "containers" and self.store.catalog().container(entry.object_id) is None:
            with suppress(SnapshotUnknown, Pinned, InUse):
                self.history.reap(entry.object_id)
            with unless_full():
                self.history.state.forget_container(entry.object_id)
        self._void(entry)

    def _void(self, entry: Entry) -> None:
        """Delete whatever of an entry is left."""
        self.moves.discard(entry.id)
        with unless_full():
            self.pins.unpin("trash", entry.id)
        self.entries.erase(entry.id)

    # -- after a crash -------------------------------------------------------------------------

    def recover(self) -> None:
        """End what dead processes had begun; runs when the trash is opened."""
        for entry_id in self.entries.ids(PURGING):
            with suppress(TrashUnknown):
                self._finish_purge(self.entries.read(entry_id, PURGING))
        self._settle_all()

    def _settle_all(self) -> None:
        """End removals and restorations of dead processes, and our own that a full disk left half way.

        Under the locks nobody else is half way, so whatever is pending then was left behind.
        """
        pending, strays = self.entries.ids(PENDING), self.entries.strays()
        if not pending and not strays:
            return
        with self.store.transaction(layers="w", images="w", containers="w") as tx:
            for entry_id in pending:
                with suppress(TrashUnknown):
                    self._settle(tx, self.entries.read(entry_id, PENDING))
            for entry_id in self.entries.strays():
                self.entries.erase(entry_id)

    def _settle(self, tx: Transaction, entry: Entry) -> None:
        """A pending entry is void if the object is in its table, and complete otherwise."""
        if self.moves.is_present(entry):
            self._void(entry)
            return
        self.moves.sink(tx, entry)
        self.entries.advance(entry.id, PENDING, COMPLETE)


def _age(entry: Entry, now_ns: int) -> float:
    """In seconds; exact where it matters, at the whole ones."""
    return (now_ns - entry.removed_ns) / retention.SECOND


def _refuse_if_mounted(tx: Transaction, layers: Sequence[Layer]) -> None:
    for layer in layers:
        count = tx.layers.mounts.view.count(layer.id)
        if count:
            raise InUse(f"layer {layer.id[:12]} is mounted (count {count}); unmount it, then try again")
