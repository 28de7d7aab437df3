"""The steps by which an object leaves the store for the trash, and comes back.

Every step may be repeated: it does what is still to do, so that a crash between any two of them needs
no bookkeeping of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from drivers.copytree import copy_tree
from drivers.errors import DriverError, LayerExists
from drivers.errors import LayerUnknown as DriverLayerUnknown
from store.durable import remove_tree, sync_filesystem
from store.errors import DuplicateID, ParentUnknown
from store.names import normalize
from store.records import Container, Image, Layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from store.core import Transaction
    from store.store import Store
    from store.trash_entries import Entries, Entry, Kind, Record

log = logging.getLogger(__name__)


class Moves:
    """Steps on one store, whose tables the caller has locked."""

    def __init__(self, store: Store, entries: Entries) -> None:
        self._store = store
        self.aside = store.driver.aside()
        self._entries = entries

    # -- facts ---------------------------------------------------------------------------------

    def content(self, entry: Entry, layer_id: str) -> Path:
        """Where the driver keeps a layer of the entry."""
        return self.aside.path(f"{entry.id}/{layer_id}")

    def is_present(self, entry: Entry) -> bool:
        """Whether the object is in its table on disk now."""
        return getattr(self._store.tables, entry.kind).peek().get(entry.object_id) is not None

    def limits(self, layers: Iterable[Layer]) -> dict[str, int]:
        """Size limits of layers that have one."""
        if not self._store.driver.capabilities.quota:
            return {}
        found = {}
        for layer in layers:
            with suppress(DriverError):
                found[layer.id] = self._store.driver.limit(layer.id)
        return {layer_id: size for layer_id, size in found.items() if size}

    def mapped_by(self, tx: Transaction, kind: Kind, record: Record) -> tuple[str, ...]:
        """IDs of the images that name a layer as a mapped copy."""
        if kind != "layers":
            return ()
        return tuple(image.id for image in tx.images.view.on_layer(record.id))

    # -- out -----------------------------------------------------------------------------------

    def drop_record(self, tx: Transaction, entry: Entry) -> None:
        """Take the object out of its table, on disk: from here on it is removed."""
        if isinstance(entry.record, Container):
            tx.containers.remove(entry.object_id)
            tx.containers.flush()
        elif isinstance(entry.record, Image):
            tx.images.remove(entry.object_id)
            tx.images.flush()
        else:
            self._drop_layer_records(tx, entry)

    def sink(self, tx: Transaction, entry: Entry) -> None:
        """Move everything of a removed object to the trash that is not there yet."""
        self._drop_layer_records(tx, entry)
        for layer in reversed(entry.layers):
            if tx.layers.get(layer.id) is None:
                # Gone: other tools collect content no record names. Twice: somebody made it anew.
                with suppress(DriverLayerUnknown, LayerExists):
                    self.aside.put(layer.id, f"{entry.id}/{layer.id}")
        for live, kept in self._files(entry, tx):
            if not os.path.lexists(kept):
                _move(live, kept)
        # Before anybody relies on the entry: renames and records must not be torn apart by a power failure.
        sync_filesystem(self._store.graphroot)

    def _drop_layer_records(self, tx: Transaction, entry: Entry) -> None:
        for layer in reversed(entry.layers):
            live = tx.layers.get(layer.id)
            if live is not None and live.created == layer.created and self._is_unused(tx, live):
                for image in tx.images.view.on_layer(layer.id) if tx.images.writable else ():
                    kept = tuple(mapped for mapped in image.mapped_layers if mapped != layer.id)
                    tx.images.put(replace(image, mapped_layers=kept))
                tx.layers.mounts.set(layer.id, "", 0)
                tx.layers.remove(layer.id)
        if tx.images.writable:
            tx.images.flush()
        tx.layers.flush()

    def _is_unused(self, tx: Transaction, layer: Layer) -> bool:
        """Whether nothing needs the layer; pins were asked about when the removal began."""
        used = any(image.layer == layer.id for image in tx.images.view.on_layer(layer.id))
        return not (used or tx.layers.view.children(layer.id) or tx.containers.view.on_layer(layer.id))

    def _files(self, entry: Entry, tx: Transaction) -> Iterator[tuple[Path, Path]]:
        """Paths in the store, and in the entry, of all files that belong to it and to no one else."""
        directory = self._entries.directory(entry.id)
        if entry.kind != "layers":
            yield self._store.data_directory(entry.record), directory / "data"
            yield self._store.run_directory(entry.kind) / entry.object_id, self._run_directory(entry.id)
        for layer in entry.layers:
            if tx.layers.get(layer.id) is None:
                for live in self._layer_files(layer.id):
                    yield live, directory / "layers" / live.name

    def _run_directory(self, entry_id: str) -> Path:
        """What the object had in the runroot, where a reboot would have taken it anyway."""
        return self._store.runroot / "fsd" / "trash" / entry_id

    def _layer_files(self, layer_id: str) -> tuple[Path, Path]:
        return self._store.layer_directory(layer_id), self._store.tar_split_path(layer_id)

    # -- back ----------------------------------------------------------------------------------

    def restorable(self, tx: Transaction, entry: Entry, name: str | None) -> Record:
        """The record the object will have when it is back.

        Raises:
            DuplicateName, DuplicateID, ParentUnknown, BadName
        """
        record = entry.record
        if isinstance(record, Container):
            _check_absent(tx.containers.get(record.id), entry)
            container = record if name is None else replace(record, names=(name,))
            tx.containers.check_names(container.names)
            known = not container.image or self._store.catalog().image(container.image) is not None
            return container if known else replace(container, image="")
        if isinstance(record, Image):
            return self._restorable_image(tx, entry, record, name)
        self._check_needs(entry)
        _check_absent(tx.layers.get(record.id), entry)
        layer = record if name is None else replace(record, names=(name,))
        tx.layers.check_names(layer.names)
        return layer

    def _restorable_image(self, tx: Transaction, entry: Entry, record: Image, name: str | None) -> Image:
        if self._store.split is None:
            record = replace(record, in_image_store=False)
        names = record.names if name is None else (normalize(name),)
        live = tx.images.get(record.id)
        if live is not None and (live.digest, live.layer) != (record.digest, record.layer):
            _check_absent(live, entry)
        if live is None:
            self._check_needs(entry)
        else:
            names = tuple(name for name in names if name not in live.names)
        tx.images.check_names(names)
        return replace(live or record, names=(*(live.names if live else ()), *names))

    def _check_needs(self, entry: Entry) -> None:
        """Raise :class:`ParentUnknown` if a layer is gone without which the object is not what it was."""
        needs = [layer.parent for layer in entry.layers]
        if isinstance(entry.record, Image):
            needs.append(entry.record.layer)
        own = {layer.id for layer in entry.layers}
        for layer_id in needs:
            if layer_id and layer_id not in own and self._store.catalog().layer(layer_id) is None:
                held = [e.id for e in self._entries.all() if any(i.id == layer_id for i in e.layers)]
                advice = f"; restore {held[0]} first" if held else ""
                raise ParentUnknown(f"{entry.id} needs layer {layer_id}, which was removed since{advice}")

    def bring_back(self, tx: Transaction, entry: Entry, record: Record) -> None:
        """Move everything back, and then add the records, the object's own last."""
        own = {layer.id for layer in entry.layers}
        arriving = [
            self._placed(tx, record if isinstance(record, Layer) else layer, own)
            for layer in entry.layers
            if tx.layers.get(layer.id) is None
        ]
        for layer in arriving:
            self._return_content(entry, layer.id)
        for live, kept in self._files(entry, tx):
            if os.path.lexists(kept):
                remove_tree(live)  # no record named it
                _move(kept, live)
        sync_filesystem(self._store.graphroot)
        for layer in arriving:
            tx.layers.add(layer)
        tx.layers.flush()
        self._limit_again(entry, arriving)
        self._add_record(tx, entry, record)

    def _placed(self, tx: Transaction, layer: Layer, own: set[str]) -> Layer:
        """The layer's record as it fits into the store now."""
        found = layer.parent in own or self._store.catalog().layer(layer.parent) is not None
        free = tuple(name for name in layer.names if tx.layers.view.by_name(name) is None)
        split = layer.in_image_store and self._store.split is not None
        return replace(layer, parent=layer.parent if found else "", names=free, in_image_store=split)

    def _return_content(self, entry: Entry, layer_id: str) -> None:
        key, driver = f"{entry.id}/{layer_id}", self._store.driver
        try:
            self.aside.take_back(key, layer_id)
        except DriverLayerUnknown:
            if not driver.exists(layer_id):
                raise
        except LayerExists:  # a tree no record names: what a killed creation of the same layer left
            driver.remove(layer_id)
            self.aside.take_back(key, layer_id)

    def _limit_again(self, entry: Entry, layers: Iterable[Layer]) -> None:
        for layer in layers:
            if layer.id in entry.limits:
                try:
                    self._store.driver.set_limit(layer.id, entry.limits[layer.id])
                except (DriverError, OSError) as error:
                    log.warning("layer %s is back without its limit: %s", layer.id, error)

    def _add_record(self, tx: Transaction, entry: Entry, record: Record) -> None:
        if isinstance(record, Container):
            tx.containers.add(record)
            tx.containers.flush()
            return
        if isinstance(record, Image):
            tx.images.add(record)
        for image_id in entry.mapped_by:
            if (image := tx.images.get(image_id)) is not None and record.id not in image.mapped_layers:
                tx.images.put(replace(image, mapped_layers=(*image.mapped_layers, record.id)))
        tx.images.flush()

    # -- away ----------------------------------------------------------------------------------

    def discard(self, entry_id: str) -> None:
        """Delete the content of all layers of an entry, and its directory in the runroot."""
        remove_tree(self._run_directory(entry_id))
        for key in list(self.aside.keys()):
            if key.startswith(f"{entry_id}/"):
                with suppress(DriverLayerUnknown):
                    self.aside.discard(key)


def _check_absent(live: Record | None, entry: Entry) -> None:
    if live is not None:
        kind = entry.kind[:-1]
        raise DuplicateID(f"{kind} {live.id} exists again; remove it, or purge {entry.id} from the trash")


def _move(source: Path, target: Path) -> None:
    """Rename what exists, or copy it: the image store may be on another mount of the filesystem."""
    if not os.path.lexists(source):
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = target.with_name(f".tmp-{target.name}")
        remove_tree(copy)
        if source.is_dir():
            copy.mkdir(mode=0o700)
            copy_tree(source, copy)
        else:
            shutil.copy2(source, copy)
        os.rename(copy, target)
        remove_tree(source)
