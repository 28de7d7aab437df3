"""Images as files other tools read: ``oci/`` (an OCI image layout) and ``image.tar`` (a docker-archive)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsd.contents import Streamed
from fsd.layouts import ARCHIVE
from fsd.nodes import Alias, DirectoryKind
from fsd.site import ImageSubject, PathSubject, Subject
from fsd.virtual import LargeFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fsd.nodes import Node
    from store.virtual import VirtualFile


@dataclass(frozen=True, slots=True)
class FileSubject(Subject):
    """One file or directory of an image's layout; ``path`` is relative to it, empty for the layout."""

    layout: ImageSubject | RepositorySubject
    path: str

    def changed_ns(self) -> int:
        """When the image last changed."""
        return self.layout.changed_ns()

    @property
    def file(self) -> VirtualFile:
        """The file."""
        return _files(self.layout)[self.path]


@dataclass(frozen=True, slots=True)
class RepositorySubject(Subject):
    """The images of one repository: everything that is called ``name:TAG``."""

    name: str


def _files(layout: ImageSubject | RepositorySubject) -> Mapping[str, VirtualFile]:
    layouts = layout.site.layouts
    if isinstance(layout, RepositorySubject):
        return layouts.repository(layout.name)
    live = layout.site.live
    return live.once(("layout", layout.id), lambda: layouts.files(layout.id))


def _archive(image: ImageSubject) -> VirtualFile:
    return _files(image)[ARCHIVE]


IMAGE_TAR = LargeFile(lambda image: _archive(image).size, lambda image: Streamed(_archive(image)))
_FILE = LargeFile(lambda subject: subject.file.size, lambda subject: Streamed(subject.file))


@dataclass(frozen=True)
class Layout(DirectoryKind):
    """``oci/`` and every directory in it."""

    blocking = True

    def lookup(self, node: Node, name: str) -> Node | None:
        """The file or directory ``name``."""
        return next((entry for listed, entry in self.entries(node) if listed == name), None)

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """Files and directories, each once."""
        layout, prefix = _place(node)
        paths = [
            path[len(prefix) :] for path in _files(layout) if path != ARCHIVE and path.startswith(prefix)
        ]
        for name in dict.fromkeys(path.split("/")[0] for path in paths):
            subject = FileSubject(node.subject.site, layout, prefix + name)
            yield name, node.child(name, _FILE if name in paths else _INNER, subject)


_INNER = Layout()


def _place(node: Node) -> tuple[ImageSubject | RepositorySubject, str]:
    subject = node.subject
    if isinstance(subject, FileSubject):
        return subject.layout, f"{subject.path}/"
    assert isinstance(subject, ImageSubject | RepositorySubject)
    return subject, ""


@dataclass(frozen=True)
class Repository(Layout):
    """``images/REPOSITORY`` without a tag, unlisted: a layout of all its images.

    What else podman would mean by such a name is the image tagged ``latest``, so its entries resolve too.
    """

    def lookup(self, node: Node, name: str) -> Node | None:
        """A file of the layout, or a symlink to an entry of the latest image."""
        found = super().lookup(node, name)
        repository = node.subject
        assert isinstance(repository, RepositorySubject)
        place = repository.site.now.find("images", f"{repository.name}:latest")
        if found is not None or place is None:
            return found
        target = PathSubject(
            repository.site, f"{ImageSubject(repository.site, place).path}/{name}", repository
        )
        return node.child(name, _LATEST, target)


_LATEST = Alias(lambda subject: subject.path)
