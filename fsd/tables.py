"""``layers/``, ``images/`` and ``containers/``: each object listed once, its other names symlinks."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsd import control
from fsd.images import Repository, RepositorySubject
from fsd.imports import DIRECTORY, ImportTable
from fsd.nodes import Alias, DirectoryKind, Link, Node
from fsd.site import SUBJECTS, NamesSubject, PathSubject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.live import Table as TableName
    from fsd.nodes import Kind


def directory_key(table: TableName, directory: str) -> str:
    """Key of the node of a directory of names; empty for the table itself, which the root lists."""
    return f"names:{table}:{directory}" if directory else f"//{table}"


COLON = "%3A"
"""Another way to write a colon: to ``podman load -i`` and ``skopeo`` a path ends at the first real one."""
_INSTEAD: dict[TableName, str] = {
    "layers": "for its content elsewhere, make a container and write the layer's name to its 'from'",
    "images": "for its content elsewhere, make a container and write the image's name to its 'from'",
    "containers": "for an image of it, write NAME:TAG to its 'commit'",
}
"""What to do where an object was to be moved away. EXDEV would have mv(1) make another one, and fill that."""
_ALIAS: Link = Alias(lambda subject: subject.path)


@dataclass(frozen=True)
class Table(DirectoryKind):
    """A table of objects, and each directory of names in it. ``each`` is the route of one object."""

    table: TableName
    each: Kind
    keeps_listing = True

    def mtime_ns(self, node: Node) -> int:
        """When the listing changed, by whoever."""
        return self._names(node).changed_ns()

    def lookup(self, node: Node, name: str) -> Node | None:
        """A listed object, a directory of names, or a symlink to the object ``name`` means."""
        names = self._names(node)
        now = names.site.now
        places = now.places[names.table]
        full = names.join(name)
        if full in places.objects:
            return self._object(node, full, places.objects[full])
        if full == DIRECTORY and names.table == "images":
            return node.child(name, ImportTable(), key=f"images:{DIRECTORY}")
        if full in places.listings or (names.table == "images" and full in names.site.prefixes):
            return self._directory(node, full)
        if names.table == "images" and "/" in full and names.site.layouts.has_repository(full):
            repository = RepositorySubject(names.site, full)
            return Node(Repository(), repository, f"repository:{full}", f"{names.table}/{full}")
        found = now.find(names.table, full.replace(COLON, ":"))
        found = found or names.site.restored.get((names.table, full))
        if found in places.paths:
            target = PathSubject(names.site, f"{names.table}/{places.paths[found]}", names)
            return node.child(name, _ALIAS, target)
        return self._directory(node, full) if full in places.prefixes else None

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """Objects and directories of names, each once."""
        names = self._names(node)
        places = names.site.now.places[names.table]
        for name in places.listings.get(names.directory, ()):
            full = names.join(name)
            id_ = places.objects.get(full)
            yield name, self._directory(node, full) if id_ is None else self._object(node, full, id_)

    def mkdir(self, node: Node, name: str) -> None:
        """Make an object, or a directory of image names."""
        names = self._names(node)
        control.make(names.site, names.table, names.join(name))

    def create(self, node: Node, name: str, regular: bool) -> Node:
        """Objects are directories."""
        images = self.table == "images"
        way = "copy an archive to images/.import/" if images else f"mkdir makes a {self.table[:-1]}"
        node.refuse(errno.EPERM, f"{name!r}: files can be made below a rootfs only; {way}")

    def symlink(self, node: Node, name: str, target: str) -> None:
        """Give an image a further name."""
        names = self._names(node)
        if names.table != "images":
            node.refuse(errno.EPERM, f"{name!r}: only images get names by symlink; write to 'names' instead")
        control.add_image_name(names.site, names.join(name), self._image_text(node, target))

    def rmdir(self, node: Node, name: str) -> None:
        """Remove the object ``name`` by the store's deletion rules."""
        names = self._names(node)
        id_ = self._listed(node, name)
        if id_ is None and names.join(name) in names.site.prefixes:
            names.site.prefixes.discard(names.join(name))
            if not names.site.now.places[names.table].is_directory(names.join(name)):
                return
        if id_ is None:
            node.refuse(errno.ENOTEMPTY, f"{name!r} is a part of the names below it, not an object")
        control.remove(names.site, names.table, id_)

    def unlink(self, node: Node, name: str) -> None:
        """Take a further name of an image away; other symlinks are made up by looking them up."""
        names = self._names(node)
        if names.table == "images" and control.remove_image_name(names.site, names.join(name)):
            return
        node.refuse(errno.EPERM, f"{name!r} is another way to say an object; edit its names file instead")

    def rename(self, node: Node, name: str, into: Node, new_name: str) -> None:
        """Change the name an object is listed under."""
        names = self._names(node)
        if not isinstance(into.kind, Table) or into.kind.table != self.table:
            node.refuse(errno.EPERM, f"{name!r} stays in {names.table}/; {_INSTEAD[self.table]}")
        id_ = self._listed(node, name)
        if id_ is None:
            node.refuse(errno.EPERM, f"{name!r} is a part of other names; rename the objects below it")
        control.rename(names.site, names.table, id_, names.join(name), into.kind._names(into).join(new_name))

    def _image_text(self, node: Node, target: str) -> str:
        """What a symlink's target names: a place in this tree, from the link's directory, or an image."""
        site = node.subject.site
        place = os.path.normpath(os.path.join("/", node.path, target))
        if target.startswith("/"):
            place = os.path.normpath(target).removeprefix(os.path.normpath(site.mountpoint))
        text = place.removeprefix(f"/{self.table}/")
        return text if site.now.find(self.table, text) else target

    def _listed(self, node: Node, name: str) -> str | None:
        names = self._names(node)
        return names.site.now.places[names.table].objects.get(names.join(name))

    def _object(self, node: Node, path: str, id_: str) -> Node:
        names = self._names(node)
        subject = SUBJECTS[names.table](names.site, id_)
        return Node(self.each, subject, f"{names.table}:{id_}", f"{names.table}/{path}")

    def _directory(self, node: Node, path: str) -> Node:
        names = self._names(node)
        subject = NamesSubject(names.site, names.table, path)
        return Node(self, subject, directory_key(names.table, path), f"{names.table}/{path}")

    def _names(self, node: Node) -> NamesSubject:
        """The directory of names a node is; the root's own entry is the table itself."""
        subject = node.subject
        return subject if isinstance(subject, NamesSubject) else NamesSubject(subject.site, self.table)
