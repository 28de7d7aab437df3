"""ID mappings of layers and containers: inheritance, mapped image layers, automatic user namespaces.

The rules are containers/storage's: a layer takes the mappings asked for, else its parent's, else the
store's; a container over an image whose top layer has other owners gets a copy of that layer with the
owners shifted, which the image remembers in ``mapped-layers`` and other containers share.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from drivers.idmap import NOBODY, IDMap, IDMappings
from store import codec
from store.errors import ImageUnknown, LayerUnknown, NoAvailableIDs, StoreReadOnly
from store.idranges import Range, check_mappings, free_ranges, pack, subordinate_ids
from store.ids import new_id
from store.options import AutoUserNs, ContainerOptions, LayerOptions
from store.records import Container, Image, Layer
from store.staging import Staging

if TYPE_CHECKING:
    from store.core import Transaction

_NOBODYS: Final = ("nobody", "nogroup")
_DATABASE_MAX: Final = 1 << 20
"""Characters of a user database that count."""
DEFAULT_AUTO_USER: Final = "containers"


class AutomaticMappings(Staging):
    """How new layers and containers get their ID mappings."""

    def settle_mappings(
        self, tx: Transaction, options: ContainerOptions, image: Image | None
    ) -> ContainerOptions:
        """``options`` with an automatic user namespace chosen, and mappings checked.

        Raises:
            InvalidMappings, NoAvailableIDs
        """
        if options.auto_userns is not None:
            mappings = self._automatic(tx, options.auto_userns, image)
            options = replace(options, uidmap=mappings.uids, gidmap=mappings.gids, auto_userns=None)
        check_mappings(options.mappings)
        return options

    def image_layer_for(self, tx: Transaction, image: Image, options: ContainerOptions) -> Layer:
        """The image's top layer, or a copy of it, whose owners are mapped as a container needs them.

        A copy is made when there is none, and recorded in the image. Images of additional stores are
        never changed; their top layer is used as it is, and the container's own layer is shifted.

        Raises:
            LayerUnknown: the image's top layer does not exist.
        """
        first: Layer | None = None
        for layer_id in (image.layer, *image.mapped_layers):
            layer = self.layer_in(tx, layer_id)
            if layer is None:
                continue
            if self._fits(layer, options):
                return layer
            first = first or layer
        if first is None:
            raise LayerUnknown(f"the top layer {image.layer} of image {image.id} does not exist")
        if tx.images.get(image.id) is None or tx.layers.get(first.id) is None:
            return first
        return self._mapped_copy(tx, image, first, options)

    def unmapped_layer(self, image: Image) -> str:
        """ID of the image's top layer, or of a copy of it that is made if need be, with the host's owners.

        Raises:
            StoreReadOnly: the image is in a read-only store, and its owners are mapped.
        """
        if not image.layer or not self.layer(image.layer).mappings:
            return image.layer
        if copy := self.unmapped_copy(image):
            return copy
        if image.read_only:
            raise StoreReadOnly(
                f"image {image.id} is in a read-only store, and the owners of its files are mapped"
            )
        with self.transaction(layers="w", images="w") as tx:
            current = tx.images.get(image.id)
            if current is None:
                raise ImageUnknown(f"image {image.id} was removed meanwhile")
            return self.image_layer_for(tx, current, ContainerOptions(host_uidmap=True, host_gidmap=True)).id

    def layer_in(self, tx: Transaction, layer_id: str) -> Layer | None:
        """A layer of this store as its transaction has it, or one of an additional store."""
        found = tx.layers.get(layer_id)
        if found is not None:
            return found
        return next((v.by_id[layer_id] for v in self.layer_views()[1:] if layer_id in v.by_id), None)

    def _fits(self, layer: Layer, options: ContainerOptions) -> bool:
        unmapped = not layer.mappings
        if unmapped and self.can_shift(options.mappings):
            return True
        wanted = IDMappings(
            () if options.host_uidmap else options.uidmap,
            () if options.host_gidmap else options.gidmap,
        )
        return layer.mappings == wanted

    def _mapped_copy(self, tx: Transaction, image: Image, top: Layer, options: ContainerOptions) -> Layer:
        mappings = IDMappings(
            () if options.host_uidmap else options.uidmap, () if options.host_gidmap else options.gidmap
        )
        copy = Layer(
            id=new_id(),
            created=codec.now(),
            parent=top.parent,
            mount_label=top.mount_label,
            in_image_store=top.in_image_store,
        )
        how = LayerOptions(template=top.id, uidmap=mappings.uids, gidmap=mappings.gids)
        base = self.layer_in(tx, top.parent) if top.parent else None
        with ExitStack() as undo:
            made = self.grow_layer(tx.layers, undo, copy, base, mappings, False, how)
            tx.layers.add(made)
            tx.layers.flush()
            undo.pop_all()
        tx.images.put(replace(image, mapped_layers=(*image.mapped_layers, made.id)))
        tx.images.flush()
        return made

    # -- automatic user namespaces ---------------------------------------------------------------

    def _automatic(self, tx: Transaction, wish: AutoUserNs, image: Image | None) -> IDMappings:
        user = self.options.root_auto_userns_user or DEFAULT_AUTO_USER
        size = wish.size or self._derived_size(tx, wish, image)
        uids = free_ranges(subordinate_ids(Path("/etc/subuid"), user), _used(tx.containers, "uidmap"))
        gids = free_ranges(subordinate_ids(Path("/etc/subgid"), user), _used(tx.containers, "gidmap"))
        return IDMappings(pack(size, uids, wish.additional_uidmap), pack(size, gids, wish.additional_gidmap))

    def _derived_size(self, tx: Transaction, wish: AutoUserNs, image: Image | None) -> int:
        size = max(wish.initial_size, 1, self.options.auto_userns_min_size)
        if image is not None and image.layer:
            size = max(size, self._ids_in_image(tx, image, wish))
        if size > self.options.auto_userns_max_size:
            raise NoAvailableIDs(
                f"the container needs a user namespace of {size} IDs, more than auto-userns-max-size allows "
                f"({self.options.auto_userns_max_size})"
            )
        return size

    def _ids_in_image(self, tx: Transaction, image: Image, wish: AutoUserNs) -> int:
        """One more than the highest ID in the image's layers and user databases, ``nobody`` aside."""
        highest = 0
        layer = self.layer_in(tx, image.layer)
        while layer is not None:
            highest = max(highest, *layer.uids, *layer.gids, 0)
            layer = self.layer_in(tx, layer.parent) if layer.parent else None
        with self.driver.mounted(image.layer) as root:
            for given, name, columns in (
                (wish.passwd_file, "etc/passwd", 2),
                (wish.group_file, "etc/group", 1),
            ):
                text = _read_host(given) if given else _read_inside(root, name)
                highest = max(highest, _highest_id(text, columns))
        return highest + 1


def _used(containers: Iterable[Container], which: str) -> list[Range]:
    maps: Iterable[IDMap] = (m for container in containers for m in getattr(container, which))
    return [Range(m.host_id, m.host_id + m.size) for m in maps]


def _read_host(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_DATABASE_MAX)
    except OSError:
        return ""


def _read_inside(root: Path, name: str) -> str:
    """A file of an image; empty without one. No link leads out of the image."""
    from drivers.syscalls import RESOLVE_IN_ROOT, openat2

    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = openat2(root_fd, name, os.O_RDONLY | os.O_NONBLOCK, resolve=RESOLVE_IN_ROOT)
    except OSError:
        return ""
    finally:
        os.close(root_fd)
    with open(fd, encoding="utf-8", errors="replace") as file:
        return file.read(_DATABASE_MAX)


def _highest_id(text: str, columns: int) -> int:
    """The highest number in a user database, nobody's aside; passwd(5) has two in a row, group(5) one."""
    rows = [line.split(":") for line in text.splitlines()]
    fields = [field for row in rows if row[0] not in _NOBODYS for field in row[2 : 2 + columns]]
    numbers = [int(field) for field in fields if field.isascii() and field.isdigit()]
    return max((number for number in numbers if number != NOBODY), default=0)
