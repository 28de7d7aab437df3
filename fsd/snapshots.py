"""``containers/NAME/snapshots/``: mkdir takes a snapshot, rmdir deletes it, mv renames it."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fsd import control
from fsd.nodes import Directory, DirectoryKind, Node
from fsd.site import ContainerSubject, PartSubject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.nodes import Kind
    from store.history import Snapshot


@dataclass(frozen=True)
class SnapshotDirectory(Directory):
    """One snapshot.

    It is known by its name: after ``mv`` the kernel would take the old one's entry for the new one's, so each
    path through it is asked for.
    """

    keep_name = 0.0


@dataclass(frozen=True)
class SnapshotTable(DirectoryKind):
    """The snapshots of one container, oldest first. ``each`` is the route of one snapshot."""

    each: Kind
    blocking = True

    def mtime_ns(self, node: Node) -> int:
        """When the newest snapshot was taken."""
        container = _container(node)
        taken = [snapshot.created_ns for snapshot in _snapshots(container)]
        return max(taken, default=node.subject.changed_ns())

    def lookup(self, node: Node, name: str) -> Node | None:
        """The snapshot of that name."""
        return next((entry for listed, entry in self.entries(node) if listed == name), None)

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """All snapshots, oldest first."""
        container = _container(node)
        for snapshot in _snapshots(container):
            part = PartSubject(container.site, container, snapshot.name)
            yield snapshot.name, node.child(snapshot.name, self.each, part)

    def mkdir(self, node: Node, name: str) -> None:
        """Take a snapshot."""
        control.take_snapshot(_container(node), name)

    def rmdir(self, node: Node, name: str) -> None:
        """Delete a snapshot."""
        control.remove_snapshot(_container(node), name)

    def rename(self, node: Node, name: str, into: Node, new_name: str) -> None:
        """Rename a snapshot within its container."""
        if into.key != node.key:
            source = f"{_container(node).path.removeprefix('containers/')}/snapshots/{name}"
            instead = f"for its content elsewhere, make a container and write {source!r} to its 'from'"
            node.refuse(errno.EPERM, f"snapshot {name!r} stays with its container; {instead}")
        control.rename_snapshot(_container(node), name, new_name)


def _snapshots(container: ContainerSubject) -> tuple[Snapshot, ...]:
    site = container.site
    return site.live.once(("snapshots", container.id), lambda: site.history.list(container.id))


def _container(node: Node) -> ContainerSubject:
    return cast("ContainerSubject", node.subject)
