"""What objects hold and what their removal would free, measured in the background.

*Size* is what containers/storage calls so. *Exclusive* are the bytes on disk that nothing else refers to,
*shared* the others, *freed* what would come back if the object were removed now: with a container go its
snapshots, with an image the layers only it needs. ``method`` says how the last three were found.

Figures stay as long as their basis does, that is, the generation of each layer concerned and which objects
are related to it; and a day at most, since what others share with an object can change unseen.
"""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from drivers.errors import DriverError, NotSupported
from drivers.usage import tree_usage
from store.errors import StoreError, TrashUnknown
from store.records import Container, Image, Layer
from store.snapshots import snapshot_key
from store.state import Measure
from store.trash_entries import Entry

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from store.catalog import Catalog
    from store.history import History
    from store.orphans import Orphan
    from store.trash import Trash

log = logging.getLogger(__name__)

Subject = Layer | Image | Container | Entry
MAX_AGE: Final = 24 * 3600.0
"""Seconds after which figures are measured again although nothing seems to have changed."""
ORPHANS: Final = "orphans"
"""The kind of figures :mod:`store.orphans` keeps itself."""
UNKNOWN: Final = "unknown"
"""The method where the driver cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Bytes of one object; ``None`` where the driver does not know. ``measured_ns`` since the epoch."""

    size: int
    exclusive: int | None
    shared: int | None
    freed: int | None
    method: str
    measured_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """Objects that were measured anew, and those that there was no time to look at."""

    measured: int
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Subvolumes that go together: keys of the driver, and a layer they came from that stays."""

    layers: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    beside: str | None = None


class Sizes:
    """The figures of one store; safe to use from any thread. Methods may raise ``OSError``."""

    def __init__(self, history: History, trash: Trash) -> None:
        self.history = history
        self._store = history.store
        self._state = history.state
        self.trash = trash
        self._cursor = ""

    # -- reading, which never walks ------------------------------------------------------------

    def get(self, kind: str, object_id: str) -> Figures | None:
        """The figures last measured; ``None`` when they never were.

        Args:
            kind: ``containers``, ``images``, ``layers``, or ``trash`` with the ID of an entry.
        """
        row = self._state.measure(f"{kind}/{object_id}")
        return _figures(row) if row else None

    def all(self) -> dict[tuple[str, str], Figures]:
        """Everything that was measured, by kind and ID."""
        rows = self._state.measures().values()
        pairs = ((row.object.partition("/"), row) for row in rows)
        return {(kind, object_id): _figures(row) for (kind, _, object_id), row in pairs}

    # -- measuring -----------------------------------------------------------------------------

    def measure(self, kind: str, object_id: str) -> Figures:
        """Measure one object now, however long it takes.

        Raises:
            LayerUnknown, ImageUnknown, ContainerUnknown, TrashUnknown, DriverError
        """
        subject = self._subject(kind, object_id)
        return _figures(self._measure(subject, f"{kind}/{subject.id}", self._basis(kind, subject)))

    def refresh(self, budget: float = 1.0, *, now_ns: int | None = None) -> Refreshed:
        """Measure what has changed, what was never measured first, for about ``budget`` seconds.

        The object at hand when time is up is finished; the next call goes on after it.
        """
        deadline = time.monotonic() + budget
        now = time.time_ns() if now_ns is None else now_ns
        known = self._state.measures()
        subjects = dict(self._subjects())
        gone = known.keys() - subjects.keys()
        self._state.drop_measures(obj for obj in gone if not obj.startswith(f"{ORPHANS}/"))
        # Those after the one the last call ended with come first, so that each has its turn.
        order = sorted(subjects, key=lambda obj: (obj in known, obj <= self._cursor, obj))
        measured = 0
        for number, obj in enumerate(order):
            if time.monotonic() >= deadline:
                return Refreshed(measured=measured, left=len(order) - number)
            measured += self._refresh_one(obj, subjects[obj], known.get(obj), now)
            self._cursor = obj
        return Refreshed(measured=measured, left=0)

    def _refresh_one(self, obj: str, subject: Subject, known: Measure | None, now_ns: int) -> bool:
        kind = obj.partition("/")[0]
        try:
            basis = self._basis(kind, subject)
            if known is not None and known.basis == basis and now_ns - known.measured_ns < MAX_AGE * 1e9:
                return False
            self._measure(subject, obj, basis)
        except (StoreError, DriverError, OSError) as error:  # removed meanwhile, or broken
            log.info("%s was not measured: %s", obj, error)
            return False
        return True

    def together(
        self,
        *,
        images: Collection[str] = (),
        containers: Collection[str] = (),
        trash: Collection[str] = (),
        orphans: Collection[Orphan] = (),
    ) -> int | None:
        """Bytes that removing all of these at once would free, measured now; ``None`` if nobody knows.

        What several of them share with each other counts, which no sum over single figures can tell.
        """
        layers = own_layers(self._store.catalog(), images, containers)
        layers += [orphan.key for orphan in orphans if orphan.kind == "layer"]
        gone = [*containers, *(orphan.key for orphan in orphans if orphan.kind == "snapshots")]
        snapshots = [key for container_id in gone for key in self._snapshot_keys(container_id)]
        aside = [orphan.key for orphan in orphans if orphan.kind == "aside"]
        for entry_id in trash:
            group = self._entry_group(self.trash.get(entry_id))
            aside += group.aside
            snapshots += group.snapshots
        return self._freed(_Group(layers=tuple(layers), snapshots=tuple(snapshots), aside=tuple(aside)))[2]

    # -- one object ----------------------------------------------------------------------------

    def _subject(self, kind: str, object_id: str) -> Subject:
        if kind == "trash":
            return self.trash.get(object_id)
        found: Layer | Image | Container = getattr(self._store, kind[:-1])(object_id)
        return found

    def _subjects(self) -> Iterator[tuple[str, Subject]]:
        catalog = self._store.catalog()
        yield from ((f"containers/{record.id}", record) for record in catalog.containers)
        yield from ((f"images/{record.id}", record) for record in catalog.images if not record.read_only)
        yield from ((f"layers/{record.id}", record) for record in catalog.layers if not record.read_only)
        for entry in self.trash.list():
            yield f"trash/{entry.id}", entry

    def _group(self, subject: Subject) -> _Group:
        """What goes with an object."""
        catalog = self._store.catalog()
        if isinstance(subject, Layer):
            return _Group(layers=(subject.id,), beside=_existing(catalog, subject.parent))
        if isinstance(subject, Container):
            layer = catalog.layer(subject.layer)
            return _Group(
                layers=tuple(own_layers(catalog, (), [subject.id])),
                snapshots=tuple(self._snapshot_keys(subject.id)),
                beside=_existing(catalog, layer.parent) if layer is not None else None,
            )
        if isinstance(subject, Image):
            doomed = own_layers(catalog, [subject.id], ())
            lowest = catalog.layer(doomed[-1]) if doomed else None
            beside = _existing(catalog, lowest.parent) if lowest is not None else None
            return _Group(layers=tuple(doomed), beside=beside)
        return self._entry_group(subject)

    def _entry_group(self, entry: Entry) -> _Group:
        keys = self.trash.moves.aside.keys()
        aside = tuple(sorted(key for key in keys if key.startswith(f"{entry.id}/")))
        snapshots = self._snapshot_keys(entry.object_id) if entry.kind == "containers" else ()
        parent = entry.layers[0].parent if entry.layers else ""
        beside = _existing(self._store.catalog(), parent)
        return _Group(aside=aside, snapshots=tuple(snapshots), beside=beside)

    def _snapshot_keys(self, container_id: str) -> list[str]:
        if not self.history.supported:
            return []
        return [snapshot_key(container_id, s.name) for s in self.history.table.all(container_id)]

    def _basis(self, kind: str, subject: Subject) -> str:
        """A text that is another one when the figures may be."""
        group, catalog = self._group(subject), self._store.catalog()
        facts = [kind, *group.snapshots, *group.aside, group.beside or ""]
        for layer_id in group.layers:
            facts += [layer_id, self._generation(layer_id), *(i.id for i in catalog.children(layer_id))]
        if isinstance(subject, Image | Container):
            facts += [str(subject.big_data_sizes.get(name)) for name in subject.big_data_names]
        return hashlib.sha256("\0".join(facts).encode(errors="surrogateescape")).hexdigest()

    def _generation(self, layer_id: str) -> str:
        """Without snapshots the driver has no cheap way to tell; then only time makes figures old."""
        if not self.history.supported:
            return ""
        return str(self.history.table.copies.generation(layer_id, settle=False))

    def _measure(self, subject: Subject, obj: str, basis: str) -> Measure:
        exclusive, shared, freed, method = self._freed(self._group(subject))
        if isinstance(subject, Container) and exclusive is not None and self._snapshot_keys(subject.id):
            layer = self._store.catalog().layer(subject.layer)
            own = _Group(layers=(subject.layer,), beside=layer.parent or None if layer else None)
            exclusive, shared = self._freed(own)[:2]
        row = Measure(
            object=obj,
            basis=basis,
            size=self._size(subject),
            exclusive=exclusive,
            shared=shared,
            freed=freed,
            method=method,
            measured_ns=time.time_ns(),
        )
        self._state.put_measure(row)
        return row

    def _size(self, subject: Subject) -> int:
        if isinstance(subject, Container):
            return self._store.container_size(subject.id)
        if isinstance(subject, Image):
            return self._store.image_size(subject.id)
        if isinstance(subject, Layer):
            return self._store.driver.read_write_disk_usage(subject.id).size
        with suppress(TrashUnknown):
            return tree_usage(self.trash.path(subject.id)).size
        return 0

    def _freed(self, group: _Group) -> tuple[int | None, int | None, int | None, str]:
        """Exclusive, shared, freed, and how they were found."""
        if not (group.layers or group.snapshots or group.aside):
            return 0, 0, 0, ""
        try:
            found = self._store.driver.freed(
                group.layers, snapshots=group.snapshots, aside=group.aside, beside=group.beside
            )
        except NotSupported:
            return None, None, None, UNKNOWN
        return found.exclusive, found.shared, found.exclusive, found.method


def own_layers(catalog: Catalog, images: Collection[str], containers: Collection[str]) -> list[str]:
    """IDs of the layers that removing these objects together would take with them, children first."""
    gone, going = set(images), set(containers)
    needed = {
        i for image in catalog.images if image.id not in gone for i in (image.layer, *image.mapped_layers)
    }
    needed |= {container.layer for container in catalog.containers if container.id not in going}
    waiting = [c.layer for i in containers if (c := catalog.container(i)) is not None]
    for image_id in images:
        image = catalog.image(image_id)
        if image is not None:
            waiting += [*image.mapped_layers, *(layer.id for layer in reversed(catalog.chain(image.layer)))]
    return _leaves_first(catalog, dict.fromkeys(waiting), needed)


def _leaves_first(catalog: Catalog, waiting: Iterable[str], needed: set[str]) -> list[str]:
    """Those of ``waiting`` that are not needed, and whose children all go before them."""
    doomed: dict[str, None] = {}
    left = [i for i in waiting if i not in needed and catalog.layer(i) is not None]
    while True:
        ready = [i for i in left if all(child.id in doomed for child in catalog.children(i))]
        if not ready:
            return list(doomed)
        doomed |= dict.fromkeys(ready)
        left = [i for i in left if i not in doomed]


def _existing(catalog: Catalog, layer_id: str) -> str | None:
    return layer_id if layer_id and catalog.layer(layer_id) is not None else None


def _figures(row: Measure) -> Figures:
    return Figures(
        size=row.size,
        exclusive=row.exclusive,
        shared=row.shared,
        freed=row.freed,
        method=row.method,
        measured_ns=row.measured_ns,
    )
