"""The store as the tree shows it now, and when each part of it last changed.

containers/storage keeps no modification times in its records, so they are derived: whenever the
catalog is read again, records that differ from the last reading changed when the file of their
table did. Directories of names work the same way, so a listing's mtime moves also when another
process (podman) made the change.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from fsd.naming import Places, place, replaced
from store.records import parse_time
from store.watching import differing

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from store.catalog import Catalog
    from store.records import Container, Image, Layer
    from store.store import Store

T = TypeVar("T")
Table = Literal["layers", "images", "containers"]
TABLES: tuple[Table, ...] = ("layers", "images", "containers")
RESERVED = frozenset({".import"})


@dataclass(frozen=True, slots=True)
class Now:
    """One reading of the store: its catalog and where each table's objects are listed."""

    catalog: Catalog
    places: dict[Table, Places]

    def records(self, table: Table) -> Sequence[Layer | Image | Container]:
        """All records of a table in load order."""
        found: Sequence[Layer | Image | Container] = getattr(self.catalog, table)
        return found

    def by_id(self, table: Table) -> Mapping[str, Layer | Image | Container]:
        """All records of a table by ID, in load order."""
        return self.catalog.by_id(table)

    def record(self, table: Table, id_: str) -> Layer | Image | Container | None:
        """The record of a full ID."""
        if table == "layers":
            return self.catalog.layer(id_)
        return self.catalog.image(id_) if table == "images" else self.catalog.container(id_)

    def find(self, table: Table, text: str) -> str | None:
        """The full ID of whatever podman would accept ``text`` for."""
        catalog = self.catalog
        finder = {
            "layers": catalog.find_layer,
            "images": catalog.find_image,
            "containers": catalog.find_container,
        }[table]
        found: Layer | Image | Container | None = finder(text)
        return found.id if found else None


class Live:
    """Follows a store. Thread-safe: handlers and worker threads ask at the same time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._held = threading.local()
        self._now: Now | None = None
        self._changed: dict[tuple[Table, str], int] = {}
        self._listed: dict[tuple[Table, str], int] = {}

    @contextmanager
    def held(self) -> Iterator[Now]:
        """The current reading, which this thread goes on seeing inside the block."""
        before = getattr(self._held, "now", None), getattr(self._held, "found", None)
        now = self._held.now = self.now()
        self._held.found = {}
        try:
            yield now
        finally:
            self._held.now, self._held.found = before

    def once(self, key: Hashable, find: Callable[[], T]) -> T:
        """What ``find`` gives; inside a :meth:`held` block it is called once for a key."""
        found: dict[Hashable, T] | None = getattr(self._held, "found", None)
        if found is None:
            return find()
        if key not in found:
            found[key] = find()
        return found[key]

    def now(self) -> Now:
        """The current reading; three stats when nothing changed."""
        held: Now | None = getattr(self._held, "now", None)
        if held is not None:
            return held
        catalog = self.store.catalog()
        now = self._now
        if now is not None and now.catalog.stamp == catalog.stamp:
            return now
        with self._lock:
            return self._advance(catalog)

    def changed_ns(self, table: Table, id_: str) -> int:
        """When the object last changed, as far as known; its creation before that."""
        now = self.now()
        seen = self._changed.get((table, id_))
        if seen is not None:
            return seen
        record = now.record(table, id_)
        return parse_time(record.created) if record else now.catalog.changed_ns(table)

    def listed_ns(self, table: Table, directory: str) -> int:
        """When the listing of a directory of names last changed."""
        self.now()
        return self._listed.get((table, directory), 0)

    def _advance(self, catalog: Catalog) -> Now:
        before = self._now
        if before is not None and before.catalog.stamp == catalog.stamp:
            return before
        changed = {table: differing(before.catalog if before else None, catalog, table) for table in TABLES}
        now = Now(catalog, {table: _places(before, catalog, table, changed[table]) for table in TABLES})
        for table in TABLES:
            moment = catalog.changed_ns(table) or time.time_ns()  # no file yet: an empty table, new now
            self._note_listings(before, now, table, moment)
            if before is not None:
                self._note_records(now, table, changed[table], moment)
        self._now = now
        return now

    def _note_listings(self, before: Now | None, now: Now, table: Table, moment: int) -> None:
        old = before.places[table].listings if before else {}
        for directory, names in now.places[table].listings.items():
            was = old.get(directory, {})
            same = was is names or (len(was) == len(names) and list(was) == list(names))
            if not same or (table, directory) not in self._listed:
                self._listed[table, directory] = moment

    def _note_records(self, now: Now, table: Table, changed: Sequence[str], moment: int) -> None:
        for id_ in changed:
            if now.record(table, id_) is None:
                self._changed.pop((table, id_), None)
            else:
                self._changed[table, id_] = moment


def _places(before: Now | None, catalog: Catalog, table: Table, changed: Sequence[str]) -> Places:
    """Where the objects are listed: as before, as far as what changed leaves it so."""
    if before is not None:
        old, new = before.by_id(table), catalog.by_id(table)
        moved = [i for i in changed if i not in old or i not in new or old[i].names != new[i].names]
        removed, added = ([(i, side[i].names) for i in moved if i in side] for side in (old, new))
        kept = before.places[table]
        if not moved:
            return kept
        if not {i for i, _ in removed} & {i for i, _ in added}:
            after = replaced(kept, removed, added, RESERVED)
            if after is not None:
                return after
    records: Sequence[Layer | Image | Container] = getattr(catalog, table)
    others = (spelling for record in records for name in record.names for spelling in _spellings(table, name))
    return place(((r.id, r.names) for r in records), aliases=others, reserved=RESERVED)


def _spellings(table: Table, name: str) -> list[str]:
    """The name and, for images, its short forms with a ``/`` left (``library/alpine:latest``)."""
    if table != "images":
        return [name]
    parts = name.split("/")
    return ["/".join(parts[n:]) for n in range(len(parts) - 1)] or [name]
