"""``trash/``, ``orphans/`` and ``broken/``: what was removed, what nothing names, what cannot be used."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fsd.nodes import Directory, DirectoryKind
from fsd.site import NamesSubject, Subject
from fsd.views import ViewSpec
from store.errors import TrashUnknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.nodes import Kind, Node
    from store.orphans import Orphan
    from store.segment import Broken
    from store.trash_entries import Entry


@dataclass(frozen=True, slots=True)
class TrashSubject(Subject):
    """One entry of the trash."""

    id: str

    @property
    def entry(self) -> Entry:
        """What is known of it; ``TrashUnknown`` when it is gone."""
        return self.site.trash.get(self.id)

    def changed_ns(self) -> int:
        """When the object was removed."""
        return self.entry.removed_ns


@dataclass(frozen=True, slots=True)
class OrphanSubject(Subject):
    """One orphan."""

    id: str

    @property
    def orphan(self) -> Orphan:
        """What is known of it; ``OrphanUnknown`` when it is gone."""
        return self.site.orphans.get(self.id)

    def changed_ns(self) -> int:
        """Since when it is there."""
        return self.orphan.born_ns


@dataclass(frozen=True, slots=True)
class BrokenSubject(Subject):
    """One record that could not be used."""

    broken: Broken


def moment(ns: int) -> str:
    """A time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // 10**9))


# -- trash -------------------------------------------------------------------------------------


def what(subject: TrashSubject) -> str:
    """Kind, ID and names of the removed object."""
    entry = subject.entry
    return "\n".join([f"{entry.kind[:-1]} {entry.object_id}", *entry.names])


def expires(subject: TrashSubject) -> str:
    """When it goes for good; ``never`` while it is pinned."""
    at = subject.site.trash.expires_ns(subject.entry)
    return "never" if at is None else moment(at)


def has_tree(subject: TrashSubject) -> bool:
    """Whether the object's own tree is in the trash."""
    try:
        subject.site.trash.path(subject.id)
    except TrashUnknown:
        return False
    return True


def trash_view(subject: TrashSubject) -> ViewSpec:
    """The removed object's content, read-only."""
    return ViewSpec(
        key=f"trash/{subject.id}",
        shown=f"trash/{subject.id}/rootfs",
        directory=subject.site.trash.path(subject.id),
        read_only=True,
        refusal="what is in the trash cannot be written; move it back first",
    )


def trash_pinned_ns(subject: TrashSubject) -> int | None:
    """Since when the entry is kept from expiring."""
    return subject.site.trash.pins.pinned_ns("trash", subject.id)


def pin_trash(subject: TrashSubject, pinned: bool) -> None:
    """Keep an entry, or let it expire."""
    pins = subject.site.trash.pins
    (pins.pin if pinned else pins.unpin)("trash", subject.entry.id)


@dataclass(frozen=True)
class Removed(Directory):
    """A removed object. Moving it elsewhere makes it another entry, so nobody keeps what its name means."""

    keep_name = 0.0


@dataclass(frozen=True)
class TrashTable(DirectoryKind):
    """Removed objects until they expire: ``mv`` brings one back, ``rmdir`` purges it."""

    each: Kind
    blocking = True

    def mtime_ns(self, node: Node) -> int:
        """When the directory that holds the entries changed."""
        try:
            return node.subject.site.trash.entries.root.stat().st_mtime_ns
        except FileNotFoundError:
            return node.subject.changed_ns()

    def lookup(self, node: Node, name: str) -> Node | None:
        """The entry of that name."""
        site = node.subject.site
        try:
            site.trash.get(name)
        except TrashUnknown:
            return None
        return node.child(name, self.each, TrashSubject(site, name), key=f"trash:{name}")

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """All entries, oldest first."""
        site = node.subject.site
        for entry in site.trash.list():
            yield entry.id, node.child(entry.id, self.each, TrashSubject(site, entry.id), f"trash:{entry.id}")

    def rmdir(self, node: Node, name: str) -> None:
        """Delete an entry for good."""
        node.subject.site.trash.purge(name)

    def rename(self, node: Node, name: str, into: Node, new_name: str) -> None:
        """Bring an object back, with the names it had, or under another one."""
        site = node.subject.site
        entry = site.trash.get(name)
        subject = into.subject
        if (subject.table if isinstance(subject, NamesSubject) else into.path) != entry.kind:
            node.refuse(errno.EPERM, f"{name!r} was in {entry.kind}/ and can go back only there")
        full = subject.join(new_name) if isinstance(subject, NamesSubject) else new_name
        same = full in entry.names or full in (entry.id, entry.object_id)
        site.trash.restore(name, None if same else full)
        if full == entry.id:
            site.restored[entry.kind, full] = entry.object_id


# -- orphans -----------------------------------------------------------------------------------


def orphan_size(subject: OrphanSubject) -> str:
    """Bytes its removal would free, as last measured; empty if it never was."""
    size = subject.orphan.size
    return "" if size is None else str(size)


def orphan_view(subject: OrphanSubject) -> ViewSpec:
    """An orphan's content, read-only."""
    return ViewSpec(
        key=f"orphans/{subject.id}",
        shown=f"orphans/{subject.id}/rootfs",
        directory=subject.orphan.path,
        read_only=True,
        refusal="orphans cannot be written; copy out what you need, and rmdir the orphan",
    )


@dataclass(frozen=True)
class OrphanTable(DirectoryKind):
    """Content no record names: ``rmdir`` reaps it."""

    each: Kind
    blocking = True

    def lookup(self, node: Node, name: str) -> Node | None:
        """The orphan of that ID."""
        return next((entry for listed, entry in self.entries(node) if listed == name), None)

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """All orphans, oldest first."""
        site = node.subject.site
        for orphan in site.orphans.list():
            subject = OrphanSubject(site, orphan.id)
            yield orphan.id, node.child(orphan.id, self.each, subject, f"orphan:{orphan.id}")

    def rmdir(self, node: Node, name: str) -> None:
        """Reap an orphan."""
        node.subject.site.orphans.reap(name)


# -- broken ------------------------------------------------------------------------------------


def broken_records(subject: Subject) -> dict[str, BrokenSubject]:
    """Records that could not be used, by ID, or by table and number where they have none."""
    found: dict[str, BrokenSubject] = {}
    for number, broken in enumerate(subject.site.now.catalog.broken):
        name = broken.id.replace("/", "%2F") or f"{broken.table}-{number}"
        found[name if name not in (*found, ".", "..") else f"{name[:200]}-{number}"] = BrokenSubject(
            subject.site, broken
        )
    return found


def broken_text(subject: Subject) -> str:
    """Which table, why, and the record itself."""
    broken = cast("BrokenSubject", subject).broken
    return f"table: {broken.table}\nwhy: {broken.why}\n{broken.text}"
