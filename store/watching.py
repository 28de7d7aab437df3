"""What happened to a store's objects between two looks at it, by whomever."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from store.catalog import Catalog

TABLES = ("layers", "images", "containers")


class Difference(NamedTuple):
    """One object that differs; ``action`` is ``create``, ``change``, ``rename`` or ``remove``."""

    table: str
    action: str
    id: str
    names: tuple[str, ...]


def differing(before: Catalog | None, after: Catalog, table: str) -> list[str]:
    """IDs of the records of a table that two readings differ in, new ones in load order, then those gone."""
    if before is None:
        return list(after.by_id(table))
    old, new = before.by_id(table), after.by_id(table)
    if old is new:
        return []
    known = after.changed_since(before, table)
    if known is None:
        known = {id_ for id_, record in new.items() if old.get(id_) is not record} | (old.keys() - new.keys())
    changed = {id_ for id_ in known if id_ in new and old.get(id_) != new[id_]}
    gone = {id_ for id_ in known if id_ in old and id_ not in new}
    return _in_order(changed, new) + _in_order(gone, old)


def _in_order(ids: set[str], records: Mapping[str, object]) -> list[str]:
    return [id_ for id_ in records if id_ in ids] if len(ids) > 1 else list(ids)


def differences(before: Catalog, after: Catalog) -> Iterator[Difference]:
    """Every object that was made, changed, renamed or removed between two readings of the tables."""
    for table in TABLES:
        was, now = before.by_id(table), after.by_id(table)
        for id_ in differing(before, after, table):
            old, record = was.get(id_), now.get(id_)
            if record is None:
                yield Difference(table, "remove", id_, old.names if old else ())
            elif old is None:
                yield Difference(table, "create", id_, record.names)
            else:
                action = "change" if old.names == record.names else "rename"
                yield Difference(table, action, id_, record.names)
