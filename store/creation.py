"""New layers, images and containers.

A layer's tree is made, and on the disk, before the record that names it can be seen, so that no crash
leaves a record without content; a tree without a record is harmless (FORMAT 7).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, Final

from store import bigdata, codec, durable
from store.errors import (
    BadValue,
    ImageUnknown,
)
from store.idmaps import AutomaticMappings
from store.ids import check_id, new_id
from store.names import dedupe
from store.options import BigData, ContainerOptions, ImageOptions, LayerOptions
from store.records import Container, Image, Layer
from store.saving import Saving

if TYPE_CHECKING:
    from store.core import Transaction
    from store.layers import LayerDraft

DEFAULT_LAYER: Final = LayerOptions()
DEFAULT_IMAGE: Final = ImageOptions()
DEFAULT_CONTAINER: Final = ContainerOptions()


class Creations(AutomaticMappings):
    """Creation methods of :class:`store.store.Store`."""

    # -- layers ----------------------------------------------------------------------------------

    def create_layer(
        self,
        *,
        id: str | None = None,
        parent: str | None = None,
        names: Iterable[str] = (),
        mount_label: str = "",
        writeable: bool = False,
        options: LayerOptions = DEFAULT_LAYER,
    ) -> Layer:
        """Make a layer: empty, or a writable copy of ``parent``; ``CreateLayer``.

        Args:
            id: 64 lower-case hex digits; random when not given.
            parent: ID or name of a layer.
            writeable: make it as the layer of a container is made.

        Raises:
            BadID, DuplicateID, DuplicateName, ParentUnknown, ParentIsContainer, LockTimeout, OSError
        """
        return self._new_layer(id, parent, names, mount_label, writeable, options, None)[0]

    def put_layer(
        self,
        archive: BinaryIO | None,
        *,
        id: str | None = None,
        parent: str | None = None,
        names: Iterable[str] = (),
        mount_label: str = "",
        writeable: bool = False,
        options: LayerOptions = DEFAULT_LAYER,
    ) -> tuple[Layer, int]:
        """Make a layer and fill it from a layer archive; ``PutLayer``.

        Args:
            archive: a tar, plain or compressed, read to its end. With drivers that copy in constant time no
                lock is held meanwhile; with others the layers stay locked.

        Returns:
            the layer, and the sum of the sizes of its files in bytes.

        Raises:
            those of :meth:`create_layer`; MalformedArchive, HostileArchive; BadValue if the archive
            has another digest than ``options`` say. Nothing was made then.
        """
        if archive is None or options.template or not self.driver.capabilities.snapshots:
            return self._new_layer(id, parent, names, mount_label, writeable, options, archive)
        if id:
            self.tables.layers.peek().check_free(check_id(id))
        with self.prepare_staged_layer(
            archive, parent=parent, mount_label=mount_label, writeable=writeable, options=options
        ) as staged:
            return self.apply_staged_layer(staged, id=id, names=names), staged.size

    def _new_layer(
        self,
        layer_id: str | None,
        parent: str | None,
        names: Iterable[str],
        mount_label: str,
        writeable: bool,
        options: LayerOptions,
        archive: BinaryIO | None,
    ) -> tuple[Layer, int]:
        layer = Layer(
            id=new_id() if not layer_id else check_id(layer_id),
            names=dedupe(names),
            mount_label=mount_label,
            metadata=options.metadata,
            flags=dict(options.flags),
            created=codec.now(),
            in_image_store=self.split is not None and not writeable,
        )
        with self.transaction(layers="w", containers="r") as tx, ExitStack() as undo:
            base = self.parent_layer(tx, parent) if parent else None
            layer = replace(layer, parent=base.id if base else "")
            mappings = self.layer_mappings(options, base)
            layer = self.grow_layer(tx.layers, undo, layer, base, mappings, writeable, options)
            size = 0
            if archive is not None:
                layer, applied = self.fill_layer(layer, archive, options, undo)
                size = applied.content_size
            layer = self.add_layer_data(layer, options.big_data, undo)
            tx.layers.add(layer)
            tx.layers.flush()
            undo.pop_all()
        return layer, size

    # -- filling ---------------------------------------------------------------------------------

    def apply_diff(self, key: str, archive: BinaryIO) -> int:
        """Unpack a layer archive into an existing layer; ``ApplyDiff``.

        Its recorded digests and tar-split become the archive's. The layers stay locked until the
        archive was read to its end.

        Returns:
            the sum of the sizes of the archive's files in bytes.

        Raises:
            LayerUnknown, MalformedArchive, HostileArchive (the layer then has part of the archive)
        """
        with self.transaction(layers="w") as tx, ExitStack() as undo:
            layer, applied = self.fill_layer(tx.layers.existing(key), archive, DEFAULT_LAYER, undo)
            tx.layers.put(layer)
            tx.layers.flush()
            undo.pop_all()
        return applied.content_size

    # -- images ----------------------------------------------------------------------------------

    def create_image(
        self,
        *,
        id: str | None = None,
        names: Iterable[str] = (),
        layer: str = "",
        metadata: str = "",
        options: ImageOptions = DEFAULT_IMAGE,
    ) -> Image:
        """Make an image record with its big data in one step; ``CreateImage``.

        One with the ID of an image in a read-only store takes over that one's names, metadata, creation time,
        digest and big data, as far as nothing else is said: so an image there gets other names.

        Args:
            layer: ID or name of the top layer; empty for an image without content.

        Raises:
            BadID, DuplicateID, DuplicateName, LayerUnknown, BadBigDataKey, BadValue, LockTimeout
        """
        codec.parse_time(options.created or codec.now())
        given = Image(
            id=new_id() if not id else check_id(id),
            names=dedupe(names),
            names_history=dedupe(options.names_history),
            digest=options.digest,
            metadata=metadata,
            created=options.created,
            flags=dict(options.flags),
            in_image_store=self.split is not None,
        )
        image, inherited = self._over_read_only(given)
        items = [*inherited, *(BigData(*item) for item in options.big_data)]
        for item in items:
            bigdata.file_name(item.key)
        with self.transaction(layers="r", images="w") as tx, ExitStack() as undo:
            if layer:
                image = replace(image, layer=self._top_layer(tx, layer))
            tx.images.check_id_free(image.id)
            tx.images.check_names(image.names)
            directory = self.data_directory(image)
            for item in items:
                undo.callback(durable.remove_tree, directory)
                bigdata.write(directory, item.key, item.data)
                image = bigdata.with_image_data(image, item.key, item.data, item.digest)
            tx.images.add(image)
            tx.images.flush()
            undo.pop_all()
        return image

    def _over_read_only(self, image: Image) -> tuple[Image, list[BigData]]:
        """A new image with what it takes over from one of its ID in a read-only store, and its big data."""
        stores = ((t.images.directory / image.id, t.images.peek().get(image.id)) for t in self.additional)
        directory, found = next(((path, o) for path, o in stores if o is not None), (None, None))
        if directory is None or found is None:
            return replace(image, created=image.created or codec.now()), []
        names = dedupe([*found.names, *image.names])
        taken = replace(
            image,
            names=names,
            names_history=dedupe([*reversed(names), *found.names_history, *image.names_history]),
            digest=image.digest or found.digest,
            metadata=image.metadata or found.metadata,
            created=image.created or found.created,
        )
        digests = found.big_data_digests
        return taken, [
            BigData(key, bigdata.read(directory, key), digests.get(key, "")) for key in found.big_data_names
        ]

    def _top_layer(self, tx: Transaction, key: str) -> str:
        found = tx.layers.view.resolve(key)
        return found.id if found is not None and not found.incomplete else self.layer(key).id

    # -- containers ------------------------------------------------------------------------------

    def create_container(
        self,
        *,
        id: str | None = None,
        names: Iterable[str] = (),
        image: str = "",
        layer: str = "",
        metadata: str = "",
        options: ContainerOptions = DEFAULT_CONTAINER,
    ) -> Container:
        """Make a container: a writable layer over an image's, or an empty one; ``CreateContainer``.

        Args:
            image: ID or name; empty for a container without an image.
            layer: ID of the layer to be made; random when empty.

        Raises:
            BadID, DuplicateID, DuplicateName, ImageUnknown, LayerUnknown, InvalidMappings,
            NoAvailableIDs, BadValue, LockTimeout, OSError
        """
        options = self._permitted(options)
        container_id = new_id() if not id else check_id(id)
        layer_id = new_id() if not layer else check_id(layer)
        with ExitStack() as stack:
            if options.uidmap or options.gidmap or options.auto_userns is not None:
                stack.enter_context(self.userns_lock.writing(self.options.lock_timeout))
            tx = stack.enter_context(self.transaction(layers="w", images="w", containers="w"))
            undo = stack.enter_context(ExitStack())
            tx.containers.check_id_free(container_id)
            tx.containers.check_names(names := dedupe(names))
            made_from = self._image_for_container(tx, image) if image else None
            options = self.settle_mappings(tx, options, made_from)
            top = self._content_of(tx, made_from, options)
            made = self._container_layer(tx, layer_id, top, options, bare=made_from is not None)
            container = Container(
                volatile=self.transient_store,
                id=container_id,
                names=names,
                image=made_from.id if made_from else "",
                layer=made.id,
                metadata=metadata,
                created=codec.now(),
                uidmap=options.uidmap,
                gidmap=options.gidmap,
                flags=container_flags(options),
            )
            container = self._container_data(container, options.big_data, undo)
            self._make_container(tx, undo, container, made, top, options)
            undo.pop_all()
        return container

    def _permitted(self, options: ContainerOptions) -> ContainerOptions:
        """The options as far as this store allows them; ``BadValue``."""
        if bool(options.mount_label) != bool(options.process_label):
            raise BadValue("a mount label and a process label go together: give both or neither")
        forbidden = options.volatile and self.options.disable_volatile
        return replace(options, volatile=False) if forbidden else options

    def _make_container(
        self,
        tx: Transaction,
        undo: ExitStack,
        container: Container,
        layer: Layer,
        top: Layer | None,
        options: ContainerOptions,
    ) -> None:
        """Write both records, make the tree, and only then let anybody see the records.

        An empty tree and the records' names are on the disk by one commit, a copy logs its names after that.
        """
        saving = Saving(undo)
        tx.layers.add(layer)
        saving.add(tx.layers)
        tx.containers.add(container)
        saving.add(tx.containers)
        saving.settle()
        how = LayerOptions(storage_opts=options.storage_opts)
        self.grow_tree(tx.layers, undo, layer, top, layer.mappings, True, how)
        undo.callback(self._forget_layer, tx.layers, layer.id, saving)
        saving.publish(self.driver, layer.id)

    def _forget_layer(self, draft: LayerDraft, layer_id: str, saving: Saving) -> None:
        if saving.begun:
            draft.remove(layer_id)
            draft.flush()

    def _image_for_container(self, tx: Transaction, key: str) -> Image:
        image = tx.images.view.resolve(key)
        if image is None:
            try:
                return self.image(key)
            except ImageUnknown:
                raise ImageUnknown(f"no image is called {key!r}, so no container can be made") from None
        return image

    def _content_of(self, tx: Transaction, image: Image | None, options: ContainerOptions) -> Layer | None:
        """The layer a container starts as a copy of."""
        if image is None or not image.layer:
            return None
        return self.image_layer_for(tx, image, options)

    def _container_layer(
        self, tx: Transaction, layer_id: str, top: Layer | None, options: ContainerOptions, *, bare: bool
    ) -> Layer:
        """The record of the layer a new container will have; ``bare``: the store's mappings do not count."""
        mappings = self.layer_mappings(options, top, bare=bare)
        layer = Layer(
            volatile=self.transient_store,
            id=layer_id,
            names=dedupe(options.layer_names),
            parent=top.id if top is not None else "",
            mount_label=options.mount_label,
            created=codec.now(),
            uidmap=mappings.uids,
            gidmap=mappings.gids,
        )
        tx.layers.check_id_free(layer.id)
        tx.layers.check_names(layer.names)
        return layer

    def _container_data(self, container: Container, items: Iterable[BigData], undo: ExitStack) -> Container:
        directory = self.data_directory(container)
        for item in items:
            undo.callback(durable.remove_tree, directory)
            bigdata.write(directory, item.key, item.data)
            container = bigdata.with_container_data(container, item.key, item.data, item.digest)
        return container


def container_flags(options: ContainerOptions) -> dict[str, object]:
    """The flags of a new container's record (FORMAT 2.3)."""
    flags: dict[str, object] = dict(options.flags)
    flags["MountLabel"] = options.mount_label
    flags["ProcessLabel"] = options.process_label
    if options.volatile:
        flags["Volatile"] = True
    if options.mount_options:
        flags["MountOpts"] = list(options.mount_options)
    return flags
