"""A whole object of the tree rendered in one go, as the data plane wants it (``fsd.publisher``).

An object is a ``Directory`` of a table; with it go its entries and those of the synthetic directories in it.
What each entry shows is what its kind says (``fsd.nodes``); here all of it is asked for at once, and what
many entries need is looked up once.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

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
    from fsd.nodes import Kind, Node
    from fsd.site import ObjectSubject, Subject

INNER_MAX = 128
"""Entries of an inner directory that is rendered too; a longer one is left to be listed by itself."""
_GONE = (OSError, LookupError, StoreError, DriverError)
_LISTED = int(LISTED_SECONDS * 1000)
_TEXTS = (Text, FreeText, SlowText)
_ID_SIZE = 8
_FLAGS = ENTRY.size - 4


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
class _Plan:
    """What is the same for all objects of a kind: names, and where they stand in the text."""

    kind: Directory
    names: bytes
    routes: tuple[tuple[str, Kind, bool, int, int, int], ...]
    """Name, kind, whether it is a plain text, place and length of the name, and how long that may be kept."""


_plans: dict[int, _Plan] = {}
"""By the identity of the kind, which the plan keeps alive."""


def _plan(kind: Directory) -> _Plan:
    known = _plans.get(id(kind))
    if known is not None:
        return known
    names, routes = bytearray(), []
    for name, route in kind.routes.items():
        raw = os.fsencode(name)
        plain = type(route) in _TEXTS
        routes.append((name, route, plain, len(names), len(raw), int(route.keep_name * 1000)))
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
        kind = cast("Directory", node.kind)
        plan = _plan(kind)
        self._made.text += plan.names
        self._add(node, os.path.basename(node.path), 0, self._made.number)
        self._list(0)
        subject, changed_ns, first = self._subject, self._changed_ns, self._made.number + 1
        for place, (name, route, plain, at, length, keep) in enumerate(plan.routes):
            if name in kind.present and not kind.present[name](subject):
                continue
            if plain:  # most are
                size = cast("Text", route).size(subject)
                head = first + place, size, changed_ns, route.mode, 1, 0, 0, at, length
                self._made.entries += ENTRY.pack(*head, 0, 0, keep, 0, _LISTED, 0)
            else:
                self._fixed(place, route, at, length)
        while self._inner:
            self._fill(*self._inner.popleft())

    # -- one entry -----------------------------------------------------------------------------

    def _fixed(self, place: int, kind: Kind, name: int, length: int) -> None:
        """A fixed entry of the object that is no plain text, if it is there."""
        target, flags = b"", 0
        if isinstance(kind, Link):
            to = kind.to(self._subject)
            if to is None:
                return
            target = os.fsencode(relative_target(to, self._made.node.path))
            found = kind.leading_to(target, self._changed_ns)
        elif isinstance(kind, RealTree):
            found, flags = Attributes(kind.mode, 0, 0), UNLOOKED
        elif isinstance(kind, Flag) and kind.since_ns(self._subject) is None:
            return
        else:
            node = cast("Directory", self._made.node.kind).fixed(self._made.node, place)
            self._found(node, name, length, 0, self._made.number + 1 + place)
            return
        self._put(self._made.number + 1 + place, found, 0, name, length, target, kind, flags)

    def _add(self, node: Node, name: str, parent: int, number: int) -> None:
        raw = os.fsencode(name)
        at = len(self._made.text)
        self._made.text += raw
        self._found(node, at, len(raw), parent, number)

    def _found(self, node: Node, name: int, length: int, parent: int, number: int) -> None:
        """An entry whose node tells what it shows; left out when it is gone meanwhile."""
        kind, target, flags = node.kind, b"", 0
        try:
            if isinstance(kind, Link):
                target = os.fsencode(kind.target(node))
                found = kind.leading_to(target, self._changed(node.subject))
            else:
                found = kind.attributes(node)
                flags = self._flags(kind, node) if kind.changes_unseen(node) else 0
        except _GONE:
            if node is self._made.node:
                raise
            return
        if isinstance(kind, DirectoryKind) and not isinstance(kind, Directory):
            self._inner.append((self._made.count, node))
        if not number:
            self._made.items.append((self._made.count, node))
        self._put(number, found, parent, name, length, target, kind, flags)

    def _changed(self, subject: Subject) -> int:
        """When a subject changed; that of the object is known."""
        own = isinstance(subject, PathSubject) and subject.owner is self._made.node.subject
        return self._changed_ns if own else subject.changed_ns()

    def _flags(self, kind: Kind, node: Node) -> int:
        """How the plane finds out whether an entry still is what it was."""
        guard = kind.guard(node.subject) if isinstance(kind, LargeFile) and kind.guard else None
        if guard is None or self._made.guard not in (None, guard):
            return ASKED
        self._made.guard = guard
        return GUARDED

    def _put(
        self,
        number: int,
        found: Attributes,
        parent: int,
        name: int,
        length: int,
        target: bytes,
        kind: Kind,
        flags: int,
    ) -> None:
        keep = int(found.keep * 1000)
        self._made.entries += ENTRY.pack(
            number,
            found.size,
            found.mtime_ns,
            found.mode,
            found.nlink,
            found.generation if parent or self._made.entries else self._generation,
            parent,
            name,
            length,
            len(self._made.text) if target else 0,
            len(target),
            int(kind.keep_name * 1000),
            keep,
            max(keep, self._listed(kind)),
            flags,
        )
        self._made.text += target

    def _listed(self, kind: Kind) -> int:
        """Milliseconds for which attributes in a listing hold; none for what a container's writers change."""
        written = isinstance(kind, LargeFile) and isinstance(self._subject, ContainerSubject)
        return 0 if written else _LISTED

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
