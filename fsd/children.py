"""``layers/ID/children/``: links to the layers made from one; ``mkdir`` makes another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fsd import control
from fsd.nodes import DirectoryKind, Link
from fsd.site import LayerSubject, PathSubject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.nodes import Node

_LINK = Link(lambda subject: subject.path)


@dataclass(frozen=True)
class NewChild(DirectoryKind):
    """What ``mkdir`` is answered with, which must be a directory; the next look finds the link."""

    keep_name = 0.0

    def lookup(self, node: Node, name: str) -> Node | None:
        """Nothing is looked up in it."""
        return None

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """Nothing is in it."""
        return iter(())


@dataclass(frozen=True)
class Children(DirectoryKind):
    """Listed by ID; a child's names resolve too."""

    def lookup(self, node: Node, name: str) -> Node | None:
        """The child of that ID or name."""
        layer = _layer(node)
        for child in layer.site.now.catalog.children(layer.id):
            if name == child.id or name in child.names:
                return self._link(node, name, child.id)
        return None

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """All children."""
        layer = _layer(node)
        for child in layer.site.now.catalog.children(layer.id):
            yield child.id, self._link(node, child.id, child.id)

    def mkdir(self, node: Node, name: str) -> Node:
        """A new layer on top of this one."""
        made = control.make_layer(node.subject.site, name, _layer(node).id)
        return node.child(name, _NEW, key=f"new-child:{made.id}")

    def _link(self, node: Node, name: str, child_id: str) -> Node:
        site = node.subject.site
        path = f"layers/{site.now.places['layers'].paths.get(child_id, child_id)}"
        return node.child(name, _LINK, PathSubject(site, path, node.subject))


_NEW = NewChild()


def _layer(node: Node) -> LayerSubject:
    return cast("LayerSubject", node.subject)
