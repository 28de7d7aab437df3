"""The container table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import ContainerUnknown
from store.records import Container
from store.table import NamedDraft, Table
from store.view import View, grouped, regrouped

if TYPE_CHECKING:
    from store.segment import Broken


class ContainerView(View[Container]):
    """The containers at one moment."""

    __slots__ = ("_by_image", "_by_layer")

    def __init__(
        self, by_id: dict[str, Container], broken: tuple[Broken, ...] = (), changed_ns: int = 0
    ) -> None:
        super().__init__(by_id, broken, changed_ns)
        self._by_layer: dict[str, list[Container]] | None = None
        self._by_image: dict[str, list[Container]] | None = None

    def inherit(self, base: View[Container], changed: Mapping[str, Container | None]) -> None:
        """Take over indexes of ``base`` that the ``changed`` records leave valid or cheap to correct."""
        super().inherit(base, changed)
        if isinstance(base, ContainerView):
            self._by_layer = regrouped(base._by_layer, changed, self.by_id, _layer_of)
            self._by_image = regrouped(base._by_image, changed, self.by_id, _image_of)

    def on_layer(self, layer_id: str) -> list[Container]:
        """Containers whose content is in this layer; there should be one at most."""
        if self._by_layer is None:
            self._by_layer = grouped(self.records, _layer_of)
        return list(self._by_layer.get(layer_id, ())) if layer_id else []

    def of_image(self, image_id: str) -> list[Container]:
        """Containers made from this image."""
        if self._by_image is None:
            self._by_image = grouped(self.records, _image_of)
        return list(self._by_image.get(image_id, ())) if image_id else []

    def resolve(self, text: str) -> Container | None:
        """Look up by ID, name, layer ID, then unique ID prefix (FORMAT 2.5)."""
        found = self.get(text) or self.by_name(text)
        if found is None:
            found = next(iter(self.on_layer(text)), None) or self.by_prefix(text)
        return found


def _layer_of(container: Container) -> tuple[str]:
    return (container.layer,)


def _image_of(container: Container) -> tuple[str]:
    return (container.image,)


class ContainerDraft(NamedDraft[Container]):
    """The containers under their lock."""

    kind, unknown = "container", ContainerUnknown

    @property
    def view(self) -> ContainerView:
        """The present state."""
        view: ContainerView = super().view
        return view


class ContainerTable(Table[Container, ContainerView, ContainerDraft]):
    """``containers.json`` and ``volatile-containers.json`` in ``<graphroot>/<driver>-containers``.

    Args:
        transient: where lock and volatile file of a transient store are (FORMAT 2.6).
    """

    def __init__(self, directory: Path, *, read_only: bool = False, transient: Path | None = None) -> None:
        super().__init__(
            directory,
            "containers",
            Container,
            ContainerView,
            ContainerDraft,
            read_only=read_only,
            volatile_file=True,
            volatile_directory=transient,
            lock_directories=() if transient is None else (transient,),
        )
