"""Where objects stand in the tree: names to paths, without any I/O.

Each object is listed once, under its first name, else under its full ID. Names with ``/`` make
nested directories. A name that cannot be a path is not used: an empty, ``.``, ``..`` or over-long
component, a name that is a directory of another object's name (``foo`` beside ``foo/bar``), a name
another object is listed under already, or one the table reserves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NAME_MAX = 255
PATH_MAX = 1024
"""Longest name used as a path, in bytes: leaves room below PATH_MAX for what is inside."""


@dataclass(frozen=True, slots=True)
class Places:
    """The layout of one table of objects.

    ``objects`` maps a listed path to an object's ID and ``paths`` is its inverse. ``listings`` maps a
    directory (``""`` is the table itself) to its entry names in listing order. ``prefixes`` holds
    directories that exist but are not listed, because only other names of an object lie below them.
    """

    objects: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    listings: dict[str, dict[str, None]] = field(default_factory=lambda: {"": {}})
    prefixes: frozenset[str] = frozenset()
    contested: bool = False
    """Some object could not have the path it wanted, so that it may come by it when another object goes."""

    def is_directory(self, path: str) -> bool:
        """Whether ``path`` is a directory of names (not an object), listed or not."""
        return path in self.listings or path in self.prefixes


def usable(name: str) -> bool:
    """Whether ``name`` can be a relative path."""
    raw = name.encode("utf-8", "surrogateescape")
    if not raw or len(raw) > PATH_MAX or b"\0" in raw:
        return False
    return all(part not in (b"", b".", b"..") and len(part) <= NAME_MAX for part in raw.split(b"/"))


def parents(path: str) -> list[str]:
    """Every directory above ``path``, nearest last: ``a/b/c`` gives ``["a", "a/b"]``."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def place(
    objects: Iterable[tuple[str, Sequence[str]]],
    *,
    aliases: Iterable[str] = (),
    reserved: frozenset[str] = frozenset(),
) -> Places:
    """Lay out ``objects`` (pairs of ID and names, in table order).

    Args:
        aliases: further names that resolve; their directories become ``prefixes``.
        reserved: first components no object may be listed under.
    """
    entries = list(objects)
    wanted = {id_: names[0] for id_, names in entries if names and usable(names[0])}
    directories = {above for name in wanted.values() for above in parents(name)}
    places = Places()
    contested = False
    for id_, names in entries:
        path = wanted.get(id_, id_)
        contested |= path == id_ and bool(names)
        if path in directories or path in places.objects or path.split("/")[0] in reserved:
            path, contested = id_, True
        if usable(path) and path not in places.objects and path not in directories:
            _list(places, path, id_)
    prefixes = {above for alias in aliases if usable(alias) for above in parents(alias)}
    return Places(
        places.objects,
        places.paths,
        places.listings,
        frozenset(prefixes - places.listings.keys() - places.objects.keys()),
        contested,
    )


def replaced(
    before: Places,
    removed: Sequence[tuple[str, Sequence[str]]],
    added: Sequence[tuple[str, Sequence[str]]],
    reserved: frozenset[str] = frozenset(),
) -> Places | None:
    """The layout after a few plain changes, at the cost of copying it; ``None`` where :func:`place` has to.

    Args:
        removed, added: pairs of ID and names; what is added stands last in the table.
    """
    flat = (name for _, names in (*removed, *added) for name in names)
    if before.contested or any("/" in name for name in flat):
        return None
    after = Places(before.objects.copy(), before.paths.copy(), before.listings.copy(), before.prefixes)
    top = after.listings[""] = before.listings[""].copy()
    for id_, _ in removed:
        path = after.paths.pop(id_, "")
        if not path or "/" in path:
            return None
        del after.objects[path], top[path]
    for id_, names in added:
        path = names[0] if names else id_
        taken = path in after.objects or after.is_directory(path) or path in reserved
        if taken or not usable(path):
            return None
        _list(after, path, id_)
    return after


def changed_listings(
    before: Places, after: Places, changed: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Directories of names that changed, with the entries that are gone or mean another object.

    Args:
        changed: the objects that were made, changed or removed in between.
    """
    if before is after:
        return
    moved = {id_ for id_ in changed if before.paths.get(id_) != after.paths.get(id_)}
    paths = [side.paths[id_] for side in (before, after) for id_ in moved if id_ in side.paths]
    if before.contested or after.contested or any("/" in path for path in paths):
        yield from _compared(before, after)
    elif moved:
        was = (before.paths[id_] for id_ in moved if id_ in before.paths)
        yield "", [path for path in was if after.objects.get(path) != before.objects[path]]


def _compared(before: Places, after: Places) -> Iterator[tuple[str, list[str]]]:
    """:func:`changed_listings` where any object may have another place."""
    for directory in before.listings.keys() | after.listings.keys():
        was, is_ = before.listings.get(directory, {}), after.listings.get(directory, {})
        prefix = f"{directory}/" if directory else ""
        moved = [
            name for name in was if before.objects.get(prefix + name) != after.objects.get(prefix + name)
        ]
        gone = [name for name in was if name not in is_]
        if moved or gone or list(was) != list(is_):
            yield directory, list(dict.fromkeys(moved + gone))


def _list(places: Places, path: str, id_: str) -> None:
    places.objects[path] = id_
    places.paths[id_] = path
    directory, _, name = path.rpartition("/")
    places.listings.setdefault(directory, {})[name] = None
    for above in reversed(parents(path)):
        parent, _, child = above.rpartition("/")
        places.listings.setdefault(parent, {})[child] = None
        places.listings.setdefault(above, {})
