"""The image table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import ImageUnknown
from store.records import Image
from store.table import NamedDraft, Table
from store.view import View, grouped, regrouped

if TYPE_CHECKING:
    from store.segment import Broken


class ImageView(View[Image]):
    """The images at one moment."""

    __slots__ = ("_by_digest", "_by_layer")

    def __init__(self, by_id: dict[str, Image], broken: tuple[Broken, ...] = (), changed_ns: int = 0) -> None:
        super().__init__(by_id, broken, changed_ns)
        self._by_digest: dict[str, list[Image]] | None = None
        self._by_layer: dict[str, list[Image]] | None = None

    def inherit(self, base: View[Image], changed: Mapping[str, Image | None]) -> None:
        """Take over indexes of ``base`` that the ``changed`` records leave valid or cheap to correct."""
        super().inherit(base, changed)
        if isinstance(base, ImageView):
            self._by_layer = regrouped(base._by_layer, changed, self.by_id, _layers_of)

    def by_digest(self, digest: str) -> list[Image]:
        """Images with this digest, or with a manifest of this digest."""
        if self._by_digest is None:
            self._by_digest = grouped(self.records, lambda image: image.digests)
        return list(self._by_digest.get(digest, ()))

    def on_layer(self, layer_id: str) -> list[Image]:
        """Images that have this layer as their top or as a mapped copy of it."""
        if self._by_layer is None:
            self._by_layer = grouped(self.records, _layers_of)
        return list(self._by_layer.get(layer_id, ())) if layer_id else []


def _layers_of(image: Image) -> dict[str, None]:
    return dict.fromkeys((image.layer, *image.mapped_layers))


class ImageDraft(NamedDraft[Image]):
    """The images under their lock."""

    kind, unknown = "image", ImageUnknown

    @property
    def view(self) -> ImageView:
        """The present state."""
        view: ImageView = super().view
        return view


class ImageTable(Table[Image, ImageView, ImageDraft]):
    """``images.json`` in ``<graphroot>/<driver>-images``, and in the split image store.

    Args:
        image_directory: ``<image store>/<driver>-images``, whose lock is taken first.
    """

    def __init__(
        self, directory: Path, *, read_only: bool = False, image_directory: Path | None = None
    ) -> None:
        super().__init__(
            directory,
            "images",
            Image,
            ImageView,
            ImageDraft,
            read_only=read_only,
            image_directory=image_directory,
            lock_directories=(*filter(None, [image_directory]), directory),
        )

    def is_shadow(self, record: Image, first: Image) -> bool:
        """Whether a tool that only reads one of the two stores copied the image to the other to rename it."""
        return record.in_image_store != first.in_image_store
