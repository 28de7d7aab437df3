"""Looking things up: by ID, name, unique ID prefix or digest, in all stores. No locks are taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from store.core import StoreCore
from store.errors import ContainerUnknown, ImageUnknown, LayerUnknown, NotAnID
from store.records import Container, Image, Layer

if TYPE_CHECKING:
    from store.view import View


class Queries(StoreCore):
    """Lookups of :class:`store.store.Store`.

    A *key* is a full ID, a name, or the beginning of exactly one ID, looked up in this order; a
    container is also found by the ID of its layer (FORMAT 2.5). The primary store is asked first,
    then the additional ones.
    """

    def layers(self) -> list[Layer]:
        """All layers, in creation order; containers/storage's ``Layers``."""
        if self.additional:
            return list(self.catalog().layers)
        return [layer for layer in self.tables.layers.peek() if not layer.incomplete]

    def images(self) -> list[Image]:
        """All images, in creation order; ``Images``."""
        return list(self.catalog().images if self.additional else self.tables.images.peek())

    def containers(self) -> list[Container]:
        """All containers, in creation order; ``Containers``."""
        return list(self.tables.containers.peek())

    def multi_list(self) -> tuple[list[Layer], list[Image], list[Container]]:
        """All three lists, as of one moment; ``MultiList``."""
        catalog = self.catalog()
        return list(catalog.layers), list(catalog.images), list(catalog.containers)

    def layer(self, key: str) -> Layer:
        """The layer of that key; ``Layer``.

        Raises:
            LayerUnknown
        """
        for tables in (self.tables, *self.additional):
            layer = tables.layers.peek().resolve(key)
            if layer is not None and not layer.incomplete:
                return layer
        raise LayerUnknown(f"no layer is called {key!r}, and no ID of one layer begins so")

    def image(self, key: str) -> Image:
        """The image of that key; ``Image``.

        Raises:
            ImageUnknown
        """
        for tables in (self.tables, *self.additional):
            image = tables.images.peek().resolve(key)
            if image is not None:
                return image
        raise ImageUnknown(f"no image is called {key!r}, and no ID of one image begins so")

    def unmapped_copy(self, image: Image) -> str:
        """ID of the copy of the image's top layer whose owners are the host's; empty if there is none."""
        layers = (self.tables.layers.peek().get(i) for i in image.mapped_layers)
        return next((layer.id for layer in layers if layer is not None and not layer.mappings), "")

    def container(self, key: str) -> Container:
        """The container of that key, or of that layer; ``Container``.

        Raises:
            ContainerUnknown
        """
        container = self.tables.containers.peek().resolve(key)
        if container is None:
            raise ContainerUnknown(f"no container is called {key!r}, and no ID of one container begins so")
        return container

    def container_by_layer(self, layer_id: str) -> Container:
        """The container whose content is in the layer of that full ID; ``ContainerByLayer``.

        Raises:
            ContainerUnknown
        """
        for container in self.catalog().containers_on(self._layer_id(layer_id)):
            return container
        raise ContainerUnknown(f"no container has its content in layer {layer_id!r}")

    def _layer_id(self, key: str) -> str:
        try:
            return self.layer(key).id
        except LayerUnknown:
            return key

    def images_by_top_layer(self, key: str) -> list[Image]:
        """Images whose top layer, or a mapped copy of it, this is; ``ImagesByTopLayer``.

        Raises:
            LayerUnknown
        """
        return self.catalog().images_on(self.layer(key).id)

    def images_by_digest(self, digest: str) -> list[Image]:
        """Images known by the digest, or with a manifest of it, in all stores; ``ImagesByDigest``."""
        found = (
            image for t in (self.tables, *self.additional) for image in t.images.peek().by_digest(digest)
        )
        return list({image.id: image for image in found}.values())

    def layers_by_compressed_digest(self, digest: str) -> list[Layer]:
        """Layers whose archive had this digest as it came; ``LayersByCompressedDigest``.

        Raises:
            LayerUnknown: there is none.
        """
        return self._some([view.by_compressed_digest(digest) for view in self.layer_views()], digest)

    def layers_by_uncompressed_digest(self, digest: str) -> list[Layer]:
        """Layers whose uncompressed archive had this digest; ``LayersByUncompressedDigest``.

        Raises:
            LayerUnknown: there is none.
        """
        return self._some([view.by_diff_digest(digest) for view in self.layer_views()], digest)

    def layers_by_toc_digest(self, digest: str) -> list[Layer]:
        """Layers whose archive had a table of contents of this digest; ``LayersByTOCDigest``.

        Raises:
            LayerUnknown: there is none.
        """
        return self._some([view.by_toc_digest(digest) for view in self.layer_views()], digest)

    def _some(self, found: list[list[Layer]], digest: str) -> list[Layer]:
        layers = [layer for part in found for layer in part if not layer.incomplete]
        if not layers:
            raise LayerUnknown(f"no layer has the digest {digest}")
        return layers

    def lookup(self, key: str) -> str:
        """The full ID of the layer, image or container of that key, in this order; ``Lookup``.

        Raises:
            LayerUnknown: as in containers/storage, whatever kind was meant.
        """
        found = self._anything(key)
        if found is None:
            raise LayerUnknown(f"nothing in the store is called {key!r}")
        return found.id

    def exists(self, key: str) -> bool:
        """Whether a layer, image or container of that key exists; ``Exists``."""
        return self._anything(key) is not None

    def _anything(self, key: str) -> Layer | Image | Container | None:
        """The layer, else the image, else the container of that key; no ID prefix beats a full ID or name.

        (containers/storage tries prefixes of layer IDs before names of images, so that a container called
        ``b`` is hidden by any layer whose ID begins so.)
        """
        stores = (self.tables, *self.additional)
        views: list[View[Layer] | View[Image] | View[Container]]
        views = [t.layers.peek() for t in stores]
        views += [t.images.peek() for t in stores]
        views.append(self.tables.containers.peek())
        exact = (view.get(key) or view.by_name(key) for view in views)
        for found in (*exact, *(view.resolve(key) for view in views)):
            if found is not None and not (isinstance(found, Layer) and found.incomplete):
                return found
        return None

    def object_of(self, key: str) -> Layer | Image | Container:
        """The layer, else the image, else the container of that key.

        Raises:
            NotAnID
        """
        found = self._anything(key)
        if found is None:
            raise NotAnID(f"nothing in the store is called {key!r}")
        return found

    def metadata(self, key: str) -> str:
        """The caller's text of a layer, image or container; ``Metadata``.

        Raises:
            NotAnID
        """
        return self.object_of(key).metadata

    def names(self, key: str) -> list[str]:
        """Names of a layer, image or container; ``Names``.

        Raises:
            NotAnID
        """
        return list(self.object_of(key).names)

    def status(self) -> list[tuple[str, str]]:
        """The graph driver's label and value pairs; ``Status``."""
        return self.driver.status()

    def version(self) -> list[tuple[str, str]]:
        """Version of the store: nothing to tell, as in containers/storage; ``Version``."""
        return []

    def layer_path(self, key: str) -> Path:
        """Where a layer's tree is, without counting as a mount.

        Only drivers that need no mounting keep it reachable; others may give an empty directory.

        Raises:
            LayerUnknown, drivers.errors.LayerUnknown
        """
        layer = self.layer(key)
        with self.driver.mounted(layer.id) as path:
            return path
