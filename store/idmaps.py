"""ID mappings of layers and containers: inheritance, mapped image layers, automatic user namespaces.

The rules are containers/storage's: a layer takes the mappings asked for, else its parent's, else the
store's; a container over an image whose top layer has other owners gets a copy of that layer with the
owners shifted, which the image remembers in ``mapped-layers`` and other containers share.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from drivers.idmap import IDMap, IDMappings
from store import codec
from store.errors import InvalidMappings, LayerUnknown, NoAvailableIDs
from store.ids import new_id
from store.options import AutoUserNs, ContainerOptions, IDMapOptions, LayerOptions
from store.queries import Queries
from store.records import Container, Image, Layer

if TYPE_CHECKING:
    from store.core import Transaction
    from store.layers import LayerDraft

_NOBODY: Final = 65534
_MAX_ID: Final = 2**32 - 1
DEFAULT_AUTO_USER: Final = "containers"


class Range(NamedTuple):
    """Host IDs from ``start`` up to, but not including, ``end``."""

    start: int
    end: int


class AutomaticMappings(Queries):
    """How new layers and containers get their ID mappings."""

    def layer_mappings(self, options: IDMapOptions, base: Layer | None) -> IDMappings:
        """The mapping a new layer's owners have on disk.

        Raises:
            InvalidMappings
        """
        inherited = (
            base.mappings if base is not None else IDMappings(self.options.uidmap, self.options.gidmap)
        )
        mappings = IDMappings(
            () if options.host_uidmap else options.uidmap or inherited.uids,
            () if options.host_gidmap else options.gidmap or inherited.gids,
        )
        check_mappings(mappings)
        return IDMappings() if self.can_shift(mappings) else mappings

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
            layer = self._layer_in(tx, layer_id)
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

    def _layer_in(self, tx: Transaction, layer_id: str) -> Layer | None:
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
        copy = Layer(id=new_id(), created=codec.now(), parent=top.parent, mount_label=top.mount_label)
        how = LayerOptions(template=top.id, uidmap=mappings.uids, gidmap=mappings.gids)
        base = self._layer_in(tx, top.parent) if top.parent else None
        with ExitStack() as undo:
            made = self.grow_layer(tx.layers, undo, copy, base, mappings, False, how)
            tx.layers.add(made)
            tx.layers.flush()
            undo.pop_all()
        tx.images.put(replace(image, mapped_layers=(*image.mapped_layers, made.id)))
        tx.images.flush()
        return made

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
        """Make a layer's tree; see :class:`store.creation.Creations`."""
        raise NotImplementedError

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
        layer = self._layer_in(tx, image.layer)
        while layer is not None:
            highest = max(highest, *layer.uids, *layer.gids, 0)
            layer = self._layer_in(tx, layer.parent) if layer.parent else None
        with self.driver.mounted(image.layer) as root:
            for name in (wish.passwd_file or "etc/passwd", wish.group_file or "etc/group"):
                highest = max(highest, _highest_id(root, name.lstrip("/")))
        return highest + 1


def check_mappings(mappings: IDMappings) -> None:
    """Raise :class:`InvalidMappings` for empty or overlapping ranges."""
    for ranges in (mappings.uids, mappings.gids):
        for r in ranges:
            if (
                r.size <= 0
                or min(r.container_id, r.host_id) < 0
                or max(r.container_id, r.host_id) + r.size > _MAX_ID
            ):
                raise InvalidMappings(f"{r.container_id}:{r.host_id}:{r.size} is no range of IDs")
        for start in ("container_id", "host_id"):
            ordered = sorted((getattr(r, start), r.size) for r in ranges)
            for (low, size), (high, _) in itertools.pairwise(ordered):
                if low + size > high:
                    raise InvalidMappings(f"two ranges map the {start.replace('_', ' ')} {high}")


def parse_mapping(text: str) -> IDMap:
    """One range as people write it, ``CONTAINER:HOST:SIZE``.

    Raises:
        InvalidMappings
    """
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidMappings(f"{text!r} is no ID mapping; CONTAINER:HOST:SIZE in numbers is")
    result = IDMap(*(int(part) for part in parts))
    check_mappings(IDMappings((result,)))
    return result


def subordinate_ids(path: Path, user: str) -> list[Range]:
    """Ranges the file ``/etc/subuid`` or ``/etc/subgid`` gives ``user`` (subuid(5)), by name or number."""
    wanted = {user, *_other_names(user)}
    ranges = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in wanted and fields[1].isdigit() and fields[2].isdigit():
            ranges.append(Range(int(fields[1]), int(fields[1]) + int(fields[2])))
    return ranges


def _other_names(user: str) -> Iterator[str]:
    import pwd

    try:
        yield str(pwd.getpwnam(user).pw_uid)
    except KeyError:
        return


def free_ranges(available: Iterable[Range], used: Iterable[Range]) -> list[Range]:
    """What is left of ``available`` without ``used``, in ascending order."""
    free: list[Range] = []
    taken = sorted(used)
    for start, end in sorted(available):
        for low, high in taken:
            if high <= start or low >= end:
                continue
            if low > start:
                free.append(Range(start, low))
            start = max(start, high)
        if start < end:
            free.append(Range(start, end))
    return free


def pack(size: int, free: Iterable[Range], additional: tuple[IDMap, ...] = ()) -> tuple[IDMap, ...]:
    """Map container IDs from 0 up to ``size`` to free host IDs, around the ``additional`` mappings.

    Raises:
        NoAvailableIDs
    """
    hosts = free_ranges(free, [Range(m.host_id, m.host_id + m.size) for m in additional])
    inside = free_ranges(
        [Range(0, size)], [Range(m.container_id, m.container_id + m.size) for m in additional]
    )
    result = list(additional)
    for start, end in inside:
        while start < end:
            if not hosts:
                raise NoAvailableIDs(
                    f"{size} unused IDs are needed, {end - start} are lacking; see subuid(5)"
                )
            low, high = hosts.pop(0)
            count = min(end - start, high - low)
            result.append(IDMap(start, low, count))
            start += count
            if low + count < high:
                hosts.insert(0, Range(low + count, high))
    return tuple(sorted(result, key=lambda m: m.container_id))


def _used(containers: Iterable[Container], which: str) -> list[Range]:
    maps: Iterable[IDMap] = (m for container in containers for m in getattr(container, which))
    return [Range(m.host_id, m.host_id + m.size) for m in maps]


def _highest_id(root: Path, name: str) -> int:
    """The highest user or group number in a user database of an image; 0 without one."""
    from drivers.syscalls import RESOLVE_IN_ROOT, openat2

    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = openat2(root_fd, name, os.O_RDONLY | os.O_NONBLOCK, resolve=RESOLVE_IN_ROOT)
    except OSError:
        return 0
    finally:
        os.close(root_fd)
    with open(fd, encoding="utf-8", errors="replace") as file:
        fields = (line.rstrip("\n").split(":") for line in file.read(1 << 20).splitlines())
        numbers = [int(n) for f in fields for n in f[2:4] if n.isascii() and n.isdigit()]
    return max((n for n in numbers if n != _NOBODY), default=0)
