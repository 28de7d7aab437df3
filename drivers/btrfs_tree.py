"""btrfs metadata trees: searches, and what the project reads out of them.

Searching needs CAP_SYS_ADMIN. Item layouts are those of ``<linux/btrfs_tree.h>``: packed little-endian
structures. Nested subvolumes are found by their ROOT_REF items, in time proportional to their number and
not to the size of the layer they are in.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivers.btrfs_ioctl import ROOT_INODE, call, ffi, lib, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers.btrfs_ioctl import Place

ROOT_TREE: int = lib.BTRFS_ROOT_TREE_OBJECTID
QUOTA_TREE: int = lib.BTRFS_QUOTA_TREE_OBJECTID
ROOT_ITEM: int = lib.BTRFS_ROOT_ITEM_KEY
ROOT_REF: int = lib.BTRFS_ROOT_REF_KEY
ROOT_BACKREF: int = lib.BTRFS_ROOT_BACKREF_KEY
QGROUP_STATUS: int = lib.BTRFS_QGROUP_STATUS_KEY
QGROUP_INFO: int = lib.BTRFS_QGROUP_INFO_KEY
QGROUP_LIMIT: int = lib.BTRFS_QGROUP_LIMIT_KEY
STATUS_ON: int = lib.BTRFS_QGROUP_STATUS_FLAG_ON
STATUS_RESCAN: int = lib.BTRFS_QGROUP_STATUS_FLAG_RESCAN
STATUS_INCONSISTENT: int = lib.BTRFS_QGROUP_STATUS_FLAG_INCONSISTENT
STATUS_SIMPLE: int = lib.BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE

U64_MAX = 2**64 - 1
_SEARCH_BUFFER = 64 * 1024
_REFERENCE_BUFFER = 64 * 1024
LAST_FREE: int = lib.BTRFS_LAST_FREE_OBJECTID % 2**64
_ROOT_REF_HEAD = struct.Struct("<QQH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of a btree: its key and its bytes."""

    objectid: int
    type: int
    offset: int
    transid: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What :func:`tree_search` looks for; bounds are inclusive, types bound the whole key range."""

    tree: int
    objectids: tuple[int, int] = (0, U64_MAX)
    types: tuple[int, int] = (0, 255)
    offsets: tuple[int, int] = (0, U64_MAX)
    transids: tuple[int, int] = (0, U64_MAX)


def tree_search(place: Place, wanted: Range, *, buffer_size: int = _SEARCH_BUFFER) -> Iterator[Item]:
    """Items of a tree whose objectid, type, offset and transid all lie in ``wanted`` (CAP_SYS_ADMIN).

    The kernel compares keys as a whole; items in between with another type or offset are left out here.
    ``buffer_size`` bytes bound one batch; items larger than it raise EOVERFLOW.
    """
    buffer = ffi.new("char[]", lib.search_args_size() + buffer_size)
    args = ffi.cast("struct btrfs_ioctl_search_args_v2 *", buffer)
    low = (wanted.objectids[0], wanted.types[0], wanted.offsets[0])
    with opened(place) as fd:
        while True:
            _fill_key(args, wanted, low)
            args.buf_size = buffer_size
            call(fd, "BTRFS_IOC_TREE_SEARCH_V2", buffer, place)
            if not args.key.nr_items:
                return
            items = _items(buffer, args.key.nr_items)
            yield from (item for item in items if _inside(item, wanted))
            last = items[-1]
            following = _successor(last.objectid, last.type, last.offset)
            if following is None or following > (wanted.objectids[1], wanted.types[1], wanted.offsets[1]):
                return
            low = following


def _fill_key(args: Any, wanted: Range, low: tuple[int, int, int]) -> None:
    key = args.key
    key.tree_id = wanted.tree
    key.min_objectid, key.min_type, key.min_offset = low
    key.max_objectid, key.max_type, key.max_offset = wanted.objectids[1], wanted.types[1], wanted.offsets[1]
    key.min_transid, key.max_transid = wanted.transids
    key.nr_items = 2**32 - 1


def _items(buffer: Any, count: int) -> list[Item]:
    at, header_size, items = lib.search_args_size(), lib.search_header_size(), []
    for _ in range(count):
        header = ffi.cast("struct btrfs_ioctl_search_header *", buffer + at)
        data = bytes(ffi.buffer(buffer + at + header_size, header.len))
        items.append(
            Item(
                objectid=header.objectid,
                type=header.type,
                offset=header.offset,
                transid=header.transid,
                data=data,
            )
        )
        at += header_size + header.len
    return items


def _inside(item: Item, wanted: Range) -> bool:
    pairs = (item.objectid, wanted.objectids), (item.type, wanted.types), (item.offset, wanted.offsets)
    return all(low <= value <= high for value, (low, high) in pairs)


def _successor(objectid: int, kind: int, offset: int) -> tuple[int, int, int] | None:
    if offset < U64_MAX:
        return objectid, kind, offset + 1
    if kind < 255:
        return objectid, kind + 1, 0
    return (objectid + 1, 0, 0) if objectid < U64_MAX else None


def directory_path(place: Place, tree: int, inode: int) -> str:
    """Path of directory ``inode`` from the root of subvolume ``tree``, ending in ``/`` unless empty."""
    args = ffi.new("struct btrfs_ioctl_ino_lookup_args *")
    args.treeid, args.objectid = tree, inode
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_INO_LOOKUP", args, place)
    return os.fsdecode(ffi.string(args.name))


@dataclass(frozen=True, slots=True)
class Nested:
    """A subvolume inside another: its ID, and its path from the root of the one searched."""

    id: int
    path: str


def nested_subvolumes(place: Place, identifier: int) -> list[Nested]:
    """Subvolumes at any depth below subvolume ``identifier``, the deepest first."""
    found: list[Nested] = []
    with opened(place) as fd:
        _collect(fd, identifier, "", found)
    found.reverse()
    return found


def _collect(fd: int, identifier: int, prefix: str, found: list[Nested]) -> None:
    # Breadth first over an explicit list: nesting may be deeper than the interpreter's stack.
    pending = [(identifier, prefix)]
    while pending:
        parent, base = pending.pop(0)
        wanted = Range(tree=ROOT_TREE, objectids=(parent, parent), types=(ROOT_REF, ROOT_REF))
        for item in tree_search(fd, wanted):
            directory, _, length = _ROOT_REF_HEAD.unpack_from(item.data)
            name = os.fsdecode(item.data[_ROOT_REF_HEAD.size : _ROOT_REF_HEAD.size + length])
            path = base + directory_path(fd, parent, directory) + name
            found.append(Nested(item.offset, path))
            pending.append((item.offset, path + "/"))


def subvolume_ids(place: Place) -> set[int]:
    """IDs of all subvolumes of the filesystem that have a name, the top level included."""
    wanted = Range(tree=ROOT_TREE, objectids=(ROOT_INODE, LAST_FREE), types=(ROOT_BACKREF, ROOT_BACKREF))
    return {item.objectid for item in tree_search(place, wanted)}


def referring_subvolumes(place: Place, physical: int) -> set[int]:
    """IDs of the subvolumes whose files use the extent at byte ``physical`` (LOGICAL_INO_V2).

    When there are more than fit into 64 KiB, only those that fit.
    """
    container = ffi.new("uint64_t[]", _REFERENCE_BUFFER // 8)
    args = ffi.new("struct btrfs_ioctl_logical_ino_args *")
    args.logical, args.size = physical, _REFERENCE_BUFFER
    args.flags = lib.BTRFS_LOGICAL_INO_ARGS_IGNORE_OFFSET
    args.inodes = int(ffi.cast("uint64_t", ffi.cast("void *", container)))
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_LOGICAL_INO_V2", args, place)
    # struct btrfs_data_container: four 32-bit counters, then (inode, offset, root) triples.
    values = container[1] & 0xFFFFFFFF
    return {container[2 + index] for index in range(2, values, 3)}
