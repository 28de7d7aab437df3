"""Layers unpacked outside the locks: reading a slow archive must not keep every other tool waiting.

A staged layer is a tree in the driver under an ID of its own that no record names. Its *staging lock*
in the runroot is held as long as somebody works on it, so that a collector of orphans leaves it alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from drivers.base import Creation
from drivers.errors import LayerExists
from drivers.errors import LayerUnknown as DriverLayerUnknown
from store import codec
from store.errors import LockTimeout, ParentUnknown
from store.growth import Growth
from store.ids import check_id, new_id
from store.lockfile import LockFile
from store.names import dedupe
from store.options import LayerOptions
from store.records import Layer

if TYPE_CHECKING:
    from store.core import Transaction

_PREFIX: Final = "staging-"
DEFAULT_LAYER: Final = LayerOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedLayer:
    """A layer's content, unpacked and on the disk, that is not in the store yet.

    ``layer`` is the record it will have, apart from ID and names; ``size`` the sum of its files' sizes
    in bytes, ``ended`` whether the archive had its end (:class:`drivers.base.Applied`). :meth:`close`
    removes it again; a context manager does so at its end.
    """

    layer: Layer
    size: int
    ended: bool
    options: LayerOptions
    resources: ExitStack

    def close(self) -> None:
        """Remove the tree and release the staging lock; harmless when repeated."""
        self.resources.close()

    def __enter__(self) -> StagedLayer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Staging(Growth):
    """Methods of :class:`store.store.Store` that make a layer in two steps."""

    def prepare_staged_layer(
        self,
        archive: BinaryIO,
        *,
        parent: str | None = None,
        mount_label: str = "",
        writeable: bool = False,
        options: LayerOptions = DEFAULT_LAYER,
    ) -> StagedLayer:
        """Unpack a layer archive without holding any lock of the store; ``PrepareStagedLayer``.

        Args:
            writeable: the layer will be a container's, and so is not made in the split image store.

        Raises:
            ParentUnknown, ParentIsContainer, MalformedArchive, HostileArchive, BadValue, StoreReadOnly,
            OSError
        """
        self.check_writable()
        self.clean_staging()
        with self.transaction(layers="r", containers="r") as tx:
            base = self.parent_layer(tx, parent) if parent else None
        layer = Layer(
            id=new_id(),
            parent=base.id if base else "",
            mount_label=mount_label,
            created=codec.now(),
            in_image_store=self.split is not None and not writeable,
        )
        mappings = self.layer_mappings(options, base)
        with ExitStack() as resources:
            self._lock_staging(layer.id, resources)
            how = Creation(mount_label=mount_label, storage_opts=options.storage_opts, mappings=mappings)
            try:
                self.driver.create(layer.id, layer.parent or None, how)
            except DriverLayerUnknown:
                raise ParentUnknown(f"layer {layer.parent} was removed meanwhile") from None
            resources.callback(self._remove_tree, layer.id)
            layer = self.adjust_owners(layer, base, mappings)
            layer, applied = self.fill_layer(layer, archive, options, resources)
            return StagedLayer(
                layer=layer,
                size=applied.content_size,
                ended=applied.ended,
                options=options,
                resources=resources.pop_all(),
            )

    def apply_staged_layer(
        self, staged: StagedLayer, *, id: str | None = None, names: Iterable[str] = ()
    ) -> Layer:
        """Put a staged layer into the store; ``ApplyStagedLayer``. ``staged`` is closed afterwards.

        Where the driver copies in constant time the locks are held for an instant only.

        Raises:
            BadID, DuplicateID, DuplicateName, ParentUnknown, ParentIsContainer, OSError
        """
        options = staged.options
        layer = replace(
            staged.layer,
            id=new_id() if not id else check_id(id),
            names=dedupe(names),
            metadata=options.metadata,
            flags=dict(options.flags),
            created=codec.now(),
        )
        with staged, self.transaction(layers="w", containers="r") as tx, ExitStack() as undo:
            if layer.parent:
                self.parent_layer(tx, layer.parent)
            self._adopt_tree(tx, staged.layer, layer, options)
            undo.callback(self._remove_tree, layer.id)
            target = self.tar_split_path(layer.id)
            os.rename(self.tar_split_path(staged.layer.id), target)
            undo.callback(target.unlink, missing_ok=True)
            layer = self.add_layer_data(layer, options.big_data, undo)
            tx.layers.add(layer)
            tx.layers.flush()
            undo.pop_all()
        return layer

    def cleanup_staged_layer(self, staged: StagedLayer) -> None:
        """Throw a staged layer away; ``CleanupStagedLayer``."""
        staged.close()

    def _adopt_tree(self, tx: Transaction, staged: Layer, layer: Layer, options: LayerOptions) -> None:
        """Copy the staged tree to its final ID."""
        tx.layers.check_id_free(layer.id)
        tx.layers.check_names(layer.names)
        how = Creation(
            mount_label=layer.mount_label,
            storage_opts=options.storage_opts,
            mappings=layer.mappings,
            in_image_store=layer.in_image_store,
        )
        for attempt in (1, 2):
            try:
                self.driver.create_from_template(
                    layer.id, staged.id, layer.parent or None, how, layer.mappings
                )
            except LayerExists:
                if attempt == 2:
                    raise
                self.driver.remove(layer.id)  # no record names it: a killed creation left it
            else:
                self.driver.settle(layer.id)
                return

    def _remove_tree(self, layer_id: str) -> None:
        with suppress(DriverLayerUnknown):
            self.driver.remove(layer_id)

    # -- who is at work --------------------------------------------------------------------------

    def _staging_path(self, layer_id: str) -> Path:
        directory = self.run_directory("locks")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory / f"{_PREFIX}{layer_id}"

    def _lock_staging(self, layer_id: str, resources: ExitStack) -> None:
        """Hold the staging lock of that ID until ``resources`` close."""
        path = self._staging_path(layer_id)
        while True:
            with ExitStack() as attempt:
                attempt.enter_context(LockFile(path).writing(self.options.lock_timeout))
                if path.exists():  # else a cleaner took the file away before it was locked
                    resources.enter_context(attempt.pop_all())
                    resources.callback(path.unlink, missing_ok=True)
                    return

    def staged_ids(self) -> set[str]:
        """IDs of trees in the driver that somebody is filling right now."""
        paths = self.run_directory("locks").glob(f"{_PREFIX}*")
        return {path.name.removeprefix(_PREFIX) for path in paths if LockFile(path).held()}

    def clean_incomplete(self, *, wait: bool = True) -> list[str]:
        """Remove layers flagged incomplete, and what killed processes left staged; see the base class."""
        removed = super().clean_incomplete(wait=wait)
        return removed if self.read_only else removed + self.clean_staging()

    def clean_staging(self) -> list[str]:
        """Remove what killed processes left staged; gives the IDs of the trees."""
        removed = []
        for path in self.run_directory("locks").glob(f"{_PREFIX}*"):
            layer_id = path.name.removeprefix(_PREFIX)
            if LockFile(path).held():
                continue
            with suppress(LockTimeout), LockFile(path).writing(0.0):
                self._remove_tree(layer_id)
                self.tar_split_path(layer_id).unlink(missing_ok=True)
                self.drop_half_written(self.tar_split_path(layer_id))
                path.unlink(missing_ok=True)
                removed.append(layer_id)
        return removed
