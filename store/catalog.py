"""The whole store at one moment, without locks.

Table files are replaced atomically, so each one read is consistent in itself. Making a
:class:`Catalog` when nothing changed costs a stat per file; its indexes are built when first used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from store import names
from store.images import ImageView
from store.layers import LayerView, MountView

if TYPE_CHECKING:
    from store.containers import ContainerView
    from store.records import Container, Image, Layer
    from store.segment import Broken
    from store.view import View

R = TypeVar("R")

_MIN_PREFIX = 3
"""Fewest hex digits that are looked up as an ID prefix."""


def _is_prefix(text: str) -> bool:
    return len(text) >= _MIN_PREFIX and all(c in "0123456789abcdef" for c in text)


class Catalog:
    """Layers, images and containers in creation order; layers that are incomplete are left out.

    Args:
        layers, images, containers: the primary store first, then additional read-only stores.
        mounts: the mount counts.
    """

    def __init__(
        self,
        layers: tuple[LayerView, ...],
        images: tuple[ImageView, ...],
        containers: ContainerView,
        mounts: MountView,
    ) -> None:
        self._layer_views = layers
        self._image_views = images
        self._containers = containers
        self._mounts = mounts
        serials = [view.serial for view in layers] + [view.serial for view in images]
        self.stamp: object = (*serials, containers.serial, mounts.serial)
        """Two catalogs of one store with equal stamps show the same."""

    # -- everything ------------------------------------------------------------------------------

    @cached_property
    def _layers(self) -> LayerView:
        if len(self._layer_views) == 1 and not self._layer_views[0].incomplete:
            return self._layer_views[0]
        merged = _merge({i.id: i for i in view if not i.incomplete} for view in self._layer_views)
        return LayerView(merged)

    @cached_property
    def _images(self) -> ImageView:
        if len(self._image_views) == 1:
            return self._image_views[0]
        return ImageView(_merge(view.by_id for view in self._image_views))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers."""
        return self._layers.records

    @property
    def images(self) -> tuple[Image, ...]:
        """All images."""
        return self._images.records

    @property
    def containers(self) -> tuple[Container, ...]:
        """All containers."""
        return self._containers.records

    def by_id(self, table: str) -> Mapping[str, Layer | Image | Container]:
        """Records of ``layers``, ``images`` or ``containers``; the same object while none changed."""
        return self._view(table).by_id

    def changed_since(self, before: Catalog, table: str) -> set[str] | None:
        """IDs of all records of a table that differ from those of an earlier reading, and perhaps more.

        ``None`` where only a comparison of all of them can tell: another process saved the table.
        """
        return self._view(table).changed_since(before._view(table))

    def _view(self, table: str) -> View[Any]:
        if table == "layers":
            return self._layers
        return self._images if table == "images" else self._containers

    @property
    def broken(self) -> tuple[Broken, ...]:
        """Records and files that could not be used."""
        views: tuple[View[Layer] | View[Image] | View[Container], ...]
        views = (*self._layer_views, *self._image_views, self._containers)
        return tuple(broken for view in views for broken in view.broken)

    def changed_ns(self, table: str) -> int:
        """When ``layers``, ``images``, ``containers`` or ``mountpoints`` last changed, in epoch ns."""
        if table == "layers":
            return max(view.changed_ns for view in self._layer_views)
        if table == "images":
            return max(view.changed_ns for view in self._image_views)
        if table == "containers":
            return self._containers.changed_ns
        if table == "mountpoints":
            return self._mounts.changed_ns
        raise KeyError(table)

    # -- exact IDs -------------------------------------------------------------------------------

    def layer(self, layer_id: str) -> Layer | None:
        """The layer of exactly this ID."""
        return self._layers.get(layer_id)

    def image(self, image_id: str) -> Image | None:
        """The image of exactly this ID."""
        return self._images.get(image_id)

    def container(self, container_id: str) -> Container | None:
        """The container of exactly this ID."""
        return self._containers.get(container_id)

    # -- whatever people type --------------------------------------------------------------------

    def find_layer(self, text: str) -> Layer | None:
        """Look up by ID, name, unique ID prefix, or ``sha256:`` diff or archive digest."""
        found = self._layers.get(text) or self._layers.by_name(text)
        if found is None and _is_prefix(text):
            found = self._layers.by_prefix(text)
        if found is None and ":" in text:
            same = self._layers.by_diff_digest(text) or self._layers.by_compressed_digest(text)
            found = same[0] if same else None
        return found

    def find_image(self, text: str) -> Image | None:
        """Look up by ID, name, unique ID prefix, digest, or short name as podman does."""
        found = self._images.get(text) or self._images.by_name(text)
        if found is None and _is_prefix(text):
            found = self._images.by_prefix(text)
        if found is None and text.startswith("sha256:"):
            found = self._images.get(text[7:]) or next(iter(self._images.by_digest(text)), None)
        return found or self._find_short(text)

    def _find_short(self, text: str) -> Image | None:
        for name in names.candidates(text):
            if (found := self._images.by_name(name)) is not None:
                return found
        repository, at, digest = text.rpartition("@")
        if at:
            return next((i for i in self._images.by_digest(digest) if _in_repository(i, repository)), None)
        matching = (i for name, i in self._images.names.items() if names.matches_short(name, text))
        return next(matching, None) if names.candidates(text) else None

    def find_container(self, text: str) -> Container | None:
        """Look up by ID, name, layer ID or unique ID prefix."""
        found = self._containers.get(text) or self._containers.by_name(text)
        if found is None:
            found = next(iter(self._containers.on_layer(text)), None)
        if found is None and _is_prefix(text):
            found = self._containers.by_prefix(text)
        return found

    # -- relations -------------------------------------------------------------------------------

    def children(self, layer_id: str) -> list[Layer]:
        """Layers whose parent this is."""
        return self._layers.children(layer_id)

    def chain(self, layer_id: str) -> list[Layer]:
        """The layer and its ancestors, base first."""
        return self._layers.chain(layer_id)

    def images_on(self, layer_id: str) -> list[Image]:
        """Images that have this layer as their top, or as a mapped copy of it."""
        return self._images.on_layer(layer_id)

    def containers_of(self, image_id: str) -> list[Container]:
        """Containers made from this image."""
        return self._containers.of_image(image_id)

    def containers_on(self, layer_id: str) -> list[Container]:
        """Containers whose content is in this layer."""
        return self._containers.on_layer(layer_id)

    def mount_count(self, layer_id: str) -> int:
        """How often the layer is mounted, by any tool."""
        return self._mounts.count(layer_id)

    def mount_paths(self) -> dict[str, str]:
        """Where the mounted layers are mounted, by layer ID."""
        return {mount.id: mount.path for mount in self._mounts if mount.count > 0}


def _merge(parts: Iterable[Mapping[str, R]]) -> dict[str, R]:
    """One mapping of all; where an ID occurs twice the earlier store's object counts."""
    merged: dict[str, R] = {}
    for part in parts:
        for key, record in part.items():
            merged.setdefault(key, record)
    return merged


def _in_repository(image: Image, repository: str) -> bool:
    wanted = names.candidates(repository)
    for name in image.names:
        stem = name.rpartition("@")[0] or name
        if any(stem.rpartition(":")[0] == w.rpartition(":")[0] for w in wanted):
            return True
        if names.matches_short(f"{stem.rpartition(':')[0]}:latest", repository):
            return True
    return False
