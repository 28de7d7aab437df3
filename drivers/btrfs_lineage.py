"""When two subvolumes parted: the transaction up to which their content is one.

Each snapshot knows the UUID of its source and the transaction it was taken in (``parent_uuid`` and
``otransid`` of its root item), so ancestors form a chain. A link survives the removal of the subvolume it
names only if a descendant still carries it; where this project replaces a subvolume it writes the
lost link down (:class:`Origins`).
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from drivers import btrfs_ioctl
from drivers.btrfs_tree import ROOT_ITEM, ROOT_TREE, Range, tree_search

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from drivers.btrfs_ioctl import Place, SubvolumeInfo

UUID_TREE = 9
UUID_SUBVOLUME = 251
_LINK = struct.Struct("<247x16s16s16sQQ")
"""``struct btrfs_root_item``: uuid, parent_uuid, received_uuid, ctransid, otransid."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Link:
    """A subvolume's UUID, its source's, and the transaction in which it was copied from it."""

    own: UUID
    parent: UUID | None
    taken: int

    @classmethod
    def of(cls, info: SubvolumeInfo) -> Link:
        """The link a subvolume carries itself."""
        return cls(info.uuid, info.parent_uuid, info.otransid)


class Origins:
    """Links of subvolumes that were replaced and are gone, one small file each."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def remember(self, info: SubvolumeInfo) -> None:
        """Keep the link of a subvolume about to be removed while its snapshots stay."""
        if info.parent_uuid is None:
            return
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._root / f".{info.uuid}"
        draft.write_text(f"{info.parent_uuid} {info.otransid}\n")
        draft.replace(self._root / str(info.uuid))

    def find(self, identifier: UUID) -> Link | None:
        """The link of a subvolume that was remembered."""
        try:
            parent, taken = (self._root / str(identifier)).read_text().split()
            return Link(identifier, UUID(parent), int(taken))
        except (FileNotFoundError, ValueError):
            return None


def find_link(place: Place, identifier: UUID) -> Link | None:
    """The link of a subvolume on the filesystem of ``place``, by UUID (CAP_SYS_ADMIN)."""
    first, second = struct.unpack("<QQ", identifier.bytes)
    key = Range(
        tree=UUID_TREE,
        objectids=(first, first),
        types=(UUID_SUBVOLUME, UUID_SUBVOLUME),
        offsets=(second, second),
    )
    for item in tree_search(place, key):
        for (subvolume,) in struct.iter_unpack("<Q", item.data):
            found = _root_link(place, subvolume)
            if found is not None and found.own == identifier:
                return found
    return None


def _root_link(place: Place, subvolume: int) -> Link | None:
    wanted = Range(tree=ROOT_TREE, objectids=(subvolume, subvolume), types=(ROOT_ITEM, ROOT_ITEM))
    for item in tree_search(place, wanted):
        own, parent, _, _, taken = _LINK.unpack_from(item.data)
        source = UUID(bytes=parent) if any(parent) else None
        return Link(UUID(bytes=own), source, taken)
    return None


def parted(new: Link, old: Link, find: Callable[[UUID], Link | None]) -> int | None:
    """The last transaction both subvolumes have in common, or ``None`` when no common ancestor is known.

    What either wrote later carries a later generation; inodes created up to then are one object in both.
    """
    new_left: dict[UUID, int | None] = {}
    for ancestor, left in _ancestors(new, find):
        if ancestor == old.own:
            return left
        new_left[ancestor] = left
    for ancestor, left in _ancestors(old, find):
        if ancestor in new_left:
            times = [time for time in (left, new_left[ancestor]) if time is not None]
            return min(times) if times else None
    return None


def _ancestors(link: Link, find: Callable[[UUID], Link | None]) -> Iterator[tuple[UUID, int | None]]:
    """UUIDs from a subvolume up, each with the transaction in which the line below left it."""
    seen = {link.own}
    yield link.own, None
    while link.parent is not None and link.parent not in seen:
        seen.add(link.parent)
        yield link.parent, link.taken
        above = find(link.parent)
        if above is None:
            return
        link = above


def generation_parted(new: Place, old: Place, origins: Origins) -> int | None:
    """:func:`parted` for two subvolumes; ``None`` too where the filesystem refuses to be searched."""
    links = [Link.of(btrfs_ioctl.subvolume_info(place)) for place in (new, old)]
    known = {link.own: link for link in links}

    def find(identifier: UUID) -> Link | None:
        return known.get(identifier) or origins.find(identifier) or find_link(new, identifier)

    try:
        return parted(links[0], links[1], find)
    except btrfs_ioctl.BtrfsError as error:
        _log.debug("ancestors of a subvolume cannot be looked up: %s", error)
        return None
