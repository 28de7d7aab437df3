"""A whole object of the tree rendered in one go, as the data plane wants it (``fsd.publisher``).

An object is a ``Directory`` of a table; with it go its entries and those of the synthetic directories in it.
What each entry shows is what its kind says (``fsd.nodes``); here all of it is asked for at once, and what
many entries need is looked up once.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from drivers.errors import DriverError
from fsd.nodes import (
    LISTED_SECONDS,
    Attributes,
    Directory,
    DirectoryKind,
    Flag,
    FreeText,
    Link,
    RealTree,
    SlowText,
    Text,
    relative_target,
)
from fsd.plane import ASKED, ENTRY, GUARDED, LISTED, TOLD, UNLOOKED
from fsd.site import ContainerSubject, PathSubject, settled
from fsd.virtual import LargeFile
from store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.nodes import Kind, Node
    from fsd.site import ObjectSubject, Subject

INNER_MAX = 128
"""Entries of an inner directory that is rendered too; a longer one is left to be listed by itself."""
_GONE = (OSError, LookupError, StoreError, DriverError)
_LISTED = int(LISTED_SECONDS * 1000)
_TEXTS = (Text, FreeText, SlowText)
_ID_SIZE = 8
_FLAGS = ENTRY.size - 4
_pack = ENTRY.pack


@dataclass(slots=True)
class Rendered:
    """One object: what :meth:`fsd.plane.Plane.publish` takes.

    Attributes:
        items: entries that have numbers of their own, by place among the entries; all others are fixed
            entries of the object, numbered after it.
        guard: what its ``GUARDED`` entries depend on.
    """

    node: Node
    number: int
    entries: bytearray = field(default_factory=bytearray)
    text: bytearray = field(default_factory=bytearray)
    items: list[tuple[int, Node]] = field(default_factory=list)
    guard: tuple[str, int] | None = None

    @property
    def count(self) -> int:
        """How many entries."""
        return len(self.entries) // ENTRY.size

    def tell(self) -> None:
        """Have Python told when the object is listed."""
        self.entries[_FLAGS] |= TOLD

    def set_number(self, at: int, number: int) -> None:
        """Give an item its number."""
        start = at * ENTRY.size
        self.entries[start : start + _ID_SIZE] = number.to_bytes(_ID_SIZE, "little")


def rendered(node: Node, number: int, generation: int) -> Rendered | None:
    """The object of a node as it is now; ``None`` when it is gone.

    Args:
        number: its node's number.
        generation: its inode's.
    """
    made = Rendered(node, number)
    try:
        _Writer(made, generation).write()
    except _GONE:
        return None
    return made


@dataclass(frozen=True, slots=True)
class _Route:
    """What is the same of an entry in all objects of a kind; its name stands at ``at`` in the text."""

    kind: Kind
    at: int
    length: int
    keep_name: int
    size: Callable[[Any], int] | None
    """Of a plain text."""
    present: Callable[[Any], bool] | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is the same for all objects of a kind: names, and the routes they are the names of."""

    kind: Directory
    names: bytes
    routes: tuple[_Route, ...]


_plans: dict[int, _Plan] = {}
"""By the identity of the kind, which the plan keeps alive."""


def _plan(kind: Directory) -> _Plan:
    known = _plans.get(id(kind))
    if known is not None:
        return known
    names, routes = bytearray(), []
    for name, route in kind.routes.items():
        raw = os.fsencode(name)
        size = route.size if isinstance(route, Text) and type(route) in _TEXTS else None
        keep = int(route.keep_name * 1000)
        routes.append(_Route(route, len(names), len(raw), keep, size, kind.present.get(name)))
        names += raw
    plan = _plans[id(kind)] = _Plan(kind, bytes(names), tuple(routes))
    return plan


class _Writer:
    """Fills a :class:`Rendered`, level by level."""

    def __init__(self, made: Rendered, generation: int) -> None:
        self._made = made
        self._generation = generation
        self._subject = settled(cast("ObjectSubject", made.node.subject))
        self._changed_ns = self._subject.changed_ns()
        self._inner: deque[tuple[int, Node]] = deque()

    def write(self) -> None:
        """The object, its entries, and what is in its inner directories."""
        node = self._made.node
        plan = _plan(cast("Directory", node.kind))
        self._made.text += plan.names
        self._add(node, os.path.basename(node.path), 0, self._made.number)
        self._list(0)
        subject, changed_ns, number = self._subject, self._changed_ns, self._made.number
        for route in plan.routes:
            number += 1
            if route.present is not None and not route.present(subject):
                continue
            if route.size is None:
                self._fixed(number, route)
                continue
            at, length, keep = route.at, route.length, route.keep_name  # most are plain texts
            size, mode = route.size(subject), route.kind.mode
            self._made.entries += _pack(
                number, size, changed_ns, mode, 1, 0, 0, at, length, 0, 0, keep, 0, _LISTED, 0
            )
        while self._inner:
            self._fill(*self._inner.popleft())

    # -- one entry -----------------------------------------------------------------------------

    def _fixed(self, number: int, route: _Route) -> None:
        """A fixed entry of the object that is no plain text, if it is there."""
        kind, flags = route.kind, 0
        if isinstance(kind, Link):
            to = kind.to(self._subject)
            if to is not None:
                target = os.fsencode(relative_target(to, self._made.node.path))
                self._link(number, self._changed_ns, 0, route.at, route.length, target, route.keep_name)
            return
        if isinstance(kind, RealTree):
            found, flags = Attributes(kind.mode, 0, 0), UNLOOKED
        elif isinstance(kind, LargeFile):
            try:
                found = kind.shown(self._subject, self._changed_ns)
                flags = self._flags(kind, self._subject)
            except _GONE:
                return
        elif isinstance(kind, Flag) and kind.since_ns(self._subject) is None:
            return
        else:
            place = number - self._made.number - 1
            node = cast("Directory", self._made.node.kind).fixed(self._made.node, place)
            self._found(node, route.at, route.length, 0, number)
            return
        self._put(number, found, 0, route.at, route.length, kind, flags)

    def _add(self, node: Node, name: str, parent: int, number: int) -> None:
        raw = os.fsencode(name)
        at = len(self._made.text)
        self._made.text += raw
        self._found(node, at, len(raw), parent, number)

    def _found(self, node: Node, name: int, length: int, parent: int, number: int) -> None:
        """An entry whose node tells what it shows; left out when it is gone meanwhile."""
        kind, flags, target, found = node.kind, 0, b"", None
        try:
            if isinstance(kind, Link):
                target = os.fsencode(kind.target(node))
            else:
                found = kind.attributes(node)
                flags = ASKED if kind.changes_unseen(node) else 0
        except _GONE:
            if node is self._made.node:
                raise
            return
        if isinstance(kind, DirectoryKind) and not isinstance(kind, Directory):
            self._inner.append((self._made.count, node))
        if not number:
            self._made.items.append((self._made.count, node))
        if found is not None:
            self._put(number, found, parent, name, length, kind, flags)
        else:
            changed_ns, keep = self._changed(node.subject), int(kind.keep_name * 1000)
            self._link(number, changed_ns, parent, name, length, target, keep)

    def _changed(self, subject: Subject) -> int:
        """When a subject changed; that of the object is known."""
        own = isinstance(subject, PathSubject) and subject.owner is self._made.node.subject
        return self._changed_ns if own else subject.changed_ns()

    def _flags(self, kind: LargeFile, subject: Subject) -> int:
        """How the plane finds out whether a large file still is what it was."""
        if kind.unseen is None or not kind.unseen(subject):
            return 0
        guard = kind.guard(subject) if kind.guard else None
        if guard is None or self._made.guard not in (None, guard):
            return ASKED
        self._made.guard = guard
        return GUARDED

    def _put(
        self, number: int, found: Attributes, parent: int, name: int, length: int, kind: Kind, flags: int
    ) -> None:
        keep = int(found.keep * 1000)
        # What a container's writers change is asked for each time.
        written = isinstance(kind, LargeFile) and isinstance(self._subject, ContainerSubject)
        self._made.entries += _pack(
            number,
            found.size,
            found.mtime_ns,
            found.mode,
            found.nlink,
            found.generation if parent or self._made.entries else self._generation,
            parent,
            name,
            length,
            0,
            0,
            int(kind.keep_name * 1000),
            keep,
            max(keep, 0 if written else _LISTED),
            flags,
        )

    def _link(
        self, number: int, changed_ns: int, parent: int, name: int, length: int, target: bytes, keep: int
    ) -> None:
        """A symlink, as :meth:`fsd.nodes.Link.leading_to` shows it."""
        size, at, generation = len(target), len(self._made.text), zlib.crc32(target)
        self._made.entries += _pack(
            number,
            size,
            changed_ns,
            Link.mode,
            1,
            generation,
            parent,
            name,
            length,
            at,
            size,
            keep,
            0,
            _LISTED,
            0,
        )
        self._made.text += target

    # -- inner directories ---------------------------------------------------------------------

    def _fill(self, at: int, directory: Node) -> None:
        """The entries of an inner directory; one that is long, or cannot be read now, is left out."""
        try:
            entries = list(directory.kind.entries(directory))
        except _GONE:
            return
        if len(entries) > INNER_MAX:
            return
        self._list(at)
        for name, node in entries:
            self._add(node, name, at, 0)

    def _list(self, at: int) -> None:
        """Say of a directory that its entries follow."""
        self._made.entries[at * ENTRY.size + _FLAGS] |= LISTED
