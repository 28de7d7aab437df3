"""Numbers and lookup counts of the synthetic nodes.

A node's number is a hash of its key, so it is the same after a remount, with linear probing for the
(unlikely) collision. The kernel holds a reference for each successful lookup and gives references
back in ``forget``; a node no reference names is dropped. This module does no I/O.

The kernel keeps the inode of a removed directory, marked dead, for as long as somebody has it open: every
lookup in it is ENOENT. If the same object comes back it would be given that inode again, so a removed
directory's number goes on with another generation (fuse.h, ``fuse_entry_out.generation``).

The numbers stay below 2**62: the range with bit 62 set belongs to the real directory trees
(``fsd.plane``). Number 1 is the root of the tree (fuse.h, FUSE_ROOT_ID).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyfuse3

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fsd.nodes import Node

ROOT = pyfuse3.ROOT_INODE
REAL_TREES = 1 << 62
_FIRST = 16


class Inodes:
    """The nodes the kernel knows, by number. Used from the event loop's thread only."""

    def __init__(self, root: Node) -> None:
        self._nodes: dict[int, Node] = {ROOT: root}
        self._numbers: dict[str, int] = {root.key: ROOT}
        self._lookups: dict[int, int] = {ROOT: 1}
        self._generations: dict[int, int] = {}

    def number(self, node: Node) -> pyfuse3.InodeT:
        """The node's number; the newest node of a key replaces an older one of the same key."""
        number = self._numbers.get(node.key)
        if number is None:
            number = self._free(node.key)
        elif number in self._nodes:
            self._nodes[number] = node
        return pyfuse3.InodeT(number)

    def remember(self, node: Node) -> pyfuse3.InodeT:
        """Count one lookup the kernel is about to hold, and return the node's number."""
        number = self.number(node)
        self._nodes[number] = node
        self._numbers[node.key] = number
        self._lookups[number] = self._lookups.get(number, 0) + 1
        return number

    def node(self, number: int) -> Node:
        """The node of a number the kernel holds; ``KeyError`` if it never was told of it."""
        return self._nodes[number]

    def find(self, key: str) -> pyfuse3.InodeT | None:
        """The number of the node of that key, if the kernel holds it."""
        number = self._numbers.get(key)
        return None if number is None else pyfuse3.InodeT(number)

    def retire(self, key: str) -> None:
        """The directory of that key was removed by ``rmdir``: the kernel will not look in its inode again."""
        number = self._numbers.get(key)
        if number is not None:
            self._generations[number] = self.generation(number) + 1

    def generation(self, number: int) -> int:
        """How often the node was removed while the kernel knew it."""
        return self._generations.get(number, 0)

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """Take lookups back; unknown numbers are ignored, as the kernel may race with a drop."""
        for number, count in counts:
            left = self._lookups.get(number, 0) - count
            if left > 0 or number == ROOT:
                self._lookups[number] = max(left, 1)
            elif number in self._nodes:
                del self._numbers[self._nodes.pop(number).key]
                del self._lookups[number]
                self._generations.pop(number, None)

    def __len__(self) -> int:
        return len(self._nodes)

    def _free(self, key: str) -> int:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        number = int.from_bytes(digest, "little") % (REAL_TREES - _FIRST) + _FIRST
        while number in self._nodes:
            number += 1
        return number
