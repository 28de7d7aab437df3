"""Numbers and lookup counts of the synthetic nodes.

The kernel holds a reference for each successful lookup and gives references back in ``forget``; a node no
reference names is dropped. It may hold all entries of a large store at once, a few hundred thousand, and most
of them are the fixed entries of a ``Directory``. So those have no record of their own here: they are
counted together, by their place in the directory, and their nodes are made again when they are asked for.
This module does no I/O.

A number is a *group* and a place in it. The group is a hash of the key, the same after every mount, with
linear probing for the (unlikely) collision. Place 1 is the entry of that key itself, the places above are its
fixed entries. Group 0 is that of the root, whose number thereby is 1 (fuse.h, FUSE_ROOT_ID). The numbers
stay below 2**62: the range with bit 62 set belongs to the real directory trees (``fsd.plane``).

The kernel keeps the inode of a removed directory, marked dead, for as long as somebody has it open: every
lookup in it is ENOENT. If the same object comes back it would be given that inode again, so a removed
directory's number goes on with another generation (fuse.h, ``fuse_entry_out.generation``).
"""

from __future__ import annotations

import functools
import hashlib
from array import array
from typing import TYPE_CHECKING

import pyfuse3

from fsd.plane import OURS, PLACES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fsd.nodes import Node

ROOT = pyfuse3.ROOT_INODE
_ITSELF, _FIRST_FIXED = 1, 2
_GROUPS = OURS // PLACES


class _Group:
    """What the kernel holds of one entry and its fixed entries; counts are of lookups, by place."""

    __slots__ = ("counts", "generation", "lookups", "node", "published")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.lookups = 0
        self.generation = 0
        self.published = False
        self.counts: array[int] | None = None

    def count(self, place: int) -> int:
        """Lookups of one place."""
        if place == _ITSELF:
            return self.lookups
        at = place - _FIRST_FIXED
        return self.counts[at] if self.counts is not None and 0 <= at < len(self.counts) else 0

    def set(self, place: int, count: int) -> None:
        """Let a place have that many lookups."""
        if place == _ITSELF:
            self.lookups = count
            return
        if self.counts is None:
            self.counts = array("Q")
        at = place - _FIRST_FIXED
        if at >= len(self.counts):
            self.counts.extend([0] * (at + 1 - len(self.counts)))
        self.counts[at] = count

    def held(self) -> int:
        """How many of its places the kernel holds, as far as that is counted here."""
        fixed = len(self.counts) - self.counts.count(0) if self.counts is not None else 0
        return fixed + bool(self.lookups)


class Inodes:
    """The nodes the kernel knows, by number. Used from the event loop's thread only."""

    def __init__(self, root: Node) -> None:
        self._root = root.key
        self._groups: dict[int, _Group] = {0: _Group(root)}
        self._groups[0].lookups = 1
        self._probed: dict[str, int] = {}
        """Groups whose hash was taken."""

    def number(self, node: Node) -> pyfuse3.InodeT:
        """The node's number; the newest node of a key replaces an older one of the same key."""
        owner, place = _split(node)
        group = self._group(owner.key)
        if group in self._groups:
            self._groups[group].node = owner
        return pyfuse3.InodeT(group * PLACES + place)

    def remember(self, node: Node) -> pyfuse3.InodeT:
        """Count one lookup the kernel is about to hold, and return the node's number."""
        number = self.number(node)
        place = number % PLACES
        group = self._entered(number, node)
        group.set(place, group.count(place) + 1)
        return number

    def _entered(self, number: int, node: Node) -> _Group:
        """The group of a node, made if there is none."""
        index = number // PLACES
        group = self._groups.get(index)
        if group is None:
            owner, _ = _split(node)
            group = self._groups[index] = _Group(owner)
            if owner.key != self._root and _hashed(owner.key) != index:
                self._probed[owner.key] = index
        return group

    def publish(self, node: Node) -> pyfuse3.InodeT:
        """The plane counts lookups of the node and its fixed entries too, until :meth:`release`."""
        number = self.number(node)
        self._entered(number, node).published = True
        return number

    def release(self, numbers: Iterable[int]) -> None:
        """The plane publishes nothing of the groups of these numbers any more, and counts nothing in them."""
        for number in numbers:
            index = number // PLACES
            if index in self._groups:
                self._groups[index].published = False
                self._drop_unheld(index)

    def node(self, number: int) -> Node:
        """The node of a number the kernel holds; ``KeyError`` if it never was told of it."""
        group, place = self._groups[number // PLACES], number % PLACES
        if not group.count(place) and not group.published:
            raise KeyError(number)
        return group.node if place == _ITSELF else group.node.kind.fixed(group.node, place - _FIRST_FIXED)

    def find(self, key: str) -> pyfuse3.InodeT | None:
        """The number of the node of that key, if the kernel holds it."""
        group = self._group(key)
        place = _ITSELF
        if not self._may_hold(group, _ITSELF):
            owner, _, name = key.rpartition("/")
            group = self._group(owner)
            at = self._groups[group].node.kind.place(name) if group in self._groups else None
            if at is None or not self._may_hold(group, at + _FIRST_FIXED):
                return None
            place = at + _FIRST_FIXED
        return pyfuse3.InodeT(group * PLACES + place)

    def _may_hold(self, index: int, place: int) -> bool:
        """Whether the kernel holds that place, or may: of what is published the plane knows."""
        group = self._groups.get(index)
        return group is not None and (group.published or bool(group.count(place)))

    def retire(self, key: str) -> None:
        """The directory of that key was removed by ``rmdir``: the kernel will not look in its inode again."""
        group = self._groups.get(self._group(key))
        if group is not None and (group.lookups or group.published):
            group.generation += 1

    def generation(self, number: int) -> int:
        """How often the node was removed while the kernel knew it."""
        group = self._groups.get(number // PLACES)
        return group.generation if group is not None and number % PLACES == _ITSELF else 0

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """Take lookups back; unknown numbers are ignored, as the kernel may race with a drop."""
        for number, count in counts:
            index, place = divmod(number, PLACES)
            group = self._groups.get(index)
            before = group.count(place) if group is not None else 0
            if group is None or not before:
                continue
            least = 1 if number == ROOT else 0
            group.set(place, max(before - count, least))
            self._drop_unheld(index)

    def _drop_unheld(self, index: int) -> None:
        """Forget a group as far as nobody holds it."""
        group = self._groups[index]
        if group.published:
            return
        if not group.lookups:
            group.generation = 0
        if not group.held():
            del self._groups[index]
            self._probed.pop(group.node.key, None)

    def __len__(self) -> int:
        return sum(group.held() for group in self._groups.values())

    def _group(self, key: str) -> int:
        """The group of a key: where it is, or where it would go."""
        if key == self._root:
            return 0
        index = self._probed.get(key)
        if index is None:
            index = _hashed(key)
            while index in self._groups and self._groups[index].node.key != key:
                index += 1
        return index


def _split(node: Node) -> tuple[Node, int]:
    """Whose group the node is in, and its place there."""
    if node.fixed_in is None or node.place + _FIRST_FIXED >= PLACES:
        return node, _ITSELF
    return node.fixed_in, node.place + _FIRST_FIXED


@functools.lru_cache(1024)
def _hashed(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (_GROUPS - 1) + 1
