"""Filling a layer that was just made from an archive, whole or not at all.

``ApplyDiff`` of containers/storage leaves half an archive in the layer when it fails. Here the archive is
unpacked into a staged layer outside the locks first, and its tree then takes the place of the empty one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

from drivers.base import Creation
from drivers.errors import LayerUnknown as DriverLayerUnknown
from drivers.errors import MalformedArchive
from store.blobs import NO_END
from store.errors import InUse, NotPristine
from store.options import LayerOptions

if TYPE_CHECKING:
    from store.core import Transaction
    from store.records import Layer
    from store.store import Store


def check_refillable(store: Store, layer: str, digest: str = "") -> None:
    """Raise what :func:`refill_layer` would raise about the layer itself: a check before the work."""
    with store.transaction(layers="r", images="r", containers="r") as tx:
        _check(store, tx, tx.layers.existing(layer), digest)


def refill_layer(store: Store, layer: str, archive: BinaryIO, *, digest: str = "") -> Layer:
    """Give a layer the content of an archive on top of its parent's.

    Args:
        archive: a tar, plain or compressed, read to its end. One without the zero blocks that end a tar
            is refused: a cut between two entries shows nowhere else.
        digest: of the uncompressed archive that this call may replace, because the caller put it there.

    Returns:
        the layer's new record.

    Raises:
        LayerUnknown
        NotPristine: it has content of its own, or something uses it.
        InUse: it is mounted.
        MalformedArchive, HostileArchive, OSError: the layer is as it was.
    """
    found = store.layer(layer)
    check_refillable(store, found.id, digest)
    options = LayerOptions(
        uidmap=found.uidmap,
        gidmap=found.gidmap,
        host_uidmap=not found.uidmap,
        host_gidmap=not found.gidmap,
    )
    staged = store.prepare_staged_layer(
        archive, parent=found.parent or None, mount_label=found.mount_label, options=options
    )
    with staged, store.transaction(layers="w", images="r", containers="r") as tx:
        if not staged.ended:
            raise MalformedArchive(NO_END)
        current = tx.layers.existing(found.id)
        _check(store, tx, current, digest)
        return _exchange(store, tx, current, staged.layer)


def _check(store: Store, tx: Transaction, layer: Layer, digest: str) -> None:
    label = f"layer {layer.names[0] if layer.names else layer.id[:12]}"
    mounts = tx.layers.mounts.view.count(layer.id)
    if mounts:
        raise InUse(f"{label} is mounted (count {mounts}); unmount it before filling it")
    if tx.layers.view.children(layer.id):
        raise NotPristine(f"{label} is the parent of others, so its content cannot change")
    if tx.images.view.on_layer(layer.id) or tx.containers.view.on_layer(layer.id):
        raise NotPristine(f"{label} is used by an image or a container, so its content cannot change")
    if digest and layer.diff_digest == digest:
        return
    if layer.diff_digest or layer.big_data_names or _has_content(store, layer):
        raise NotPristine(f"{label} has content already; make a new layer for this archive")


def _has_content(store: Store, layer: Layer) -> bool:
    if layer.parent:
        return not store.driver.is_untouched(layer.id, layer.parent) and bool(
            store.driver.changes(layer.id, layer.parent)
        )
    with store.driver.mounted(layer.id) as root:
        return bool(os.listdir(root))


def _exchange(store: Store, tx: Transaction, layer: Layer, staged: Layer) -> Layer:
    """Remove the empty tree and copy the staged one to its place.

    A crash in between leaves the record flagged incomplete, and whoever opens the store next removes it.
    """
    filled = replace(
        staged,
        id=layer.id,
        names=layer.names,
        metadata=layer.metadata,
        flags=layer.flags,
        created=layer.created,
        volatile=layer.volatile,
        in_image_store=layer.in_image_store,
        extra=layer.extra,
    )
    creation = Creation(
        mount_label=layer.mount_label, mappings=layer.mappings, in_image_store=layer.in_image_store
    )
    parent = layer.parent or None
    tx.layers.flag_incomplete(layer)
    try:
        store.driver.remove(layer.id)
        store.driver.create_from_template(layer.id, staged.id, parent, creation, layer.mappings)
        store.driver.settle(layer.id)
        os.rename(store.tar_split_path(staged.id), store.tar_split_path(layer.id))
        tx.layers.put(filled)
        tx.layers.flush()
    except BaseException:
        with suppress(DriverLayerUnknown):
            store.driver.remove(layer.id)
        store.driver.create(layer.id, parent, creation)
        tx.layers.put(layer)
        tx.layers.flush()
        raise
    return filled
