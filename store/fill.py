"""Filling a container that has nothing in it yet: from an image, a layer, a container or a snapshot.

The container's empty layer is exchanged for a new one that is a copy of the source, and its record
names the image from then on. The copy takes constant time where the driver's copies do.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from drivers import errors as driver_errors
from drivers.base import Creation
from store import codec
from store.durable import remove_tree
from store.errors import BadValue, InUse, NoSuchSource, NotPristine
from store.ids import new_id
from store.objects import make_container
from store.records import Container, Layer
from store.saving import Saving
from store.snapshots import snapshot_key
from store.state import Intent, State, journal

if TYPE_CHECKING:
    from store.containers import ContainerView
    from store.core import Transaction
    from store.layers import LayerView
    from store.store import Store

__all__ = ["FILL", "Source", "create_from", "end_fill", "fill", "resolve_source"]

FILL = "fill"
"""The kind of intent :func:`fill` records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a container can be filled from.

    Attributes:
        label: what it is, for people.
        image: ID of the image the container belongs to from then on; may be empty.
        parent: ID of the new layer's parent; may be empty.
        template: ID of the layer to copy where that is not ``parent``.
        snapshot: the driver's key of the snapshot to copy.
        container: ID of the container it is, or is a snapshot of.
    """

    label: str
    image: str = ""
    parent: str = ""
    template: str = ""
    snapshot: str = ""
    container: str = ""


# -- what a text names -----------------------------------------------------------------------------


def resolve_source(store: Store, text: str) -> Source:
    """What ``text`` names.

    A bare ``X`` is looked for among the images, the containers, then the layers; ``X/snapshots/N``
    and ``X@N`` are snapshot N of container X. ``images/X``, ``containers/X`` and ``layers/X`` say which
    kind is meant, and so does a path in which these follow a mount point.

    Raises:
        NoSuchSource
    """
    wanted = text.strip().rstrip("/").removesuffix("/rootfs")
    if wanted:
        for find in (_image, _snapshot, _container, _layer):
            if (found := find(store, wanted)) is not None:
                return found
        if (found := _in_tree(store, wanted)) is not None:
            return found
    raise NoSuchSource(
        f"{text.strip()!r:.120} is no image, container, layer or snapshot (CONTAINER/snapshots/NAME) here"
    )


def _in_tree(store: Store, path: str) -> Source | None:
    """A path as a mounted tree shows it: ``…/images/web:1``, ``containers/web/snapshots/monday``."""
    parts = f"/{path}"
    kinds = {"/images/": (_image,), "/containers/": (_snapshot, _container), "/layers/": (_layer,)}
    places = sorted((parts.find(kind), kind) for kind in kinds if kind in parts)
    for place, kind in places:
        for find in kinds[kind]:
            if (found := find(store, parts[place + len(kind) :])) is not None:
                return found
    return None


def _image(store: Store, text: str) -> Source | None:
    image = store.catalog().find_image(text)
    if image is None:
        return None
    label = image.names[0] if image.names else image.id[:12]
    return Source(label=f"image {label}", image=image.id, parent=image.layer)


def _container(store: Store, text: str) -> Source | None:
    container = store.catalog().find_container(text)
    if container is None:
        return None
    return Source(
        label=f"container {container.names[0] if container.names else container.id[:12]}",
        image=container.image,
        parent=_parent(store, container),
        template=container.layer,
        container=container.id,
    )


def _layer(store: Store, text: str) -> Source | None:
    catalog = store.catalog()
    layer = catalog.find_layer(text)
    if layer is None:
        return None
    owners = catalog.containers_on(layer.id)
    if owners:
        return _container(store, owners[0].id)
    return Source(label=f"layer {layer.id[:12]}", parent=layer.id)


def _snapshot(store: Store, text: str) -> Source | None:
    """``X/snapshots/N`` or ``X@N``; X may be the full ID of a container that is gone."""
    if not store.driver.capabilities.snapshots:
        return None
    owner, _, name = text.rpartition("/snapshots/")
    if not owner:
        owner, _, name = text.partition("@")
    container = store.catalog().find_container(owner) if name else None
    container_id = container.id if container else owner
    key = snapshot_key(container_id, name)
    if not name or key.count("/") != 1 or not store.driver.snapshots().exists(key):
        return None
    return Source(
        label=f"snapshot {name} of container {container_id[:12]}",
        image=container.image if container else "",
        parent=_parent(store, container) if container else "",
        snapshot=key,
        container=container_id,
    )


def _parent(store: Store, container: Container) -> str:
    layer = store.catalog().layer(container.layer)
    return layer.parent if layer else ""


# -- filling ---------------------------------------------------------------------------------------


def fill(store: Store, container: str, source: str | Source, *, state: State | None = None) -> Container:
    """Give an empty container the content of ``source``, whole or not at all.

    Args:
        container: anything :meth:`Store.container` takes.
        source: what :func:`resolve_source` gave, or takes.
        state: the store's state, for its journal; opened for the call when not given.

    Returns:
        the container's new record.

    Raises:
        ContainerUnknown, NoSuchSource
        NotPristine: it has content, or was filled already.
        InUse: it is mounted.
        BadValue: it is the container itself, or cannot be copied under the container's ID mappings.
    """
    found = store.container(container)
    chosen = source if isinstance(source, Source) else resolve_source(store, source)
    if chosen.container == found.id:
        raise BadValue(f"a container cannot be filled from itself ({chosen.label})")
    details = {"container": found.id, "old": found.layer, "new": new_id()}
    with (
        journal(store.graphroot, state) as opened,
        opened.intent(FILL, details, settled=True),
        store.transaction(layers="w", images="r", containers="w") as tables,
    ):
        return _exchange(store, tables, found.id, chosen, details["new"])


def create_from(store: Store, name: str, source: str = "", *, state: State | None = None) -> Container:
    """A new container of that name, filled from ``source`` if one is given; it exists filled or not at all.

    Raises:
        BadName, DuplicateName, and what :func:`fill` raises
    """
    chosen = resolve_source(store, source) if source else None
    container = make_container(store, name)
    if chosen is None:
        return container
    try:
        return fill(store, container.id, chosen, state=state)
    except BaseException:
        store.delete_container(container.id)
        raise


def check_pristine(store: Store, container: str) -> None:
    """Raise what :func:`fill` would raise for the container itself: a check before the work.

    Raises:
        ContainerUnknown, NotPristine, InUse
    """
    found = store.container(container)
    layers, containers = store.tables.layers.peek(), store.tables.containers.peek()
    _check_pristine(store, found, store.layer(found.layer), layers, containers)


def _exchange(store: Store, tables: Transaction, container_id: str, source: Source, new: str) -> Container:
    """Copy, then the new layer's record, then the container's, and the old layer last.

    Whenever a crash comes, the container names a layer that is there, and at most one layer that no
    container names is left for :func:`end_fill`.
    """
    container = tables.containers.existing(container_id)
    old = tables.layers.existing(container.layer)
    _check_pristine(store, container, old, tables.layers.view, tables.containers.view)
    _check_source(store, tables, source)
    filled = replace(container, image=source.image, layer=new)
    with ExitStack() as undo:
        saving = Saving(undo)
        tables.layers.put(replace(old, names=()))
        tables.layers.add(_record(old, container, source, new))
        saving.add(tables.layers)
        tables.containers.put(filled)
        saving.add(tables.containers)
        tables.layers.remove(old.id)
        saving.add(tables.layers, named=False)  # should it come back, the intent tells of it
        saving.settle()
        undo.callback(_undo, store, tables, new, old, container, saving)
        _copy(store, tables, source, new, old, container)
        saving.publish(store.driver, new)
        undo.pop_all()
    _remove(store, old.id)
    return filled


def _record(old: Layer, container: Container, source: Source, new: str) -> Layer:
    return Layer(
        id=new,
        names=old.names,
        parent=source.parent,
        mount_label=old.mount_label,
        created=codec.now(),
        uidmap=container.uidmap,
        gidmap=container.gidmap,
        volatile=old.volatile,
    )


def _check_pristine(
    store: Store, container: Container, old: Layer, layers: LayerView, containers: ContainerView
) -> None:
    label = f"container {container.names[0] if container.names else container.id[:12]}"
    if container.image or old.parent:
        raise NotPristine(f"{label} was filled already; make a new one for other content")
    mounts = store.mounts_now().count(old.id)  # under the layers' lock nobody mounts
    if mounts:
        raise InUse(f"{label} is mounted (count {mounts}); unmount it before filling it")
    if layers.children(old.id) or len(containers.on_layer(old.id)) != 1:
        raise NotPristine(f"the layer of {label} is used by others")
    with store.driver.mounted(old.id) as root:
        if os.listdir(root):
            raise NotPristine(f"{label} already has files; only an empty one can be filled")


def _check_source(store: Store, tables: Transaction, source: Source) -> None:
    """The source may have gone between its look-up and the locks."""
    layers = [layer for layer in (source.parent, source.template) if layer]
    gone = [layer for layer in layers if store.layer_in(tables, layer) is None]
    if source.image and not source.container:
        views = [other.images.peek() for other in store.additional]
        held = tables.images.get(source.image) or any(view.get(source.image) for view in views)
        gone += [] if held else [source.image]
    if gone:
        raise NoSuchSource(f"{source.label} has just been removed")


def _copy(
    store: Store, tables: Transaction, source: Source, new: str, old: Layer, container: Container
) -> None:
    creation = Creation(mount_label=old.mount_label, mappings=container.mappings)
    original = store.layer_in(tables, source.template or source.parent)
    have = original.mappings if original else container.mappings
    if source.snapshot:
        if have != container.mappings:
            raise BadValue(f"{source.label} has other ID mappings than the container it should fill")
        store.driver.snapshots().create_layer(source.snapshot, new, creation)
    elif source.template or have != container.mappings:
        store.driver.create_from_template(
            new, source.template or source.parent, source.parent or None, creation, have
        )
    else:
        store.driver.create_read_write(new, source.parent or None, creation)


def _undo(
    store: Store, tables: Transaction, new: str, old: Layer, container: Container, saving: Saving
) -> None:
    """Back to what was; records that nobody could see yet are just forgotten."""
    saving.discard()
    if saving.begun:
        if tables.layers.get(old.id) is None:
            tables.layers.add(old)
        tables.layers.put(old)
        tables.layers.flush()
        tables.containers.put(container)
        tables.containers.flush()
        tables.layers.remove(new)
        tables.layers.flush()
    with suppress(driver_errors.LayerUnknown):
        store.driver.remove(new)


def _drop(store: Store, tables: Transaction, layer: Layer) -> None:
    """Remove a layer nothing names, record first: a tree without a record harms nobody (FORMAT 7)."""
    tables.layers.remove(layer.id)
    tables.layers.flush()
    _remove(store, layer.id)


def _remove(store: Store, layer_id: str) -> None:
    """Remove what belonged to the record of a layer."""
    store.driver.remove(layer_id)
    store.tar_split_path(layer_id).unlink(missing_ok=True)
    remove_tree(store.layer_directory(layer_id))


def end_fill(store: Store, intent: Intent) -> None:
    """After a crash: remove the one of the two layers that the container does not name."""
    with store.transaction(layers="w", images="r", containers="r") as tables:
        for layer_id in (str(intent.details["new"]), str(intent.details["old"])):
            used = tables.containers.view.on_layer(layer_id) or tables.images.view.on_layer(layer_id)
            if used or tables.layers.view.children(layer_id):
                continue
            layer = tables.layers.get(layer_id)
            if layer is not None:
                _drop(store, tables, layer)
            else:
                with suppress(driver_errors.LayerUnknown):
                    store.driver.remove(layer_id)
