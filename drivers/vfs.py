"""The vfs graph driver: one plain directory per layer, a child is a full copy of its parent.

Works on any filesystem. Copies share blocks where the filesystem can (btrfs, xfs). Layout below ``home``
(FORMAT 1.4; ``fsd`` is ours)::

    dir/<id>        a layer
    fsd/<random>    a layer being made or deleted; a crash's are removed at the next open

The image store has the same two below its own ``vfs``.

A layer is copied under ``fsd`` and renamed to its ID when it is whole, and renamed back before it is
deleted, so none is ever seen half made or half gone.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from drivers import selinux, syscalls
from drivers.base import DEFAULT_CREATION, DEFAULT_MOUNT, Capabilities, Driver, check_layer_id, first_with
from drivers.copytree import copy_tree
from drivers.errors import BadLayerID, BadOption, LayerExists, LayerMounted, LayerUnknown
from drivers.naive import NaiveDiff
from drivers.options import parse_bool, reject_unknown
from drivers.shifting import update_id_map
from drivers.staging import Staging
from drivers.usage import tree_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from drivers.base import Creation, DiskUsage, MountOptions
    from drivers.idmap import IDMappings

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


class VfsDriver(NaiveDiff, Driver):
    """Layers as plain directories.

    Options: ``imagestore`` names additional read-only image stores (graphroots, separated by commas);
    ``ignore_chown_errors`` keeps going where an owner cannot be set, for users with a single ID.
    """

    name: ClassVar[str] = "vfs"
    capabilities: ClassVar[Capabilities] = Capabilities(reproduces_exact_diffs=True, additional_stores=True)
    live_options: ClassVar[frozenset[str]] = frozenset({"imagestore", "ignore_chown_errors"})

    def __init__(self, home: Path, options: Mapping[str, str] | None = None) -> None:
        super().__init__(home, options)
        self.take_options(self.options)
        self.layers = home / "dir"
        self._directories = tuple(own / "dir" for own in self.homes)
        for directory in self._directories:
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            self._staging(directory).sweep()

    def take_options(self, options: Mapping[str, str]) -> None:
        """Use other options; see the base class."""
        reject_unknown(self.name, options, {*self.live_options, "runroot"})
        self.ignore_chown_errors = parse_bool(
            options.get("ignore_chown_errors", "false"), "vfs.ignore_chown_errors"
        )
        self._stores = tuple(Path(text) for text in options.get("imagestore", "").split(",") if text)

    # -- directories -------------------------------------------------------------------------------

    def path_of(self, layer_id: str) -> Path:
        """Where a layer of that ID is, or would be in ``home``; ``BadLayerID``."""
        check_layer_id(layer_id)
        return first_with(self._directories, layer_id)

    def _staging(self, layers: Path) -> Staging:
        return Staging(layers.with_name("fsd"))

    def present(self, layer_id: str) -> Path:
        """The directory of a layer that exists here or in an additional store.

        Raises:
            BadLayerID, LayerUnknown
        """
        primary = self.path_of(layer_id)
        for place in (primary, *(store / self.name / "dir" / layer_id for store in self._stores)):
            if place.is_dir() and not place.is_symlink():
                return place
        raise LayerUnknown(f"layer {layer_id} has no directory {primary}")

    # -- making and removing -----------------------------------------------------------------------

    def create(self, layer_id: str, parent: str | None = None, creation: Creation = DEFAULT_CREATION) -> None:
        """Make a layer: an empty directory with mode 0555, or a copy of ``parent``."""
        reject_unknown("storage-opt", creation.storage_opts, ())
        self._create(layer_id, parent, creation)

    def create_from_template(
        self,
        layer_id: str,
        template: str,
        parent: str | None = None,
        creation: Creation = DEFAULT_CREATION,
        template_mappings: IDMappings | None = None,
    ) -> None:
        """Make a copy of ``template``; its owners are rewritten when the mappings differ."""
        reject_unknown("storage-opt", creation.storage_opts, ())
        if parent is not None:
            self.present(parent)
        shift = None if template_mappings in (None, creation.mappings) else template_mappings
        self._create(layer_id, template, creation, shift)

    def _create(
        self, layer_id: str, source: str | None, creation: Creation, shift_from: IDMappings | None = None
    ) -> None:
        path = self.path_of(layer_id)
        if os.path.lexists(path):
            raise LayerExists(f"layer {layer_id} exists at {path}")
        origin = None if source is None else self.present(source)
        path = self._directories[-1 if creation.in_image_store else 0] / layer_id
        with self._staging(path.parent).directory() as scratch:
            made = scratch / "layer"
            _fill(made, origin, creation)
            if shift_from is not None:
                update_id_map(made, shift_from, creation.mappings)
            selinux.relabel(made, creation.mount_label)
            _publish(made, path)

    def remove(self, layer_id: str) -> None:
        """Delete the layer's directory with everything in it."""
        path = self.path_of(layer_id)
        with self._staging(path.parent).directory() as scratch:
            try:
                with _movable(path, scratch / "layer"):
                    path.rename(scratch / "layer")
            except FileNotFoundError:
                raise LayerUnknown(f"layer {layer_id} has no directory {path}") from None
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise LayerMounted(f"something is mounted at {path}") from error

    # -- using -------------------------------------------------------------------------------------

    def get(self, layer_id: str, mount: MountOptions = DEFAULT_MOUNT) -> Path:
        """The layer's directory; ``ro`` is accepted and changes nothing.

        Raises:
            BadOption: any other mount option.
        """
        unknown = [option for option in mount.options if option != "ro"]
        if unknown:
            raise BadOption(f"the vfs driver has no mount options such as {unknown[0]!r}")
        return self.present(layer_id)

    def put(self, layer_id: str) -> None:
        """Nothing: a layer's directory is always there."""

    def exists(self, layer_id: str) -> bool:
        """Whether the layer's directory is there, in an additional store too."""
        try:
            self.present(layer_id)
        except (BadLayerID, LayerUnknown):
            return False
        return True

    def layer_ids(self) -> Iterator[str]:
        """Names of all directories in ``dir``, also in the image store."""
        for directory in self._directories:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.name

    def status(self) -> list[tuple[str, str]]:
        """The kernel's number of the filesystem below, and whether copies share blocks there."""
        fd = os.open(self.layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            magic = syscalls.statfs_type(fd)
        finally:
            os.close(fd)
        return [("Backing Filesystem", f"0x{magic:x}"), ("Reflink Copies", str(self._shares()).lower())]

    def _shares(self) -> bool:
        """Try it: clone a page from one unnamed file to another."""
        flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        fds = []
        try:
            fds = [os.open(self.layers, flags, 0o600) for _ in range(2)]
            os.write(fds[0], bytes(4096))
            syscalls.clone_file(fds[1], fds[0])
        except OSError:
            return False
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def metadata(self, layer_id: str) -> dict[str, str]:
        """The layer's directory."""
        return {"Path": str(self.present(layer_id))}

    def read_write_disk_usage(self, layer_id: str) -> DiskUsage:
        """Bytes and inodes of the whole layer; what it shares with its parent is counted as well."""
        return tree_usage(self.present(layer_id))

    def additional_image_stores(self) -> Sequence[Path]:
        """Graphroots of the read-only stores given as ``imagestore``."""
        return self._stores

    def update_id_map(self, layer_id: str, old: IDMappings, new: IDMappings) -> None:
        """Rewrite every owner in the layer, keeping set-ID bits, capabilities and ACLs."""
        update_id_map(self.path_of(layer_id), old, new)


def _fill(made: Path, origin: Path | None, creation: Creation) -> None:
    made.mkdir(mode=0o700)
    if origin is not None:
        copy_tree(origin, made)
        return
    made.chmod(0o555)
    if creation.mappings:
        os.chown(made, *creation.mappings.root)


def _publish(made: Path, path: Path) -> None:
    """Give a whole layer its ID; an empty directory of that name does not count as free."""
    try:
        with _movable(made, path):
            syscalls.renameat2(made, path, syscalls.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno in _TAKEN:
            raise LayerExists(f"layer {path.name} exists at {path}") from error
        raise


@contextmanager
def _movable(made: Path, path: Path) -> Iterator[None]:
    """Let an ordinary user move a directory: its ``..`` changes, so it has to be writable (rename(2))."""
    mode = stat.S_IMODE(made.stat().st_mode)
    if mode & stat.S_IWUSR or os.geteuid() == 0:
        yield
        return
    made.chmod(mode | stat.S_IWUSR)
    yield
    path.chmod(mode)
