"""Mounting: counts that all tools share, kept where a reboot forgets them (FORMAT 7)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from drivers.base import MountOptions
from drivers.idmap import IDMappings
from store.errors import (
    BadValue,
    ContainerUnknown,
    LayerNotMounted,
    LayerUnknown,
    LayerUsedByContainer,
    StoreReadOnly,
)
from store.queries import Queries

if TYPE_CHECKING:
    from store.core import Transaction
    from store.layers import LayerDraft
    from store.records import Container, Image, Layer


class Mounts(Queries):
    """Mount methods of :class:`store.store.Store`."""

    def mount(self, key: str, mount_label: str = "", options: tuple[str, ...] = ()) -> Path:
        """Make a container's or layer's tree available and count it; ``Mount``.

        Args:
            key: of a container, else of a layer.
            mount_label: SELinux label; the recorded one when empty.
            options: mount options; those of the container when it has any.

        Returns:
            the directory; it stays until as many calls of :meth:`unmount`.

        Raises:
            LayerUnknown, LockTimeout, drivers.errors.NotSupported, OSError
        """
        container = self._container(key)
        layer_id = container.layer if container is not None else self.layer(key).id
        if container is not None and container.mount_options:
            options = (*container.mount_options, *options)
        mappings = container.mappings if container is not None else IDMappings()
        return self._mount(layer_id, mount_label, options, mappings)

    def mount_image(self, key: str, options: tuple[str, ...] = (), mount_label: str = "") -> Path:
        """Mount the top layer of an image read-only, as far as the driver can; ``MountImage``.

        Of an image whose top layer has mapped owners a copy with the host's is made, and mounted.

        Raises:
            ImageUnknown, LayerUnknown, StoreReadOnly, BadValue: ``rw`` was asked for.
        """
        if "rw" in options:
            raise BadValue("an image cannot be mounted read-write; make a container from it")
        layer_id = self.unmapped_layer(self.image(key))
        if not layer_id:
            raise LayerUnknown(f"image {key} has no layer, so there is nothing to mount")
        return self._mount(layer_id, mount_label, tuple(dict.fromkeys(("ro", *options))), IDMappings())

    def _mount(self, layer_id: str, mount_label: str, options: tuple[str, ...], mappings: IDMappings) -> Path:
        if self.read_only:
            return self._get(self.layer(layer_id), mount_label, options, mappings)
        with self.storage_lock.writing(self.options.lock_timeout), self.transaction(layers="w") as tx:
            layer = tx.layers.get(layer_id)
            if layer is None:
                raise StoreReadOnly(
                    f"layer {layer_id} is in an additional store, where nothing is mounted; "
                    "make a container from it"
                )
            mounts = tx.layers.mounts
            known = mounts.get(layer_id)
            count = known.count if known is not None else 0
            if known is not None and count > 0 and os.path.ismount(known.path):
                mounts.set(layer_id, known.path, count + 1)
                return Path(known.path)
            path = self._get(layer, mount_label, options, mappings)
            try:
                mounts.set(layer_id, str(path), count + 1)
                mounts.flush()
            except BaseException:
                self.driver.put(layer_id)
                raise
        return path

    def _get(self, layer: Layer, mount_label: str, options: tuple[str, ...], mappings: IDMappings) -> Path:
        """Have the driver mount a layer; nobody counts that yet."""
        shift = mappings if not layer.mappings and self.can_shift(mappings) else IDMappings()
        return self.driver.get(
            layer.id,
            MountOptions(mount_label=mount_label or layer.mount_label, options=options, mappings=shift),
        )

    def unmount(self, key: str, force: bool = False) -> bool:
        """Take back one :meth:`mount`, or all with ``force``; ``Unmount``.

        Args:
            key: of a container or layer, or the directory it is mounted at.

        Returns:
            whether the layer is still mounted. Unmounting what is not mounted does nothing.

        Raises:
            LayerUnknown, LockTimeout, OSError
        """
        if self.read_only:
            container = self._container(key)
            self.driver.put(container.layer if container is not None else self.layer(key).id)
            return False
        with self.transaction(layers="w") as tx:
            return self._unmount(tx.layers, self._mounted_layer(tx, key), force)

    def _unmount(self, draft: LayerDraft, layer: Layer, force: bool) -> bool:
        known = draft.mounts.get(layer.id)
        count = known.count if known is not None else 0
        if known is not None and count > 1 and not force:
            draft.mounts.set(layer.id, known.path, count - 1)
            return True
        if known is not None:
            self.driver.put(layer.id)
            draft.mounts.set(layer.id, "", 0)
        return False

    def unmount_image(self, key: str, force: bool = False) -> bool:
        """Take back one :meth:`mount_image`; ``UnmountImage``.

        Returns:
            whether the layer is still mounted.

        Raises:
            ImageUnknown, LayerNotMounted
        """
        image = self.image(key)
        layer_id = self.unmapped_copy(image) or image.layer
        if not self.read_only and not self.mounts_now().count(layer_id):
            raise LayerNotMounted(f"the layer of image {key} is not mounted")
        return self.unmount(layer_id, force)

    def unmapped_layer(self, image: Image) -> str:
        """ID of the image's top layer, or of a copy of it, whose owners are the host's."""
        return self.unmapped_copy(image) or image.layer

    def mounted(self, key: str) -> int:
        """How often a container or layer is mounted, by any tool; ``Mounted``.

        Raises:
            LayerUnknown
        """
        container = self._container(key)
        layer_id = container.layer if container is not None else self.layer(key).id
        return self.mounts_now().count(layer_id)

    def _container(self, key: str) -> Container | None:
        """The container of that key, not looked up by its layer's ID."""
        view = self.tables.containers.peek()
        return view.get(key) or view.by_name(key) or view.by_prefix(key)

    def _mounted_layer(self, tx: Transaction, key: str) -> Layer:
        mount = tx.layers.mounts.view.by_path(os.path.normpath(key)) if key.startswith("/") else None
        if mount is not None:
            return tx.layers.existing(mount.id)
        container = self._container(key)
        if container is not None and container.layer:
            return tx.layers.existing(container.layer)
        try:
            return tx.layers.existing(key)
        except LayerUnknown:
            raise LayerUnknown(f"nothing called {key!r} can be unmounted") from None

    def shutdown(self, force: bool = False) -> list[str]:
        """Let the driver undo what it did to the system; ``Shutdown``.

        Args:
            force: unmount what is mounted first.

        Returns:
            IDs of layers that were mounted.

        Raises:
            LayerUsedByContainer: a layer is mounted and ``force`` is not set; nothing was done then.
        """
        if self.read_only:
            self.driver.cleanup()
            return []
        with self.storage_lock.writing(self.options.lock_timeout):
            with self.transaction(layers="w") as tx:
                mounted = [layer for layer in tx.layers.view if tx.layers.mounts.view.count(layer.id)]
                if mounted and not force:
                    ids = ", ".join(layer.id for layer in mounted)
                    raise LayerUsedByContainer(f"a layer is mounted: {ids}; unmount it, or use force")
                for layer in mounted:
                    self._unmount(tx.layers, layer, True)
            self.storage_lock.stamp()
            self.driver.cleanup()
        return [layer.id for layer in mounted]

    # -- owners ----------------------------------------------------------------------------------

    def layer_parent_owners(self, key: str) -> tuple[list[int], list[int]]:
        """Owners of the directories above a mounted layer other than its root user; ``LayerParentOwners``.

        Returns:
            sorted user IDs and group IDs; both empty for a layer without mappings.

        Raises:
            LayerUnknown, LayerNotMounted
        """
        layer = self.layer(key)
        if not layer.mappings:
            return [], []
        mount = self.mounts_now().get(layer.id)
        if mount is None or not mount.path:
            raise LayerNotMounted(f"layer {layer.id} is not mounted, so it has no parent directories")
        return _owners_above(Path(mount.path), layer.mappings)

    def container_parent_owners(self, key: str) -> tuple[list[int], list[int]]:
        """:meth:`layer_parent_owners` of a container's layer; ``ContainerParentOwners``.

        Raises:
            ContainerUnknown, LayerNotMounted
        """
        container = self._container(key)
        if container is None:
            raise ContainerUnknown(f"no container is called {key!r}")
        return self.layer_parent_owners(container.layer)


def _owners_above(path: Path, mappings: IDMappings) -> tuple[list[int], list[int]]:
    root_uid, root_gid = mappings.root
    uids, gids = set(), set()
    for directory in path.parents:
        st = os.lstat(directory)
        if directory != Path("/"):
            uids.add(st.st_uid)
            gids.add(st.st_gid)
    return sorted(uids - {root_uid}), sorted(gids - {root_gid})
