"""Open synthetic directories, what their entries look like, and which listings the kernel may keep."""

from __future__ import annotations

import os
import stat
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyfuse3
import trio
from pyfuse3 import InodeT

from fsd.errnos import errno_of
from fsd.nodes import LISTED_SECONDS, Attributes, RealTree
from fsd.plane import OURS
from fsd.site import ContainerSubject, PartSubject
from fsd.virtual import LargeFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyfuse3 import EntryAttributes

    from fsd.inodes import Inodes
    from fsd.nodes import Node
    from fsd.site import Site

    Entries = list[tuple[str, Node]]

OWNER = os.geteuid(), os.getegid()
"""Whose the synthetic entries are: whoever serves the store may use all of them."""
KEEPS_LISTING, KEPT_LISTING = 1 << 62, 1 << 61
"""In the handle of a directory: the plane lets the kernel keep the listing, and use what it kept before."""

END = 1 << 30
"""In the offset after the last entry: the plane knows that nothing follows."""
TOGETHER = 32
"""Entries whose attributes one thread makes at a time."""


@dataclass(slots=True)
class Listing:
    """An open synthetic directory: its entries as they were when it was last read from the start."""

    node: Node
    inode: InodeT
    entries: Entries | None = None


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
    entry.st_uid, entry.st_gid = OWNER
    entry.st_size = found.size
    entry.st_blksize = 4096
    entry.st_blocks = 0 if stat.S_ISDIR(found.mode) else -(-found.size // 512)
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = found.mtime_ns
    return entry


def shown(inodes: Inodes, node: Node, found: Attributes) -> EntryAttributes:
    """A synthetic entry as the kernel gets it."""
    number = inodes.number(node)
    entry = entry_attributes(number, found, node.kind.keep_name)
    entry.generation = found.generation or inodes.generation(number)
    return entry


class Lister:
    """Answers READDIR: entries with their attributes, as many as fit."""

    def __init__(self, site: Site, inodes: Inodes) -> None:
        self._site = site
        self._inodes = inodes

    async def reply(self, listing: Listing, position: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries from ``position`` on; those gone meanwhile are left out."""
        entries = listing.entries or []
        while position < len(entries):
            with self._site.live.held():  # nothing below waits, so all of it is of one moment
                position, full = self._plain(entries, position, token)
            if full or position == len(entries):
                return
            nodes = [node for _, node in entries[position : position + TOGETHER]]
            for found in await trio.to_thread.run_sync(_attributes_of, self._site, nodes):
                if found is not None and not self._entry(entries, position, found, token):
                    return
                position += 1

    def _plain(self, entries: Entries, position: int, token: pyfuse3.ReaddirToken) -> tuple[int, bool]:
        """The entries up to one that takes a thread; where that is, and whether no more fit."""
        for at in range(position, len(entries)):
            kind = entries[at][1].kind
            if kind.blocking and not isinstance(kind, RealTree):
                return at, False
            found = _attributes(entries[at][1])
            if found is not None and not self._entry(entries, at, found, token):
                return at, True
        return len(entries), False

    def _entry(self, entries: Entries, at: int, found: Attributes, token: pyfuse3.ReaddirToken) -> bool:
        """Put one entry into the answer; false when it does not fit."""
        name, node = entries[at]
        real = isinstance(node.kind, RealTree)
        entry = unlooked(node.key) if real else shown(self._inodes, node, found)
        entry.attr_timeout = max(found.keep, listed_seconds(node))
        after = at + 1 if at + 1 < len(entries) else END | len(entries)
        if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, after):
            return False
        if not real:
            self._inodes.remember(node)
        return True


def _attributes(node: Node) -> Attributes | None:
    """What an entry shows; nothing when it is gone meanwhile. Real trees show when they are looked up."""
    if isinstance(node.kind, RealTree):
        return Attributes(node.kind.mode, 0, 0)
    try:
        return node.kind.attributes(node)
    except Exception as exc:  # one entry that is gone, or broken, hides no other
        if errno_of(exc) is None and not isinstance(exc, LookupError):
            raise
        return None


def _attributes_of(site: Site, nodes: Sequence[Node]) -> list[Attributes | None]:
    """What several entries show, all of one moment."""
    with site.live.held():
        return [_attributes(node) for node in nodes]


def listed_seconds(node: Node) -> float:
    """How long the attributes in a listing hold; what follows a tree people write to is asked each time."""
    if isinstance(node.kind, LargeFile) and isinstance(node.subject, ContainerSubject | PartSubject):
        return 0.0
    return LISTED_SECONDS


def unlooked(key: str) -> EntryAttributes:
    """A real tree in a listing: the plane leaves its node out, so that it is opened when it is looked up."""
    return root_attributes(InodeT(OURS | zlib.crc32(key.encode("utf-8", "surrogateescape"))), 0.0)
