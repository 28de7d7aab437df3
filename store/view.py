"""The records of a table at one moment."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from store.errors import DuplicateID
from store.records import Identified

if TYPE_CHECKING:
    from store.segment import Broken

R = TypeVar("R", bound=Identified)
_serials: Final = itertools.count(1)
_MANY: Final = 50
"""Changes at once after which an index is made anew."""
_STEPS: Final = 32
"""How many views back one knows what changed since."""


Groups = dict[str, list[R]]


def grouped(records: Iterable[R], keys: Callable[[R], Iterable[str]]) -> Groups[R]:
    """Records by each of their ``keys``."""
    groups: Groups[R] = {}
    for record in records:
        for key in keys(record):
            groups.setdefault(key, []).append(record)
    return groups


def regrouped(
    groups: Groups[R] | None,
    changed: Mapping[str, R | None],
    now: Mapping[str, R],
    keys: Callable[[R], Iterable[str]],
) -> Groups[R] | None:
    """What :func:`grouped` would give ``now``, made from ``groups`` of before and what ``changed`` since.

    ``None`` where only grouping anew can tell the order.
    """
    if groups is None or len(changed) > _MANY:
        return None
    result = groups.copy()
    for record_id, old in changed.items():
        new = now.get(record_id)
        before = tuple(keys(old)) if old is not None else ()
        after = tuple(keys(new)) if new is not None else ()
        for key in before:
            rest = [new if i.id == record_id and new and key in after else i for i in result[key]]
            result[key] = [i for i in rest if i.id != record_id or key in after]
            if not result[key]:
                del result[key]
        for key in after:
            if new is None or key in before:
                continue
            if old is not None and key in result:  # it is not the last one of those
                return None
            result[key] = [*result.get(key, ()), new]
    return result


class View(Generic[R]):
    """The records of a table at one moment, in creation order; indexes are built when first asked."""

    __slots__ = ("_by_name", "_sorted_ids", "_steps", "_tuple", "broken", "by_id", "changed_ns", "serial")

    def __init__(self, by_id: dict[str, R], broken: tuple[Broken, ...] = (), changed_ns: int = 0) -> None:
        self.by_id = by_id
        self.broken = broken
        self.serial = next(_serials)
        self.changed_ns = changed_ns
        """When the table's files were last replaced, in nanoseconds since the epoch."""
        self._tuple: tuple[R, ...] | None = None
        self._by_name: dict[str, R] | None = None
        self._sorted_ids: list[str] | None = None
        self._steps: tuple[tuple[int, tuple[str, ...]], ...] = ()
        """Views this one was made from, the last one first: serial, and what changed up to the next one."""

    def inherit(self, base: View[R], changed: Mapping[str, R | None]) -> None:
        """Take over indexes of ``base``, where only ``changed`` differs; it has the old records."""
        self._steps = ((base.serial, tuple(changed)), *base._steps[: _STEPS - 1])
        if base._by_name is not None:
            names = base._by_name.copy()
            for old in changed.values():
                for name in getattr(old, "names", ()):
                    names.pop(name, None)
            for record_id in changed:
                record = self.by_id.get(record_id)
                names |= {name: record for name in getattr(record, "names", ()) if record is not None}
            self._by_name = names

    def changed_since(self, older: View[R]) -> set[str] | None:
        """IDs of all records that differ from those of another view, and perhaps more.

        ``None`` where only a comparison can tell.
        """
        found: set[str] = set()
        serial = self.serial
        for base, changed in self._steps:
            if serial == older.serial:
                break
            found.update(changed)
            serial = base
        return found if serial == older.serial else None

    @property
    def records(self) -> tuple[R, ...]:
        """All records."""
        if self._tuple is None:
            self._tuple = tuple(self.by_id.values())
        return self._tuple

    def __iter__(self) -> Iterator[R]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.by_id)

    def get(self, record_id: str) -> R | None:
        """The record of exactly this ID."""
        return self.by_id.get(record_id)

    def check_free(self, record_id: str) -> None:
        """Raise :class:`DuplicateID` if a record, also one that is broken, has the ID."""
        if record_id in self.by_id or any(record_id == broken.id for broken in self.broken):
            raise DuplicateID(f"the ID {record_id} is already in use")

    @property
    def names(self) -> dict[str, R]:
        """Every name and the record that has it."""
        if self._by_name is None:
            self._by_name = {name: record for record in self.records for name in getattr(record, "names", ())}
        return self._by_name

    def by_name(self, name: str) -> R | None:
        """The record of this name."""
        return self.names.get(name)

    def by_prefix(self, prefix: str) -> R | None:
        """The only record whose ID begins with ``prefix``; none if there are several."""
        if not prefix or " " in prefix:
            return None
        if self._sorted_ids is None:
            self._sorted_ids = sorted(self.by_id)
        ids = self._sorted_ids
        at = bisect_left(ids, prefix)
        if at == len(ids) or not ids[at].startswith(prefix):
            return None
        if at + 1 < len(ids) and ids[at + 1].startswith(prefix):
            return None
        return self.by_id[ids[at]]

    def resolve(self, text: str) -> R | None:
        """Look up by ID, then name, then unique ID prefix, as containers/storage does (FORMAT 2.5)."""
        return self.get(text) or self.by_name(text) or self.by_prefix(text)


def settle_names(by_id: dict[str, Any]) -> list[str]:
    """Where several records claim a name the last one has it (FORMAT 2.5); gives the IDs of the others.

    A record in the split image store counts as later than any other.
    """
    claims = [name for record in by_id.values() if (names := getattr(record, "names", ())) for name in names]
    if len(claims) == len(set(claims)):
        return []
    losers = []
    ranked = sorted(by_id.values(), key=lambda record: getattr(record, "in_image_store", False))
    owner: Final = {name: record.id for record in ranked for name in record.names}
    for record in list(by_id.values()):
        names = tuple(dict.fromkeys(name for name in record.names if owner[name] == record.id))
        if names != record.names:
            by_id[record.id] = replace(record, names=names)
            losers.append(record.id)
    return losers
