"""Which paths a send stream speaks of, in terms of the two trees it connects.

The commands of a stream apply one after another, so their paths are those of a tree that is neither the
old nor the new one: what is in the way is first renamed to an *orphan* name (``o257-12-0``), directories
move before or after their content, and a file may take several names on its way. :class:`Namespace`
replays names only, over an old tree it never reads, and tells in the end which paths the stream touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers.btrfs_send import Attribute, Kind, MalformedStream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from drivers.btrfs_send import Command

_CREATING = frozenset((Kind.MKFILE, Kind.MKDIR, Kind.MKNOD, Kind.MKFIFO, Kind.MKSOCK, Kind.SYMLINK))
_REMOVING = frozenset((Kind.UNLINK, Kind.RMDIR))
_HEADING = frozenset((Kind.SUBVOL, Kind.SNAPSHOT))


class Node:
    """A file or directory: where it was in the old tree, and what became of the names in it.

    ``origin`` is an absolute path, ``None`` for what the stream created. ``names`` holds only the names
    the stream mentioned; one it removed has the value ``None``.
    """

    __slots__ = ("names", "origin", "touched")

    def __init__(self, origin: bytes | None) -> None:
        self.origin = origin
        self.names: dict[bytes, Node | None] = {}
        self.touched = False


@dataclass(frozen=True, slots=True)
class Candidates:
    """Absolute paths of the new tree, ``b""`` for the root.

    ``touched`` are those of files and directories that existed before and were changed themselves; a
    stream names one of several hard links only.
    """

    paths: list[bytes]
    touched: frozenset[bytes]


class Namespace:
    """The names of a tree while a stream changes it."""

    def __init__(self) -> None:
        self.root = Node(b"")

    def apply(self, commands: Iterable[Command]) -> None:
        """Follow the commands; :class:`MalformedStream` when they contradict themselves."""
        for command in commands:
            kind = command.kind
            if kind in _CREATING:
                self._put(command.path(), Node(None))
            elif kind in _REMOVING:
                self._take(command.path())
            elif kind == Kind.RENAME:
                self._put(command.path(Attribute.PATH_TO), self._take(command.path()))
            elif kind == Kind.LINK:
                self._put(command.path(), self._find(command.path(Attribute.PATH_LINK)))
            elif kind not in _HEADING:
                # Whatever else there is, also in protocols to come, is about the inode at its path.
                self._find(command.path()).touched = True

    def _find(self, path: bytes) -> Node:
        node = self.root
        if path:
            for name in path.split(b"/"):
                node = self._child(node, name)
        return node

    def _child(self, node: Node, name: bytes) -> Node:
        if name not in node.names:
            if node.origin is None:
                raise MalformedStream(f"the send stream names {name!r} in a new directory without it")
            node.names[name] = Node(node.origin + b"/" + name)
        child = node.names[name]
        if child is None:
            raise MalformedStream(f"the send stream names {name!r} after it was removed")
        return child

    def _parent(self, path: bytes) -> tuple[Node, bytes]:
        directory, _, name = path.rpartition(b"/")
        return self._find(directory), name

    def _take(self, path: bytes) -> Node:
        parent, name = self._parent(path)
        node = self._child(parent, name)
        parent.names[name] = None
        return node

    def _put(self, path: bytes, node: Node) -> None:
        parent, name = self._parent(path)
        parent.names[name] = node

    def candidates(self) -> Candidates:
        """Where the trees may differ; orphan names are among the paths.

        Paths are those of the new tree. What left a directory that is still in place counts there; what
        left one that moved is inside a path the move itself makes a candidate.
        """
        paths, touched = [], set()
        if self.root.touched:
            paths.append(b"")
        pending = [(b"", self.root)]
        while pending:
            place, node = pending.pop()
            for name, child in node.names.items():
                path = place + b"/" + name
                if child is None or child.touched or child.origin != path:
                    paths.append(path)
                if child is None:
                    continue
                if child.touched and child.origin is not None:
                    touched.add(path)
                if child.names:
                    pending.append((path, child))
        return Candidates(paths, frozenset(touched))
