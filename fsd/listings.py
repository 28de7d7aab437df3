"""Open synthetic directories, what their entries look like, and which listings the kernel may keep."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyfuse3

if TYPE_CHECKING:
    from pyfuse3 import EntryAttributes, InodeT

    from fsd.nodes import Attributes, Node

KEEPS_LISTING, KEPT_LISTING = 1 << 62, 1 << 61
"""In the handle of a directory: the plane lets the kernel keep the listing, and use what it kept before."""


@dataclass(slots=True)
class Listing:
    """An open synthetic directory: its entries as they were when it was last read from the start."""

    node: Node
    inode: InodeT
    entries: list[tuple[str, Node]] | None = None


class KeptListings:
    """When the listings that the kernel keeps last changed."""

    def __init__(self) -> None:
        self._changed: dict[str, int] = {}

    def flags(self, node: Node) -> int:
        """What a handle of the directory carries: a listing that has changed is kept anew from now on."""
        if not node.kind.keeps_listing:
            return 0
        now = node.kind.attributes(node).mtime_ns
        before, self._changed[node.key] = self._changed.get(node.key), now
        return KEEPS_LISTING | KEPT_LISTING if before == now else KEEPS_LISTING


def root_attributes(number: InodeT, keep_name: float) -> EntryAttributes:
    """The node of a real tree's root; the plane fills in its real attributes."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = number
    entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR)
    entry.entry_timeout = keep_name
    return entry


def entry_attributes(number: InodeT, found: Attributes, keep_name: float) -> EntryAttributes:
    """Attributes as pyfuse3 wants them."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = number
    entry.entry_timeout = keep_name
    entry.attr_timeout = found.keep
    entry.st_mode = pyfuse3.ModeT(found.mode)
    entry.st_nlink = found.nlink
    entry.st_size = found.size
    entry.st_blksize = 4096
    entry.st_blocks = 0 if stat.S_ISDIR(found.mode) else -(-found.size // 512)
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = found.mtime_ns
    return entry
