"""The overlay graph driver: a layer keeps what it changes, and a mount puts the layers together.

The layout is containers/storage's (FORMAT 1.3; :mod:`drivers.overlay_links` draws it). A layer is built
under ``fsd`` in ``home`` and renamed to its ID when it is whole; that directory is there only meanwhile.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from drivers import selinux, syscalls
from drivers.archive import apply_archive
from drivers.base import (
    DEFAULT_CREATION,
    DEFAULT_MOUNT,
    Capabilities,
    Driver,
    MountOptions,
    check_layer_id,
    first_with,
)
from drivers.changes import directory
from drivers.copytree import has_entry_types
from drivers.errors import (
    BadLayerID,
    IncompatibleFilesystem,
    LayerExists,
    LayerMounted,
    LayerUnknown,
    NotSupported,
    PrerequisitesMissing,
)
from drivers.idmap import IDMappings
from drivers.naive import NaiveDiff
from drivers.options import reject_unknown
from drivers.overlay_changes import upper_changes
from drivers.overlay_features import Features, filesystem_name
from drivers.overlay_layers import (
    AdditionalLayer,
    additional_layer_path,
    find_additional_layer,
    refer_to,
)
from drivers.overlay_links import (
    LINKS,
    MAX_DEPTH,
    RESERVED,
    LayerPlace,
    layer_names,
    make_link,
    new_link,
)
from drivers.overlay_mount import is_mounted, make_private
from drivers.overlay_options import LIVE, parse_options, reject_quota, with_live
from drivers.overlay_upper import OVERRIDE, BaseUpper, Upper, copy_attributes
from drivers.overlay_views import Views, stored_unshifted
from drivers.shifting import update_id_map
from drivers.staging import Staging
from drivers.usage import tree_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from drivers.base import Applied, Change, Creation, DiskUsage
    from drivers.beneath import Beneath

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


class OverlayDriver(NaiveDiff, Driver):
    """Layers as upper directories of overlay mounts.

    Options are those of containers/storage: ``mountopt``, ``mount_program``, ``skip_mount_home``,
    ``force_mask``, ``ignore_chown_errors``, ``imagestore``, ``additionallayerstore``; ``runroot`` says where
    mount points of foreign layers and remembered probes go. ``size`` and ``inodes`` are refused.
    """

    name: ClassVar[str] = "overlay"
    capabilities: ClassVar[Capabilities] = Capabilities(
        shifting=True, native_changes=True, reproduces_exact_diffs=True, additional_stores=True
    )
    live_options: ClassVar[frozenset[str]] = LIVE

    def __init__(self, home: Path, options: Mapping[str, str] | None = None) -> None:
        home = home.absolute()
        super().__init__(home, options)
        self._settings = parse_options(self.options)
        self.homes = (home, *(split.absolute() for split in self.homes[1:]))
        self.ignore_chown_errors = self._settings.ignore_chown_errors
        self._prepare()
        self._staging = Staging(home / "fsd")
        for own in self.homes:
            Staging(own / "fsd").sweep()
        self.features = Features(self._staging, self._flags(), self._settings.mountopt)
        self._require_overlay()
        if not self._settings.skip_mount_home:
            make_private(home)
        self._views = Views(self.homes, self._settings, self._staging)

    # -- opening -----------------------------------------------------------------------------------

    def take_options(self, options: Mapping[str, str]) -> None:
        """Use other options; see the base class."""
        self._settings = self._views.options = with_live(self._settings, parse_options(options))
        self.ignore_chown_errors = self._settings.ignore_chown_errors

    def _prepare(self) -> None:
        for home in self.homes:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            (home / LINKS).mkdir(mode=0o755, exist_ok=True)
        flag, text = self.home / ".has-mount-program", str(bool(self._settings.mount_program)).lower()
        if not flag.exists() or flag.read_text() != text:
            scratch = flag.with_name(f".tmp-{flag.name}{os.urandom(4).hex()}")
            scratch.touch(mode=0o600)
            scratch.write_text(text)
            scratch.rename(flag)

    def _flags(self) -> Path | None:
        if self._settings.runroot is None:
            return None
        flags = self._settings.runroot / self.name
        flags.mkdir(mode=0o700, parents=True, exist_ok=True)
        return flags

    def _require_overlay(self) -> None:
        if not has_entry_types(self.home):
            raise IncompatibleFilesystem(
                f"{filesystem_name(self.home)} at {self.home} keeps no file types in directories "
                "(on xfs: made with ftype=0); overlay needs them"
            )
        if self._settings.mount_program:
            return
        if not self.features.overlay():
            raise PrerequisitesMissing(
                f"overlay cannot be mounted over {filesystem_name(self.home)} at {self.home}: "
                f"{self.features.failure or 'an earlier attempt failed'}"
            )
        if self._settings.runroot is not None:
            self.features.metacopy()
            self.features.native_diff()

    # -- directories -------------------------------------------------------------------------------

    def path_of(self, layer_id: str) -> Path:
        """Where a layer of that ID is, or would be in ``home``; ``BadLayerID``."""
        check_layer_id(layer_id)
        if layer_id in RESERVED or layer_id.startswith("."):
            raise BadLayerID(f"layer ID {layer_id!r} is a name the overlay driver uses itself")
        return first_with(self.homes, layer_id)

    def place(self, layer_id: str) -> LayerPlace:
        """The directories of a layer, wherever it is; ``BadLayerID``, ``LayerUnknown``."""
        primary = self.path_of(layer_id)
        for home in self._views.homes():
            directory = home / layer_id
            if (directory / "link").is_file() and not directory.is_symlink():
                return LayerPlace(directory, home, home != self.home)
        raise LayerUnknown(f"layer {layer_id} has no directory {primary}")

    def _target(self, place: LayerPlace) -> Path:
        if not place.additional:
            return place.merged
        run = self._settings.runroot or Path("/run/fsd")
        return run / self.name / "views" / place.directory.name / "merged"

    # -- making and removing -----------------------------------------------------------------------

    def create(self, layer_id: str, parent: str | None = None, creation: Creation = DEFAULT_CREATION) -> None:
        """Make a layer: a base whose root has mode 0555, or an empty upper directory over ``parent``.

        Raises:
            NotSupported: a ``size`` was asked for, or ``parent`` has more layers than a mount takes.
        """
        _check_storage_options(creation)
        self._create(layer_id, parent, creation)

    def _create(
        self, layer_id: str, parent: str | None, creation: Creation, served: AdditionalLayer | None = None
    ) -> None:
        path = self.path_of(layer_id)
        if os.path.lexists(path):
            raise LayerExists(f"layer {layer_id} exists at {path}")
        below = None if parent is None else self.place(parent)
        home = self.homes[-1 if creation.in_image_store else 0]
        path, link = home / layer_id, new_link()
        with Staging(home / "fsd").directory() as scratch:
            made = scratch / "layer"
            self._build(made, link, below, creation)
            if served is not None:
                refer_to(served, made)
            make_link(home, link, layer_id)
            try:
                _publish(made, path)
            except BaseException:
                (home / LINKS / link).unlink()
                raise

    def _build(self, made: Path, link: str, below: LayerPlace | None, creation: Creation) -> None:
        for name in (made, made / "diff", made / "work", made / "merged"):
            name.mkdir(mode=0o700)
        _write(made / "link", link)
        if below is None:
            (made / "empty").mkdir(mode=0o700)
        else:
            lower = [f"{LINKS}/{below.link()}", *below.lower()]
            if len(lower) >= MAX_DEPTH:
                raise NotSupported(
                    f"{below.directory.name} has {len(lower)} layers, {MAX_DEPTH} can be mounted"
                )
            _write(made / "lower", ":".join(lower))
        self._set_root(made / "diff", below, creation.mappings)
        selinux.relabel(made / "diff", creation.mount_label)

    def _set_root(self, root: Path, below: LayerPlace | None, mappings: IDMappings) -> None:
        """Owner, mode, attributes and times of a new layer's root: the parent's, or a base's."""
        if below is None:
            owner, mode = mappings.root, 0o555
        else:
            status = below.diff.stat()
            owner, mode = (status.st_uid, status.st_gid), status.st_mode & 0o7777
            if mappings and stored_unshifted(below, mappings):
                owner = mappings.root
        os.chown(root, *owner)
        forced = self._settings.force_mask
        root.chmod(mode if forced is None else forced)
        if below is not None:
            copy_attributes(below.diff, root)
        if forced is not None and OVERRIDE not in os.listxattr(root):
            os.setxattr(root, OVERRIDE, f"{owner[0]}:{owner[1]}:0{mode:o}".encode())

    def create_from_template(
        self,
        layer_id: str,
        template: str,
        parent: str | None = None,
        creation: Creation = DEFAULT_CREATION,
        template_mappings: IDMappings | None = None,
    ) -> None:
        """Make a layer over ``template``; where the mappings differ, all of it is copied up and shifted."""
        if parent is not None:
            self.place(parent)
        self.create(layer_id, template, replace(creation, mappings=IDMappings()))
        if template_mappings is None or template_mappings == creation.mappings:
            return
        try:
            self.update_id_map(layer_id, template_mappings, creation.mappings)
        except BaseException:
            self.remove(layer_id)
            raise

    def remove(self, layer_id: str) -> None:
        """Delete a layer's directory and link; layers over it cannot be mounted any more.

        Raises:
            LayerMounted: as far as this mount namespace can see.
        """
        place = self.place(layer_id)
        if place.home not in self.homes:
            raise LayerUnknown(f"layer {layer_id} is in the read-only store {place.home.parent}")
        for target in (place.merged, self._target(place)):
            if is_mounted(target):
                raise LayerMounted(f"layer {layer_id} is mounted at {target}")
        link, foreign = place.link(), additional_layer_path(place)
        with Staging(place.home / "fsd").directory() as scratch:
            _take_away(place.directory, scratch / "layer")
            (place.home / LINKS / link).unlink(missing_ok=True)
        if foreign is not None:
            AdditionalLayer(Path(foreign)).release()

    # -- using -------------------------------------------------------------------------------------

    def get(self, layer_id: str, mount: MountOptions = DEFAULT_MOUNT) -> Path:
        """Mount the layer over those below it, or share the mount that is there.

        Mount options are added to those the driver was configured with. With mappings the layers below
        are shifted while they are mounted; the layer itself too unless it was made for the mappings.
        """
        return self._views.open(place := self.place(layer_id), self._target(place), mount)

    def put(self, layer_id: str) -> None:
        """Let go of the mount; the last one to do so unmounts it."""
        try:
            place = self.place(layer_id)
        except LayerUnknown:
            return
        self._views.close(self._target(place))

    def exists(self, layer_id: str) -> bool:
        """Whether the layer's directory is there, in an additional store too."""
        try:
            self.place(layer_id)
        except (BadLayerID, LayerUnknown):
            return False
        return True

    def layer_ids(self) -> Iterator[str]:
        """Names of all layer directories, also in the image store."""
        for home in self.homes:
            yield from layer_names(home)

    def status(self) -> list[tuple[str, str]]:
        """What containers/storage prints: the filesystem below, and what the mounts can do."""
        return [
            ("Backing Filesystem", filesystem_name(self.home)),
            ("Supports d_type", str(has_entry_types(self.home)).lower()),
            ("Native Overlay Diff", str(self._native()).lower()),
            ("Using metacopy", str(self._using_metacopy()).lower()),
        ]

    def _native(self) -> bool:
        return not self._settings.mount_program and self.features.native_diff()

    def _using_metacopy(self) -> bool:
        return not self._settings.mount_program and self.features.metacopy()

    def metadata(self, layer_id: str) -> dict[str, str]:
        """The layer's directories, under containers/storage's names."""
        place = self.place(layer_id)
        facts = {
            "MergedDir": str(self._target(place)),
            "UpperDir": str(place.diff),
            "WorkDir": str(place.directory / "work"),
        }
        if lower := self._views.lower_paths(place):
            facts["LowerDir"] = ":".join(map(str, lower))
        return facts

    def read_write_disk_usage(self, layer_id: str) -> DiskUsage:
        """Bytes and inodes of the layer's own upper directory."""
        return tree_usage(self.place(layer_id).diff)

    def cleanup(self) -> None:
        """Unmount the private bind mount of ``home``, unless something is still mounted below it."""
        if self._settings.skip_mount_home:
            return
        try:
            syscalls.umount(self.home)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM, errno.EBUSY):
                raise

    def additional_image_stores(self) -> Sequence[Path]:
        """Graphroots of the read-only stores given as ``imagestore``."""
        return self._settings.image_stores

    def update_id_map(self, layer_id: str, old: IDMappings, new: IDMappings) -> None:
        """Rewrite every owner the layer shows, which copies up what it has from below."""
        place = self.place(layer_id)
        if place.additional:  # others see such a layer read-only
            view = self._views.private(replace(place, additional=False), DEFAULT_MOUNT)
        else:
            view = self.mounted(layer_id)
        with view as tree:
            update_id_map(tree, old, new)

    def supports_shifting(self) -> bool:
        """Whether a layer below may be mounted with shifted IDs here."""
        return not self._settings.mount_program and self.features.idmapped_lower()

    # -- differences -------------------------------------------------------------------------------

    def changes(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> list[Change]:
        """What the layer changes, from its upper directory where ``parent`` is the layer right below it."""
        if parent is None or not self._lies_on(layer_id, parent):
            return super().changes(layer_id, parent, mappings, parent_mappings)
        with ExitStack() as mounts:
            new, old = self._read_only(mounts, layer_id), self._read_only(mounts, parent)
            return upper_changes(self.place(layer_id).diff, new, old, mappings, parent_mappings)

    def _lies_on(self, layer_id: str, parent: str) -> bool:
        place = self.place(layer_id)
        if self._settings.mount_program or any(place.rotated()):
            return False
        return place.lower()[:1] == [f"{LINKS}/{self.place(parent).link()}"]

    def apply_diff(
        self,
        layer_id: str,
        archive: BinaryIO,
        *,
        mappings: IDMappings | None = None,
        tar_split: BinaryIO | None = None,
    ) -> Applied:
        """Unpack into the layer's upper directory; through the mount while there is one."""
        place = self.place(layer_id)
        mounted = is_mounted(self._target(place))
        if mounted and place.additional:
            raise LayerMounted(f"layer {layer_id} is mounted, and layers of an image store are so read-only")
        if mounted or any(place.rotated()):
            return super().apply_diff(layer_id, archive, mappings=mappings, tar_split=tar_split)
        with ExitStack() as stack:
            upper = stack.enter_context(directory(place.diff))
            return apply_archive(
                upper,
                archive,
                mappings=mappings,
                tar_split=tar_split,
                beneath=self._beneath(place, upper, mappings or IDMappings(), stack),
                ignore_chown_errors=self.ignore_chown_errors,
            )

    def _beneath(self, place: LayerPlace, upper: int, mappings: IDMappings, stack: ExitStack) -> Beneath:
        below = self._views.below(place)
        if below is None:
            return BaseUpper(self._settings.force_mask)
        shift = mappings if mappings and stored_unshifted(below, mappings) else IDMappings()
        view = self._views.private(below, MountOptions(options=("ro",), mappings=shift))
        lower = stack.enter_context(directory(stack.enter_context(view)))
        return Upper(upper, lower, self._settings.force_mask)

    def _read_only(self, mounts: ExitStack, layer_id: str) -> Path:
        """A mount of its own, so that nobody who mounts the layer to write meets a read-only one."""
        place = self.place(layer_id)
        if is_mounted(self._target(place)):
            return super()._read_only(mounts, layer_id)
        return mounts.enter_context(self._views.private(place, MountOptions(options=("ro",))))

    # -- layers of an additional layer store -------------------------------------------------------

    def find_additional_layer(self, digest: str, reference: str) -> AdditionalLayer | None:
        """A layer by its digest in the additional layer stores; ``None`` if no store serves it."""
        return find_additional_layer(self._settings.layer_stores, digest, reference)

    def served_by(self, layer_id: str) -> AdditionalLayer | None:
        """Where an adopted layer has its content; ``None`` if that is its own."""
        path = additional_layer_path(self.place(layer_id))
        return AdditionalLayer(Path(path)) if path else None

    def adopt(
        self,
        layer: AdditionalLayer,
        layer_id: str,
        parent: str | None = None,
        creation: Creation = DEFAULT_CREATION,
    ) -> None:
        """Make a layer of ours whose content stays in its store, which counts us as a user."""
        layer.use()
        try:
            self._create(layer_id, parent, creation, layer)
        except BaseException:
            layer.release()
            raise


def _check_storage_options(creation: Creation) -> None:
    reject_unknown("storage-opt", creation.storage_opts, {"size", "inodes"})
    for key, value in creation.storage_opts.items():
        reject_quota(key, value)


def _write(path: Path, text: str) -> None:
    """Write and sync: a layer whose link came back empty after a power failure could not be mounted."""
    with path.open("x", encoding="ascii") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
        file.flush()
        os.fsync(file.fileno())


def _publish(made: Path, path: Path) -> None:
    try:
        syscalls.renameat2(made, path, syscalls.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno in _TAKEN:
            raise LayerExists(f"layer {path.name} exists at {path}") from error
        raise


def _take_away(directory: Path, target: Path) -> None:
    try:
        directory.rename(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise LayerMounted(f"something is mounted at {directory}") from error
