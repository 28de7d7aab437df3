"""Making a layer's tree and filling it from an archive, before any record names it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, cast

from drivers.base import Applied, Creation
from drivers.errors import LayerExists
from drivers.idmap import IDMappings
from store import bigdata, durable
from store.errors import BadValue, LayerUnknown, ParentIsContainer, ParentUnknown
from store.idranges import check_mappings
from store.names import dedupe
from store.queries import Queries

if TYPE_CHECKING:
    from store.core import Transaction
    from store.layers import LayerDraft
    from store.options import BigData, IDMapOptions, LayerOptions
    from store.records import Layer


class Growth(Queries):
    """The steps of creation that concern one layer. ``undo`` collects what takes each step back."""

    def layer_mappings(self, options: IDMapOptions, base: Layer | None, *, bare: bool = False) -> IDMappings:
        """The mapping of a new layer's owners on disk: what is asked for, else ``base``'s, else the store's.

        Args:
            bare: the store's do not count.

        Raises:
            InvalidMappings
        """
        inherited = IDMappings() if bare else IDMappings(self.options.uidmap, self.options.gidmap)
        if base is not None:
            inherited = base.mappings
        mappings = IDMappings(
            () if options.host_uidmap else options.uidmap or inherited.uids,
            () if options.host_gidmap else options.gidmap or inherited.gids,
        )
        check_mappings(mappings)
        return IDMappings() if self.can_shift(mappings) else mappings

    def parent_layer(self, tx: Transaction, key: str) -> Layer:
        """The layer another may be made from.

        Raises:
            ParentUnknown, ParentIsContainer
        """
        layer = tx.layers.view.resolve(key)
        if layer is None:
            with suppress(LayerUnknown):
                layer = self.layer(key)
        if layer is None:
            raise ParentUnknown(f"no layer is called {key!r}, so nothing can be made from it")
        holder = next(iter(tx.containers.view.on_layer(layer.id)), None)
        if holder is not None:
            raise ParentIsContainer(f"layer {layer.id} belongs to container {holder.id}; commit it first")
        return layer

    def grow_layer(
        self,
        draft: LayerDraft,
        undo: ExitStack,
        layer: Layer,
        base: Layer | None,
        mappings: IDMappings,
        writeable: bool,
        options: LayerOptions,
    ) -> Layer:
        """Make a layer's tree and wait until it is on the disk; ``undo`` then holds its removal.

        The record is not added yet.

        Raises:
            DuplicateID, DuplicateName, LayerUnknown (the template), OSError
        """
        draft.check_id_free(layer.id)
        draft.check_names(layer.names)
        layer = self.grow_tree(draft, undo, layer, base, mappings, writeable, options)
        self.driver.settle(layer.id)
        return layer

    def grow_tree(
        self,
        draft: LayerDraft,
        undo: ExitStack,
        layer: Layer,
        base: Layer | None,
        mappings: IDMappings,
        writeable: bool,
        options: LayerOptions,
    ) -> Layer:
        """:meth:`grow_layer` for a record that was checked before, and may be in the draft already.

        The tree is not on the disk yet.
        """
        creation = Creation(
            mount_label=layer.mount_label,
            storage_opts=options.storage_opts,
            mappings=mappings,
            in_image_store=layer.in_image_store,
        )
        parent = base.id if base is not None else None
        try:
            if options.template:
                layer = self._copy_template(draft, undo, layer, parent, creation, options.template)
            elif writeable:
                self.driver.create_read_write(layer.id, parent, creation)
            else:
                self.driver.create(layer.id, parent, creation)
        except LayerExists:
            self._replace_orphan(layer.id)
            return self.grow_tree(draft, undo, layer, base, mappings, writeable, options)
        undo.callback(self.driver.remove, layer.id)
        return self.adjust_owners(layer, None if options.template else base, mappings)

    def adjust_owners(self, layer: Layer, base: Layer | None, mappings: IDMappings) -> Layer:
        """Rewrite the owners a tree has from ``base`` for ``mappings``; gives the record with these."""
        if base is not None and base.mappings != mappings:
            self.driver.update_id_map(layer.id, base.mappings, mappings)
        return replace(layer, uidmap=mappings.uids, gidmap=mappings.gids)

    def _replace_orphan(self, layer_id: str) -> None:
        """Remove a tree no record names: what a killed creation of the same layer left."""
        self.driver.remove(layer_id)

    def _copy_template(
        self,
        draft: LayerDraft,
        undo: ExitStack,
        layer: Layer,
        parent: str | None,
        creation: Creation,
        key: str,
    ) -> Layer:
        """Copy tree, tar-split and recorded digests of a template layer."""
        template = draft.existing(key)
        self.driver.create_from_template(layer.id, template.id, parent, creation, template.mappings)
        with suppress(FileNotFoundError):
            target = self.tar_split_path(layer.id)
            durable.write_atomic(target, self.tar_split_path(template.id).read_bytes())
            undo.callback(target.unlink, missing_ok=True)
        return replace(
            template,
            id=layer.id,
            names=layer.names,
            parent=parent or "",
            mount_label=layer.mount_label or template.mount_label,
            created=layer.created,
            metadata=layer.metadata or template.metadata,
            flags=layer.flags,
            in_image_store=layer.in_image_store,
            big_data_names=(),
            extra=(),
        )

    def fill_layer(
        self, layer: Layer, archive: BinaryIO, options: LayerOptions, undo: ExitStack
    ) -> tuple[Layer, Applied]:
        """Unpack an archive into a layer and wait until it is on the disk.

        Returns:
            the record with what was learnt, and all that was.

        Raises:
            MalformedArchive, HostileArchive, BadValue (not the digest the options name), OSError
        """
        with self._tar_split(layer.id, undo) as lines:
            applied = self.driver.apply_diff(layer.id, archive, mappings=layer.mappings, tar_split=lines)
            _check_digests(applied, options)
        self._sync(layer.id)
        return (
            replace(
                layer,
                compressed_digest=applied.compressed_digest,
                compressed_size=applied.compressed_size,
                diff_digest=applied.diff_digest,
                diff_size=applied.diff_size,
                compression=int(applied.compression),
                uids=applied.uids,
                gids=applied.gids,
            ),
            applied,
        )

    @contextmanager
    def _tar_split(self, layer_id: str, undo: ExitStack) -> Iterator[BinaryIO]:
        """A stream that becomes the layer's tar-split file when the block ends well."""
        from drivers.tarsplit_file import TarSplitFile

        path = self.tar_split_path(layer_id)
        temporary = path.with_name(f".tmp-{path.name}{os.urandom(4).hex()}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w+b") as file:
                with TarSplitFile(file) as lines:
                    yield cast("BinaryIO", lines)
                os.fdatasync(file.fileno())
            os.rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        undo.callback(path.unlink, missing_ok=True)

    def _sync(self, layer_id: str) -> None:
        """Wait until the layer's content is on the disk, before a record says that it is there."""
        with self.driver.mounted(layer_id) as path:
            durable.sync_filesystem(path)

    def add_layer_data(self, layer: Layer, items: Iterable[BigData], undo: ExitStack) -> Layer:
        """Store big data of a new layer; gives the record that lists it."""
        directory = self.layer_directory(layer.id)
        for item in items:
            undo.callback(durable.remove_tree, directory)
            bigdata.write(directory, item.key, item.data)
            layer = replace(layer, big_data_names=dedupe([*layer.big_data_names, item.key]))
        return layer


def _check_digests(applied: Applied, options: LayerOptions) -> None:
    for wanted, actual, what in (
        (options.original_digest, applied.compressed_digest, "archive"),
        (options.uncompressed_digest, applied.diff_digest, "uncompressed archive"),
    ):
        if wanted and wanted != actual:
            raise BadValue(f"the {what} has the digest {actual}, not {wanted}")
