"""The btrfs graph driver: one subvolume per layer, a child is a snapshot of its parent.

Layout below ``home`` (FORMAT 1.2; ``fsd`` is ours, beside what other tools manage and clean)::

    subvolumes/<id>      a layer, always writable
    quotas/<id>          decimal bytes of a layer's limit, where one was asked for
    fsd/snapshots/<key>  read-only snapshots
    fsd/aside/<key>      layers set aside
    fsd/tmp/<name>       copies on their way to a name; a crash's are removed at the next open
    fsd/older/<name>     copies of what others are compared with; likewise
    fsd/mapped/<name>    mount points of idmapped views

The image store has ``subvolumes``, ``fsd/aside`` and ``fsd/tmp`` below its own ``btrfs``, for layers there.

A layer appears under its ID with everything set, or not at all: creation happens under the final name
only when a single ioctl does all of it, and is undone when a later step fails.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from drivers import btrfs_commits, btrfs_ioctl, selinux, syscalls
from drivers.base import DEFAULT_CREATION, DEFAULT_MOUNT, Capabilities, Driver, check_layer_id, first_with
from drivers.btrfs_aside import BtrfsAside
from drivers.btrfs_changes import BtrfsChanges
from drivers.btrfs_freed import freed
from drivers.btrfs_home import age, make_private, require_btrfs, require_same_filesystem
from drivers.btrfs_quota import Quotas
from drivers.btrfs_removal import Remover, destroy_tree
from drivers.btrfs_snapshots import BtrfsSnapshots
from drivers.btrfs_usage import Usage
from drivers.errors import (
    BadLayerID,
    BadOption,
    LayerExists,
    LayerMounted,
    LayerUnknown,
    NotSupported,
)
from drivers.options import parse_size, reject_unknown
from drivers.processes import is_alive, private_name
from drivers.shifting import MappedViews, update_id_map

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from drivers.base import Creation, DiskUsage, MountOptions, Ownership
    from drivers.idmap import IDMappings

_log = logging.getLogger(__name__)
_OPENED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SCRATCH_AGE = 60.0
"""Seconds a copy in ``fsd/tmp`` or ``fsd/older`` is left alone; a restore takes milliseconds."""


class BtrfsDriver(BtrfsChanges, Driver):
    """Layers as subvolumes of a btrfs filesystem.

    Options: ``min_space`` refuses limits below it, ``size`` limits every container's layer (bytes or with
    a unit, ``10g``). Either switches quotas on; nothing else does. ``imagestore`` names additional
    read-only image stores (graphroots on the same filesystem, separated by commas), which the original's
    driver lacks.
    """

    name: ClassVar[str] = "btrfs"
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshots=True, quota=True, shifting=True, native_changes=True, additional_stores=True
    )
    live_options: ClassVar[frozenset[str]] = frozenset({"min_space", "size", "imagestore"})

    def __init__(self, home: Path, options: Mapping[str, str] | None = None) -> None:
        super().__init__(home, options)
        _parse_options(self.options)
        require_btrfs(home)
        for split in self.homes[1:]:
            require_same_filesystem(home, split)
        self._prepare()
        self.quotas = Quotas(home)
        self.take_options(self.options)
        self.usage = Usage(self.quotas)
        self._remover = Remover(self.quotas)
        self._views = MappedViews(home / "fsd" / "mapped")
        self._views.sweep()
        self._snapshots = BtrfsSnapshots(self)
        self._uncommitted: set[str] = set()
        """Layers made or altered by us of which the disk need not know yet."""
        self._leading: set[str] = set()
        """Those of them that get to the disk before all that was done after them."""

    def take_options(self, options: Mapping[str, str]) -> None:
        """Use other options; see the base class. Quotas once switched on stay so."""
        min_space, size, stores = _parse_options(options)
        if min_space or size:
            self.quotas.enable()
        self.quotas.min_space, self._default_size, self._stores = min_space, size, stores

    # -- directories -------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.subvolumes = self.home / "subvolumes"
        self.scratch, self.older = self.home / "fsd" / "tmp", self.home / "fsd" / "older"
        self._directories = tuple(home / "subvolumes" for home in self.homes)
        for home in self.homes:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if home == self.home:
                make_private(home)
            (home / "subvolumes").mkdir(mode=0o700, exist_ok=True)
            self._prepare_scratch(home / "fsd" / "tmp")
        self._prepare_scratch(self.older)

    def _prepare_scratch(self, scratch: Path) -> None:
        try:
            scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep(scratch)
        except OSError as error:
            if error.errno != errno.EROFS:  # reading needs none of this
                raise

    def _sweep(self, scratch: Path) -> None:
        """Remove copies a crash left; a young one may be of a process this one cannot see."""
        for left in scratch.iterdir():
            if is_alive(left.name) or age(left) < _SCRATCH_AGE:
                continue
            try:
                destroy_tree(left)
            except OSError as error:  # no reason to keep anybody from the layers
                _log.warning("a temporary copy stays until the next start: %s", error)

    def scratch_path(self, layer: Path | None = None) -> Path:
        """A place for a temporary copy that no one else uses, from where it can be renamed to ``layer``."""
        scratch = self.scratch if layer is None else layer.parents[1] / "fsd" / "tmp"
        return scratch / private_name()

    def older_path(self) -> Path:
        """A place for a temporary copy in a directory where no other copies are made meanwhile."""
        return self.older / private_name()

    def path_of(self, layer_id: str) -> Path:
        """Where a layer of that ID is, or would be in ``home``; ``BadLayerID``."""
        check_layer_id(layer_id)
        return first_with(self._directories, layer_id)

    def present(self, layer_id: str) -> Path:
        """The directory of a layer that exists, here or in an additional store.

        Raises:
            BadLayerID, LayerUnknown
        """
        path = self.path_of(layer_id)
        for place in (path, *(store / self.name / "subvolumes" / layer_id for store in self._stores)):
            try:
                if stat.S_ISDIR(os.lstat(place).st_mode):
                    return place
            except (FileNotFoundError, NotADirectoryError):
                pass
        raise LayerUnknown(f"layer {layer_id} has no subvolume at {path}")

    @contextmanager
    def opened(self, layer_id: str) -> Iterator[int]:
        """A descriptor of the directory of a layer that exists; raises as :meth:`present`."""
        check_layer_id(layer_id)
        try:  # where most are, without a look before
            fd = os.open(f"{self._directories[0]}/{layer_id}", _OPENED)
        except OSError:
            fd = os.open(self.present(layer_id), _OPENED)
        try:
            yield fd
        finally:
            os.close(fd)

    # -- making and removing -----------------------------------------------------------------------

    def create(self, layer_id: str, parent: str | None = None, creation: Creation = DEFAULT_CREATION) -> None:
        """Make a layer: a new subvolume with mode 0555, or a snapshot of ``parent``."""
        source = None if parent is None else self.present(parent)
        self._create(layer_id, source, creation, self._requested_size(creation))

    def create_read_write(
        self, layer_id: str, parent: str | None = None, creation: Creation = DEFAULT_CREATION
    ) -> None:
        """Make a container's layer, limited to ``btrfs.size`` unless the creation says otherwise."""
        source = None if parent is None else self.present(parent)
        self._create(layer_id, source, creation, self._requested_size(creation) or self._default_size)

    def create_from_path(self, layer_id: str, source: Path, creation: Creation = DEFAULT_CREATION) -> None:
        """Make a layer that is a writable snapshot of the subvolume ``source``, whatever it is."""
        self._create(layer_id, source, creation, self._requested_size(creation))

    def create_from_template(
        self,
        layer_id: str,
        template: str,
        parent: str | None = None,
        creation: Creation = DEFAULT_CREATION,
        template_mappings: IDMappings | None = None,
    ) -> None:
        """Make a snapshot of ``template``; its owners are rewritten when the mappings differ."""
        if parent is not None:
            self.present(parent)
        self.create(layer_id, template, creation)
        if template_mappings is None or template_mappings == creation.mappings:
            return
        try:
            self.update_id_map(layer_id, template_mappings, creation.mappings)
        except BaseException:
            self._discard(layer_id, self.path_of(layer_id))
            raise

    def _requested_size(self, creation: Creation) -> int:
        if not creation.storage_opts:
            return 0
        reject_unknown("storage-opt", creation.storage_opts, {"size"})
        size = parse_size(creation.storage_opts.get("size", "0"))
        self.quotas.check(size)
        return size

    def _create(self, layer_id: str, source: Path | None, creation: Creation, size: int) -> None:
        path = self.path_of(layer_id)
        if creation.in_image_store and not os.path.lexists(path):
            path = self._directories[-1] / layer_id
        if source is None:
            made = self._make_aside(path, creation)
        else:
            made = path
            self._make_snapshot(path, source)
        if source is None or size or creation.mount_label:  # a mere snapshot is committed when it is made
            self._uncommitted.add(layer_id)
        try:
            if size:
                self.quotas.set_limit(layer_id, made, size)
            selinux.relabel(made, creation.mount_label)
            if made != path:
                self._put_in_place(made, path)
        except BaseException:
            self._discard(layer_id, made if os.path.lexists(made) else path)
            raise

    def _make_aside(self, path: Path, creation: Creation) -> Path:
        """An empty subvolume on its way to ``path``."""
        if os.path.lexists(path):
            raise LayerExists(f"layer {path.name} exists at {path}")
        made = self.scratch_path(path)
        made.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        btrfs_ioctl.create_subvolume(made.parent, made.name)
        try:
            os.chmod(made, 0o555)
            if creation.mappings:
                os.chown(made, *creation.mappings.root)
        except BaseException:
            destroy_tree(made)
            raise
        return made

    def _put_in_place(self, made: Path, path: Path) -> None:
        """Give a subvolume its name.

        When a subvolume is renamed btrfs writes no log before the next commit (``btrfs_set_log_full_commit``
        in ``btrfs_rename``): until then fsync(2) commits all there is, for everybody. So nothing that is done
        after it can be on the disk without it. Who is not privileged cannot move a directory that they may
        not write to; what is changed after the move may then come later.
        """
        try:
            syscalls.renameat2(made, path, syscalls.RENAME_NOREPLACE)
            self._leading.add(path.name)
        except FileExistsError:
            raise LayerExists(f"layer {path.name} exists at {path}") from None
        except PermissionError:
            os.chmod(made, 0o755)
            syscalls.renameat2(made, path, syscalls.RENAME_NOREPLACE)
            os.chmod(path, 0o555)

    def _make_snapshot(self, path: Path, source: Path) -> None:
        try:
            btrfs_ioctl.snapshot(source, path.parent, path.name)
        except btrfs_ioctl.BtrfsError as error:
            if error.errno == errno.EEXIST or os.path.lexists(path):
                raise LayerExists(f"layer {path.name} exists at {path}") from error
            if error.errno == errno.EXDEV:
                raise NotSupported(
                    f"{source} is on another filesystem than {path.parent}: no snapshot of it can be made"
                ) from error
            if error.errno == errno.EINVAL and not btrfs_ioctl.is_subvolume(source):
                raise LayerUnknown(f"{source} is a plain directory, not a subvolume") from error
            raise

    def idle(self, layer_id: str) -> Path:
        """The directory of a layer nothing is mounted at; ``LayerMounted``, ``LayerUnknown``."""
        path = self.path_of(layer_id)
        try:
            if self._views.is_mounted(layer_id) or syscalls.is_mount_root(path):
                raise LayerMounted(f"layer {layer_id} is mounted at {path}")
        except FileNotFoundError:
            raise LayerUnknown(f"layer {layer_id} has no subvolume at {path}") from None
        return path

    def _discard(self, layer_id: str, made: Path) -> None:
        """Remove what a failed creation made, so that its own error is the one that is seen."""
        destroy_tree(made)
        self._forget(layer_id)

    def _forget(self, layer_id: str) -> None:
        """Keep nothing about a layer that is gone."""
        self.quotas.forget(layer_id)
        self._uncommitted.discard(layer_id)
        self._leading.discard(layer_id)

    def settle(self, layer_id: str) -> None:
        """Commit, unless the layer is a snapshot as the kernel made it: that is on the disk already."""
        if layer_id in self._uncommitted:
            btrfs_ioctl.commit(self.subvolumes)
            self._uncommitted.discard(layer_id)
            self._leading.discard(layer_id)

    def precedes(self, layer_id: str, fd: int) -> bool:
        """Whether it was given its name by a rename, and the file is on the same filesystem."""
        if layer_id not in self._leading:
            return False
        return btrfs_commits.filesystem(fd) == btrfs_ioctl.filesystem_info(self.subvolumes).fsid

    def remove(self, layer_id: str) -> None:
        """Destroy the layer's subvolume, those nested in it, and then its qgroup.

        A disk quota or missing privilege does not keep a layer alive: where the ioctl is refused the
        content is deleted file by file. The layer is gone on return; the kernel may still be at work.
        """
        path = self.idle(layer_id)
        try:
            self._remover.remove(path, self.scratch_path(path))
        except FileNotFoundError:
            raise LayerUnknown(f"layer {layer_id} has no subvolume at {path}") from None
        self._forget(layer_id)
        self.usage.forget(layer_id)

    # -- using -------------------------------------------------------------------------------------

    def get(self, layer_id: str, mount: MountOptions = DEFAULT_MOUNT) -> Path:
        """The layer's subvolume; with mappings, an idmapped mount of it.

        ``ro`` is accepted and, without mappings, changes nothing: the subvolume itself is returned.
        """
        path = self.present(layer_id)
        unknown = [option for option in mount.options if option != "ro"]
        if unknown:
            raise BadOption(f"the btrfs driver has no mount options such as {unknown[0]!r}")
        self.quotas.reapply(layer_id, path)
        if not mount.mappings:
            return path
        return self._views.open(layer_id, path, mount.mappings, read_only="ro" in mount.options)

    def put(self, layer_id: str) -> None:
        """Release an idmapped mount; a plain layer needs nothing."""
        self._views.close(layer_id)

    def exists(self, layer_id: str) -> bool:
        """Whether the layer's subvolume is there, in an additional store too."""
        try:
            self.present(layer_id)
        except (BadLayerID, LayerUnknown):
            return False
        return True

    def additional_image_stores(self) -> Sequence[Path]:
        """Graphroots of the read-only stores given as ``imagestore``."""
        return self._stores

    def layer_ids(self) -> Iterator[str]:
        """Names of all directories in ``subvolumes``, also in the image store."""
        for directory in self._directories:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.name

    def status(self) -> list[tuple[str, str]]:
        """Kernel, filesystem features, sector size, quota mode and committed generation."""
        info = btrfs_ioctl.filesystem_info(self.subvolumes)
        features = Path(f"/sys/fs/btrfs/{info.fsid}/features")
        names = sorted(os.listdir(features)) if features.is_dir() else []
        return [
            ("Kernel", platform.release()),
            ("Filesystem", str(info.fsid)),
            ("Btrfs Features", " ".join(names)),
            ("Sector Size", str(info.sector_size)),
            ("Node Size", str(info.node_size)),
            ("Quota", self.quotas.mode().value),
            ("Generation", str(info.generation)),
        ]

    def metadata(self, layer_id: str) -> dict[str, str]:
        """The subvolume's path, ID, UUID and generation."""
        path = self.present(layer_id)
        info = btrfs_ioctl.subvolume_info(path)
        return {
            "Path": str(path),
            "Subvolume": str(info.id),
            "UUID": str(info.uuid),
            "Generation": str(info.generation),
        }

    def read_write_disk_usage(self, layer_id: str) -> DiskUsage:
        """Logical bytes and inodes, counted anew only when the subvolume's generation moved."""
        return self.usage.logical(layer_id, self.present(layer_id))

    def ownership(self, layer_id: str) -> Ownership:
        """Exclusive and shared bytes on disk; see :mod:`drivers.btrfs_usage` for the methods."""
        return self.usage.ownership(self.present(layer_id))

    def freed(
        self,
        layer_ids: Sequence[str],
        *,
        snapshots: Sequence[str] = (),
        aside: Sequence[str] = (),
        beside: str | None = None,
    ) -> Ownership:
        """By qgroup if it is one subvolume and can be, else by extents (:mod:`drivers.btrfs_freed`)."""
        roots = [self.present(layer_id) for layer_id in layer_ids]
        roots += [self._snapshots.path(key) for key in snapshots]
        roots += [self.aside().present(key) for key in aside]
        counted = self.usage.by_qgroup(roots[0]) if len(roots) == 1 else None
        return counted or freed(roots, None if beside is None else self.present(beside))

    def limit(self, layer_id: str) -> int:
        """The layer's limit in bytes, 0 without one."""
        self.present(layer_id)
        return self.quotas.limit(layer_id)

    def charged(self, layer_id: str) -> int | None:
        """Bytes the layer's qgroup counts; ``None`` without quotas."""
        counted = self.quotas.usage(self.present(layer_id))
        return None if counted is None else counted.referenced

    def set_limit(self, layer_id: str, size: int) -> None:
        """Limit the layer to ``size`` bytes; 0 lifts the limit. Switches quotas on when it must."""
        self.quotas.set_limit(layer_id, self.present(layer_id), size)

    def finish_removals(self) -> None:
        """Wait until the subvolumes of removed layers are destroyed (their space may return later)."""
        self._remover.wait()

    def cleanup(self) -> None:
        """Unmount idmapped views and the private bind mount of the home directory."""
        self.finish_removals()
        self._views.close_all()
        self.quotas.reap()
        try:
            syscalls.umount(self.home, syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise

    def update_id_map(self, layer_id: str, old: IDMappings, new: IDMappings) -> None:
        """Rewrite every owner in the layer, keeping set-ID bits, capabilities and ACLs."""
        self._uncommitted.add(layer_id)
        self._leading.discard(layer_id)
        update_id_map(self.present(layer_id), old, new)

    def supports_shifting(self) -> bool:
        """Whether an idmapped mount of the home directory can be made here."""
        return self._views.supported(self.subvolumes)

    def backlog(self) -> int | None:
        """Subvolumes the filesystem's cleaner has not got to yet (Linux 6.13)."""
        try:
            return btrfs_ioctl.queued_for_cleaning(self.subvolumes)
        except OSError:
            return None

    def snapshots(self) -> BtrfsSnapshots:
        """The snapshots below ``fsd/snapshots``."""
        return self._snapshots

    def aside(self) -> BtrfsAside:
        """The layers below ``fsd/aside``."""
        return BtrfsAside(self)

    def born_ns(self, layer_id: str) -> int:
        """When the layer's subvolume was made."""
        path = self.present(layer_id)
        if not btrfs_ioctl.is_subvolume(path):
            return super().born_ns(layer_id)
        return btrfs_ioctl.subvolume_info(path).created_ns


def _parse_options(options: Mapping[str, str]) -> tuple[int, int, tuple[Path, ...]]:
    """``min_space`` and ``size`` in bytes, and the additional stores; ``BadOption``."""
    reject_unknown(BtrfsDriver.name, options, BtrfsDriver.live_options)
    min_space = parse_size(options.get("min_space", "0"), "btrfs.min_space")
    size = parse_size(options.get("size", "0"), "btrfs.size")
    if 0 < size < min_space:
        raise BadOption(f"btrfs.size is less than btrfs.min_space ({min_space} bytes)")
    return min_space, size, tuple(Path(text) for text in options.get("imagestore", "").split(",") if text)
