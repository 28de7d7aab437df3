"""What differs between any two trees of a store: layers, images, containers and snapshots.

A :class:`Side` names one tree. Comparing two gives their changes and an archive of them; the archive's
size is known before any content is read, so that it can be shown as a file.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers.base import MountOptions
from drivers.idmap import IDMappings
from store.errors import LayerUnknown, NoSuchSource
from store.fill import resolve_source
from store.snapshots import snapshot_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers.base import Compared
    from store.store import Store

_ODD = re.compile(rb"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One tree to compare: a layer by its full ID, or a snapshot by the driver's key.

    ``owner`` is the full ID of the layer whose ID mappings a snapshot's files have.
    """

    layer: str = ""
    snapshot: str = ""
    owner: str = ""

    @property
    def key(self) -> str:
        """What tells it from any other."""
        return f"snapshot:{self.snapshot}" if self.snapshot else self.layer


def side_of(store: Store, text: str) -> Side:
    """The tree ``text`` names, in any form a container's ``from`` takes; ``NoSuchSource``."""
    source = resolve_source(store, text)
    if source.snapshot:
        container = store.catalog().container(source.container)
        return snapshot_side(source.snapshot, container.layer if container else "")
    layer = source.template or source.parent
    if not layer:
        raise NoSuchSource(f"{source.label} has no layer, so there is nothing to compare")
    return Side(layer=layer)


def snapshot_side(key: str, layer: str = "") -> Side:
    """A snapshot by the driver's key; ``layer`` is that of its container."""
    return Side(snapshot=key, owner=layer)


def history_side(container_id: str, name: str, layer: str) -> Side:
    """A snapshot by its container and name."""
    return snapshot_side(snapshot_key(container_id, name), layer)


def sides_of(store: Store, text: str) -> tuple[Side, Side | None]:
    """What the changes of ``text`` are between: new and old tree; ``NoSuchSource``.

    A layer and an image are compared with the layer below, a container with what it was made from, and a
    snapshot is the old side of its container as it is now.
    """
    side = side_of(store, text)
    if side.snapshot and side.owner:
        return Side(layer=side.owner), side
    layer = store.catalog().layer(side.layer)
    return side, Side(layer=layer.parent) if layer is not None and layer.parent else None


def generation_of(store: Store, side: Side, *, settle: bool = False) -> int | None:
    """A number that grows with every change of the tree; ``None`` where the driver knows none.

    Immediate unless ``settle`` is set: of writes that are under way only those count that reached the
    filesystem's metadata. To settle has all of them get there first.

    Raises:
        LayerUnknown, SnapshotUnknown
    """
    if not store.driver.capabilities.snapshots:
        return None
    snapshots = store.driver.snapshots()
    if side.snapshot:
        return snapshots.describe(side.snapshot).generation
    return snapshots.generation(side.layer, settle=settle)


@contextmanager
def opened_tree(store: Store, side: Side) -> Iterator[Path]:
    """The directory of a tree, for looking; ``LayerUnknown``, ``SnapshotUnknown``, ``OSError``."""
    with ExitStack() as mounts:
        yield _tree(store, side, mounts)


@contextmanager
def compared(store: Store, new: Side, old: Side | None) -> Iterator[Compared]:
    """What ``new`` changes against ``old``; all of it without one.

    Raises:
        LayerUnknown, SnapshotUnknown, OSError
    """
    with ExitStack() as mounts:
        sides = [None if side is None else _tree(store, side, mounts) for side in (new, old)]
        assert sides[0] is not None
        mappings = [IDMappings() if side is None else _mappings(store, side) for side in (new, old)]
        yield mounts.enter_context(store.driver.compared(sides[0], sides[1], mappings[0], mappings[1]))


def _tree(store: Store, side: Side, mounts: ExitStack) -> Path:
    if side.snapshot:
        return store.driver.snapshots().path(side.snapshot)
    return mounts.enter_context(store.driver.mounted(side.layer, MountOptions(options=("ro",))))


def _mappings(store: Store, side: Side) -> IDMappings:
    layer_id = side.layer or side.owner
    if not layer_id:
        return IDMappings()
    layer = store.catalog().layer(layer_id)
    if layer is None:
        if side.snapshot:
            return IDMappings()
        raise LayerUnknown(f"layer {layer_id} is gone")
    return layer.mappings


def describe_changes(found: Compared) -> bytes:
    """The changes as ``podman diff`` prints them, ``A /path``, one a line and sorted by path.

    Control characters and backslashes in names are written as in ``/proc/mounts``: ``\\012``.
    """
    return b"".join(b"%s %s\n" % (c.kind.value.encode(), _shown(c.path)) for c in found.changes)


def _shown(path: bytes) -> bytes:
    return _ODD.sub(lambda match: b"\\%03o" % match[0][0], path)
