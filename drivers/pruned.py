"""Finding changes by generation: every inode item of btrfs carries the transaction that last wrote it.

A tree search that asks for metadata younger than the fork of two subvolumes skips every btree node both
still share, so it costs what the changes cost. Whatever :func:`~drivers.changes.tree_changes` can see
(mode, owner, size, times, names, extended attributes) is written together with the inode item of the file or
directory, so the young inodes of either side include every difference. Needs CAP_SYS_ADMIN.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers import btrfs_tree
from drivers.btrfs_tree import Range, tree_search

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from drivers.btrfs_ioctl import Place

INODE_ITEM = 1
INODE_REF = 12
INODE_EXTREF = 13
ROOT_INODE = 256
LAST_INODE = 2**64 - 257
"""BTRFS_LAST_FREE_OBJECTID: numbers above belong to internal objects."""
CURRENT_TREE = 0
"""As a tree to search: the subvolume the descriptor is in."""
_INODE = struct.Struct("<8xQ24xI8xI")
"""``struct btrfs_inode_item``: transid, nlink, mode."""
_REF = struct.Struct("<QH")
_EXTREF = struct.Struct("<QQH")


@dataclass(frozen=True, slots=True)
class YoungInode:
    """An inode written after some generation: its number and ``st_mode``."""

    number: int
    mode: int

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


def young_inodes(place: Place, after: int) -> Iterator[YoungInode]:
    """Inodes of the subvolume ``place`` written in a transaction later than ``after``.

    Only what is committed is seen: sync first, or search a snapshot.
    """
    wanted = Range(
        tree=CURRENT_TREE, objectids=(ROOT_INODE, LAST_INODE), transids=(after + 1, btrfs_tree.U64_MAX)
    )
    for item in tree_search(place, wanted):
        if item.type == INODE_ITEM:
            written, links, mode = _INODE.unpack_from(item.data)
            if written > after and links:  # an open but removed file has no name any more
                yield YoungInode(item.objectid, mode)


def changed_after(place: Place, after: int) -> bool:
    """Whether anything in the subvolume ``place`` was written in a transaction later than ``after``."""
    return next(young_inodes(place, after), None) is not None


class Names:
    """Paths of inodes in one subvolume, looked up once each."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._directories: dict[int, bytes] = {ROOT_INODE: b""}

    def directory(self, inode: int) -> bytes:
        """Absolute path of a directory, ``b""`` for the root."""
        path = self._directories.get(inode)
        if path is None:
            text = btrfs_tree.directory_path(self._place, CURRENT_TREE, inode)
            path = b"/" + os.fsencode(text).rstrip(b"/")
            self._directories[inode] = path
        return path

    def paths(self, inode: int) -> Iterable[bytes]:
        """Every path of a file, one for each of its hard links."""
        return [self.directory(parent) + b"/" + name for parent, name in _references(self._place, inode)]


def _references(place: Place, inode: int) -> Iterator[tuple[int, bytes]]:
    """Directory and name of each link; many links to one directory overflow into extended ones."""
    wanted = Range(tree=CURRENT_TREE, objectids=(inode, inode), types=(INODE_REF, INODE_EXTREF))
    for item in tree_search(place, wanted):
        at = 0
        while at < len(item.data):
            if item.type == INODE_REF:
                (_, length), parent, head = _REF.unpack_from(item.data, at), item.offset, _REF.size
            else:
                parent, _, length = _EXTREF.unpack_from(item.data, at)
                head = _EXTREF.size
            yield parent, item.data[at + head : at + head + length]
            at += head + length


@dataclass(frozen=True, slots=True)
class Young:
    """What one side wrote since the fork: all paths of its young inodes, and those of directories."""

    paths: tuple[bytes, ...]
    directories: tuple[bytes, ...]


def young_paths(place: Place, after: int) -> Young:
    """Paths of every inode of the subvolume ``place`` written later than transaction ``after``."""
    names = Names(place)
    paths: list[bytes] = []
    directories: list[bytes] = []
    for inode in young_inodes(place, after):
        if inode.is_directory:
            directories.append(names.directory(inode.number))
        else:
            paths += names.paths(inode.number)
    return Young((*paths, *directories), tuple(directories))
