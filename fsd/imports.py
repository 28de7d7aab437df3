"""``images/.import/``: what is copied there is loaded as an image archive, under the names it carries."""

from __future__ import annotations

import errno
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsd.nodes import Attributes, DirectoryKind, Kind
from fsd.site import Subject
from fsd.uploads import ImageUpload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.contents import Content, Sink
    from fsd.nodes import Node
    from fsd.uploads import Progress

DIRECTORY = ".import"


@dataclass(frozen=True, slots=True)
class ImportSubject(Subject):
    """One file on its way in, or just loaded."""

    progress: Progress


@dataclass(frozen=True)
class ImportFile(Kind):
    """A file that can only be written; mode, owner and times are let pass, because tools set them."""

    mode = stat.S_IFREG | 0o200
    writable = True
    takes_attributes = True
    keep_name = 0.0

    def attributes(self, node: Node) -> Attributes:
        """As large as what came so far."""
        return Attributes(self.mode, _progress(node).bytes, time.time_ns())

    def open_content(self, node: Node) -> Content:
        """Nobody needs to read back what they just wrote; asked of those only who do nothing else."""
        node.refuse(errno.EACCES, "an import can only be written; look at control/status for how it goes")

    def open_sink(self, node: Node, emptied: bool) -> Sink:
        """Takes the archive."""
        return ImageUpload(node.subject.site, _progress(node))


@dataclass(frozen=True)
class ImportTable(DirectoryKind):
    """Takes new files of any name; they answer to it until a minute after they were loaded."""

    def lookup(self, node: Node, name: str) -> Node | None:
        """An import under way, or just ended."""
        progress = node.subject.site.uploads.named(name)
        return None if progress is None else self._node(node, name, progress)

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """Imports under way."""
        for name in node.subject.site.uploads.names():
            if (found := self.lookup(node, name)) is not None:
                yield name, found

    def create(self, node: Node, name: str, regular: bool) -> Node:
        """Begin an import."""
        if not regular:
            return super().create(node, name, regular)
        return self._node(node, name, node.subject.site.uploads.name(name))

    def unlink(self, node: Node, name: str) -> None:
        """Drop the name; what is being written is still loaded when it is closed."""
        try:
            node.subject.site.uploads.forget(name)
        except KeyError:
            node.refuse(errno.ENOENT, f"no import is called {name!r}")

    def rename(self, node: Node, name: str, into: Node, new_name: str) -> None:
        """Tools that write to a temporary name rename it at the end."""
        if into.key != node.key:
            node.refuse(errno.EPERM, f"the import {name!r} has no other place; closing it loads it")
        try:
            node.subject.site.uploads.rename(name, new_name)
        except KeyError:
            node.refuse(errno.ENOENT, f"no import is called {name!r}")

    def _node(self, node: Node, name: str, progress: Progress) -> Node:
        return node.child(name, _FILE, ImportSubject(node.subject.site, progress))


_FILE = ImportFile()


def _progress(node: Node) -> Progress:
    assert isinstance(node.subject, ImportSubject)
    return node.subject.progress
