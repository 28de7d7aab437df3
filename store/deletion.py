"""Removal of layers, images and containers, and the rules that forbid it (FORMAT 7).

A layer's record is flagged incomplete and saved before its content goes, so that whoever opens the
store after a crash finishes the removal. The record of an image or container goes before its layers:
what a crash leaves is an unused layer, never a name without content.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from drivers.errors import BadLayerID, LayerMounted
from drivers.errors import LayerUnknown as DriverLayerUnknown
from store.core import StoreCore, Transaction
from store.durable import remove_tree
from store.errors import (
    ImageUsedByContainer,
    LayerHasChildren,
    LayerUnknown,
    LayerUsedByContainer,
    LayerUsedByImage,
    NotAContainer,
    NotALayer,
    NotAnImage,
)

if TYPE_CHECKING:
    from store.records import Container, Image, Layer


class Deletions(StoreCore):
    """Removal methods of :class:`store.store.Store`.

    All may raise :class:`drivers.errors.LayerMounted` when somebody else mounted something at a layer; it
    and its container stay as they were.

    ``guard`` is asked about every object before anything goes, and raises to keep it (``store/pins.py``).
    """

    guard: Callable[[Container | Image | Layer], None] | None = None

    def delete(self, key: str) -> None:
        """Remove a container, image or layer without asking whether anything needs it; ``Delete``.

        A container's layer goes with it; an image's layers stay.

        Raises:
            LayerUnknown: nothing has that key.
        """
        with self._all() as tx:
            if (container := tx.containers.view.resolve(key)) is not None:
                self.ask_guard(container)
                self._drop_container(tx, container)
            elif (image := tx.images.view.resolve(key)) is not None:
                self.ask_guard(image)
                self._drop_image_record(tx, image)
            elif (layer := tx.layers.view.resolve(key)) is not None:
                self.ask_guard(layer)
                self._drop_layer(tx, layer)
            else:
                raise LayerUnknown(f"nothing in the store is called {key!r}")

    def delete_layer(self, key: str) -> None:
        """Remove a layer nothing needs; ``DeleteLayer``.

        The rules hold however the layer is named; containers/storage skips them for names.

        Raises:
            NotALayer, LayerHasChildren, LayerUsedByImage, LayerUsedByContainer
        """
        with self._all() as tx:
            layer = tx.layers.view.resolve(key)
            if layer is None:
                raise NotALayer(f"no layer is called {key!r}")
            self.check_layer_unused(tx, layer)
            for image in tx.images.view.on_layer(layer.id):
                kept = tuple(mapped for mapped in image.mapped_layers if mapped != layer.id)
                tx.images.put(replace(image, mapped_layers=kept))
            tx.images.flush()
            self._drop_layer(tx, layer)

    def ask_guard(self, *doomed: Container | Image | Layer) -> None:
        """Raise what the guard raises about one of ``doomed``; nothing without a guard."""
        if self.guard is None:
            return
        for record in doomed:
            self.guard(record)

    def check_layer_unused(self, tx: Transaction, layer: Layer) -> None:
        """Raise unless the layer may be removed.

        Raises:
            LayerHasChildren, LayerUsedByImage, LayerUsedByContainer, and what the guard raises
        """
        self.ask_guard(layer)
        for child in tx.layers.view.children(layer.id):
            raise LayerHasChildren(
                f"layer {layer.id} is the parent of layer {child.id}; remove that first", holder=child.id
            )
        for image in tx.images.view.on_layer(layer.id):
            if image.layer == layer.id:
                called = image.names[0] if image.names else image.id
                raise LayerUsedByImage(
                    f"layer {layer.id} is used by image {called}; remove the image", holder=image.id
                )
        for container in tx.containers.view.on_layer(layer.id):
            called = container.names[0] if container.names else container.id
            raise LayerUsedByContainer(
                f"layer {layer.id} is used by container {called}; remove the container instead",
                holder=container.id,
            )

    def delete_image(self, key: str, commit: bool = True) -> list[str]:
        """Remove an image and the layers only it needs; ``DeleteImage``.

        Args:
            commit: false only tells what would go.

        Returns:
            IDs of the layers removed, in the order of removal.

        Raises:
            NotAnImage, ImageUsedByContainer
        """
        with self._all() as tx:
            image = tx.images.view.resolve(key)
            if image is None:
                raise NotAnImage(f"no image is called {key!r}")
            doomed = self.check_image_unused(tx, image)
            if commit:
                self._drop_image_record(tx, image)
                for layer_id in doomed:
                    if (layer := tx.layers.get(layer_id)) is not None:
                        self._drop_layer(tx, layer)
        return doomed

    def check_image_unused(self, tx: Transaction, image: Image) -> list[str]:
        """Raise unless the image may be removed; IDs of the layers that would go, in that order.

        Raises:
            ImageUsedByContainer, and what the guard raises about the image or one of the layers
        """
        for container in tx.containers.view.of_image(image.id):
            image_name, called = (r.names[0] if r.names else r.id for r in (image, container))
            raise ImageUsedByContainer(
                f"image {image_name} is used by container {called}; remove that first", holder=container.id
            )
        doomed = self._layers_only_in(tx, image)
        self.ask_guard(image, *(layer for i in doomed if (layer := tx.layers.get(i)) is not None))
        return doomed

    def _layers_only_in(self, tx: Transaction, image: Image) -> list[str]:
        """Mapped copies first, then the top layer and its ancestors up to the first still needed."""
        needed = {
            i for other in tx.images if other.id != image.id for i in (other.layer, *other.mapped_layers)
        }
        needed |= {container.layer for container in tx.containers}
        doomed: list[str] = []
        for mapped in image.mapped_layers:
            if mapped not in needed and not tx.layers.view.children(mapped):
                doomed.append(mapped)
        layer_id = image.layer
        while layer_id and layer_id not in needed and layer_id not in doomed:
            children = {child.id for child in tx.layers.view.children(layer_id)}
            if children - set(doomed):
                break
            doomed.append(layer_id)
            layer = tx.layers.get(layer_id)
            layer_id = layer.parent if layer is not None else ""
        return doomed

    def delete_container(self, key: str) -> None:
        """Remove a container, its layer, big data and private directories; ``DeleteContainer``.

        Raises:
            NotAContainer
        """
        with self.transaction(layers="w", containers="w") as tx:
            container = tx.containers.view.resolve(key)
            if container is None:
                raise NotAContainer(f"no container is called {key!r}")
            self.ask_guard(container)
            self._drop_container(tx, container)

    def wipe(self) -> None:
        """Remove all containers, images and layers, newest first; ``Wipe``."""
        with self._all() as tx:
            self.ask_guard(*tx.containers.view, *tx.images.view, *tx.layers.view)
            for container in reversed(tx.containers.view.records):
                self._drop_container(tx, container)
            for image in reversed(tx.images.view.records):
                self._drop_image_record(tx, image)
            for layer in reversed(tx.layers.view.records):
                self._drop_layer(tx, layer)

    # -- the steps -------------------------------------------------------------------------------

    def _all(self) -> AbstractContextManager[Transaction]:
        return self.transaction(layers="w", images="w", containers="w")

    def _drop_container(self, tx: Transaction, container: Container) -> None:
        tx.containers.remove(container.id)
        tx.containers.flush()
        layer = tx.layers.get(container.layer)
        if layer is not None and not tx.layers.view.children(layer.id):
            try:
                self._drop_layer(tx, layer)
            except LayerMounted:
                tx.containers.add(container)
                tx.containers.flush()
                raise
        remove_tree(self.data_directory(container))
        remove_tree(self.run_directory("containers") / container.id)

    def _drop_image_record(self, tx: Transaction, image: Image) -> None:
        tx.images.remove(image.id)
        tx.images.flush()
        for home in self.table_directories("images"):
            remove_tree(home / image.id)
        remove_tree(self.run_directory("images") / image.id)

    def _drop_layer(self, tx: Transaction, layer: Layer) -> None:
        mount = tx.layers.mounts.get(layer.id)
        for _ in range(mount.count if mount is not None else 0):
            with suppress(DriverLayerUnknown, BadLayerID):
                self.driver.put(layer.id)
        tx.layers.mounts.set(layer.id, "", 0)
        try:
            self.discard_layer(tx.layers, tx.layers.flag_incomplete(layer))
        except LayerMounted:  # nothing was removed, and nothing may be when the mount is gone
            tx.layers.put(layer)
            tx.layers.flush()
            raise
