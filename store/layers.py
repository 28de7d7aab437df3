"""The layer table and the mount table that belongs to it.

``mountpoints.lock`` is innermost and only ever taken while ``layers.lock`` is held. Other tools rewrite
``mountpoints.json`` with every save of ``layers.json``; here it is written when a mount in it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import LayerUnknown
from store.records import INCOMPLETE, Layer, MountPoint
from store.table import Draft, NamedDraft, Table
from store.view import View, grouped, regrouped

if TYPE_CHECKING:
    from store.saving import Staged
    from store.segment import Broken


class LayerView(View[Layer]):
    """The layers at one moment."""

    __slots__ = ("_by_compressed", "_by_diff", "_by_toc", "_children", "_incomplete")

    def __init__(self, by_id: dict[str, Layer], broken: tuple[Broken, ...] = (), changed_ns: int = 0) -> None:
        super().__init__(by_id, broken, changed_ns)
        self._children: dict[str, list[Layer]] | None = None
        self._by_compressed: dict[str, list[Layer]] | None = None
        self._by_diff: dict[str, list[Layer]] | None = None
        self._by_toc: dict[str, list[Layer]] | None = None
        self._incomplete: tuple[str, ...] | None = None

    def inherit(self, base: View[Layer], changed: Mapping[str, Layer | None]) -> None:
        """Take over indexes of ``base`` that the ``changed`` records leave valid or cheap to correct."""
        super().inherit(base, changed)
        if not isinstance(base, LayerView):
            return
        self._children = regrouped(base._children, changed, self.by_id, _parents)
        if base._incomplete is not None:
            now = (self.by_id.get(layer_id) for layer_id in changed)
            flagged = [layer.id for layer in now if layer is not None and layer.incomplete]
            self._incomplete = (*(i for i in base._incomplete if i not in changed), *flagged)

    @property
    def incomplete(self) -> tuple[str, ...]:
        """IDs of layers whose creation or removal never finished."""
        if self._incomplete is None:
            self._incomplete = tuple(layer.id for layer in self.records if layer.flags and layer.incomplete)
        return self._incomplete

    def children(self, layer_id: str) -> list[Layer]:
        """Layers whose parent is ``layer_id``."""
        if self._children is None:
            self._children = grouped(self.records, _parents)
        return list(self._children.get(layer_id, ()))

    def by_compressed_digest(self, digest: str) -> list[Layer]:
        """Layers whose archive, as given, had this digest."""
        if self._by_compressed is None:
            self._by_compressed = _group(
                (i.compressed_digest, i) for i in self.records if i.compressed_digest
            )
        return list(self._by_compressed.get(digest, ()))

    def by_diff_digest(self, digest: str) -> list[Layer]:
        """Layers whose uncompressed archive had this digest."""
        if self._by_diff is None:
            self._by_diff = _group((i.diff_digest, i) for i in self.records if i.diff_digest)
        return list(self._by_diff.get(digest, ()))

    def by_toc_digest(self, digest: str) -> list[Layer]:
        """Layers whose archive had a table of contents of this digest."""
        if self._by_toc is None:
            self._by_toc = _group((i.toc_digest, i) for i in self.records if i.toc_digest)
        return list(self._by_toc.get(digest, ()))

    def chain(self, layer_id: str) -> list[Layer]:
        """The layer and its ancestors, base first; stops at a missing parent or a circle."""
        found: dict[str, Layer] = {}
        layer = self.get(layer_id)
        while layer is not None and layer.id not in found:
            found[layer.id] = layer
            layer = self.get(layer.parent)
        return list(found.values())[::-1]


def _parents(layer: Layer) -> tuple[str, ...]:
    return (layer.parent,) if layer.parent else ()


def _group(pairs: Iterator[tuple[str, Layer]]) -> dict[str, list[Layer]]:
    groups: dict[str, list[Layer]] = {}
    for key, layer in pairs:
        groups.setdefault(key, []).append(layer)
    return groups


class MountView(View[MountPoint]):
    """The mount counts at one moment."""

    __slots__ = ()

    def count(self, layer_id: str) -> int:
        """How often the layer is mounted."""
        mount = self.get(layer_id)
        return mount.count if mount is not None and mount.path else 0

    def by_path(self, path: str) -> MountPoint | None:
        """The mount whose directory is ``path``."""
        return next((mount for mount in self.records if mount.path == path), None)


class MountDraft(Draft[MountPoint]):
    """The mount counts under their lock."""

    @property
    def view(self) -> MountView:
        """The present state."""
        view: MountView = super().view
        return view

    def set(self, layer_id: str, path: str, count: int) -> None:
        """Record how often a layer is mounted, and where; a count of 0 forgets it."""
        if self.get(layer_id) is not None:
            self.remove(layer_id)
        if count > 0 and path:
            self.add(MountPoint(id=layer_id, path=path, count=count))


class LayerDraft(NamedDraft[Layer]):
    """The layers under their lock, with the mounts in ``mounts``.

    Attributes:
        open_mounts: locks the mounts as the layers are locked; called when they are first needed.
    """

    kind, unknown = "layer", LayerUnknown

    _table: LayerTable
    open_mounts: Callable[[], MountDraft]
    _mounts: MountDraft | None = None

    @property
    def mounts(self) -> MountDraft:
        """The mounts under their lock."""
        if self._mounts is None:
            self._mounts = self.open_mounts()
        return self._mounts

    @property
    def view(self) -> LayerView:
        """The present state."""
        view: LayerView = super().view
        return view

    def flag_incomplete(self, layer: Layer) -> Layer:
        """Mark a layer whose content is about to go, and save, so that a crash finishes the removal."""
        flagged = self.put(replace(layer, flags={**layer.flags, INCOMPLETE: True}))
        self.flush()
        return flagged

    def stage(self, *, anyway: bool = False) -> Staged[Layer] | None:
        """See the base class; forgets the mounts of layers that are gone."""
        staged = super().stage(anyway=anyway)
        if staged is not None and (self._mounts is not None or self._lags(self._table.mounts.peek())):
            for mount in self.mounts:
                if self.get(mount.id) is None:
                    self.mounts.remove(mount.id)
            self.mounts.flush(anyway=self.mounts.is_new)
        return staged

    def _lags(self, mounts: MountView) -> bool:
        """Whether the mounts' file is missing, or has layers that are gone.

        Nobody changes it while the layers are locked exclusively, so this needs no lock.
        """
        return not mounts.changed_ns or any(mount.id not in self._records for mount in mounts)


class LayerTable(Table[Layer, LayerView, LayerDraft]):
    """``layers.json``, ``volatile-layers.json``, those of the split image store, and ``mountpoints.json``.

    Args:
        directory: ``<graphroot>/<driver>-layers``.
        run_directory: ``<runroot>/<driver>-layers``, where the mounts are.
        transient: keep the volatile file there too.
        image_directory: ``<image store>/<driver>-layers``, whose lock is taken second.
    """

    def __init__(
        self,
        directory: Path,
        run_directory: Path,
        *,
        read_only: bool = False,
        transient: bool = False,
        image_directory: Path | None = None,
    ) -> None:
        super().__init__(
            directory,
            "layers",
            Layer,
            LayerView,
            LayerDraft,
            read_only=read_only,
            volatile_file=True,
            volatile_directory=run_directory if transient else None,
            image_directory=image_directory,
            lock_directories=(directory, *filter(None, [image_directory])),
        )
        self.mounts: Table[MountPoint, MountView, MountDraft] = Table(
            run_directory, "mountpoints", MountPoint, MountView, MountDraft, durable=False
        )

    @contextmanager
    def writing(self, timeout: float | None = None) -> Iterator[LayerDraft]:
        """The layers under their exclusive lock, and the mounts too as soon as they are asked for."""
        with ExitStack() as stack:
            draft = stack.enter_context(super().writing(timeout))
            draft.open_mounts = lambda: stack.enter_context(self._mounts(timeout))
            yield draft
            draft.flush()

    @contextmanager
    def _mounts(self, timeout: float | None) -> Iterator[MountDraft]:
        self.mounts.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.mounts.writing(timeout) as mounts:
            yield mounts

    @contextmanager
    def reading(self, timeout: float | None = None) -> Iterator[LayerDraft]:
        """The layers under the shared lock; their mounts as of now."""
        with super().reading(timeout) as draft:
            draft.open_mounts = self._mounts_now
            yield draft

    def _mounts_now(self) -> MountDraft:
        known = not self.read_only and self.mounts.directory.is_dir()
        return MountDraft(self.mounts, [], self.mounts.peek() if known else MountView({}), False)
