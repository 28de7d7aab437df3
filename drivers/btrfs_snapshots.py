"""Read-only snapshots of btrfs layers, kept at ``<home>/fsd/snapshots/<key>``."""

from __future__ import annotations

import errno
import logging
import os
import threading
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl, syscalls
from drivers.base import DEFAULT_CREATION, check_layer_id
from drivers.btrfs_flush import Flusher
from drivers.btrfs_removal import destroy_tree, nested_places
from drivers.errors import BadLayerID, NotSupported, SnapshotExists, SnapshotUnknown
from drivers.snapshots import SnapshotFacts, Snapshots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers.base import Creation
    from drivers.btrfs import BtrfsDriver

_log = logging.getLogger(__name__)


class BtrfsSnapshots(Snapshots):
    """Snapshots of one driver's layers; each call is a few ioctls, whatever the layer's size."""

    def __init__(self, driver: BtrfsDriver) -> None:
        self._driver = driver
        self._root = driver.home / "fsd" / "snapshots"
        self._flusher = Flusher(driver.scratch_path, driver.discard_copy)
        self._directories = threading.Lock()
        """Keeps one thread from removing the directory another is about to use."""

    def take(self, layer_id: str, key: str) -> None:
        """Copy ``layer_id`` to the read-only snapshot ``key``; ``SnapshotExists``, ``LayerUnknown``."""
        self._copy(self._driver.present(layer_id), self._place(key), key)

    def home(self) -> Path:
        """The directory of all snapshots; made when it is missing."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._root

    def restore(self, key: str, layer_id: str) -> None:
        """Swap the layer for a writable copy of the snapshot in one rename.

        The swap is on the disk at return. A process that works in the old content keeps it until it
        lets go; ``LayerMounted`` when something is mounted at the layer, ``NotSupported`` when files are in
        subvolumes of its own, which would go with the old content and are in no snapshot.
        """
        source, target = self.path(key), self._driver.idle(layer_id)
        _refuse_losses(target)
        copy = self._driver.scratch_path(target)
        btrfs_ioctl.snapshot(source, copy.parent, copy.name)
        try:
            self._driver.quotas.reapply(layer_id, copy)
            self._remember(target, source)
            syscalls.renameat2(copy, target, syscalls.RENAME_EXCHANGE)
        except BaseException:
            destroy_tree(copy)
            raise
        self._commit()
        try:
            with self._driver.quotas.removing(copy):
                destroy_tree(copy)
        except OSError as error:  # the layer is restored; the next open tries again
            _log.warning("the replaced content of layer %s stays for now: %s", layer_id, error)

    def create_layer(self, key: str, layer_id: str, creation: Creation = DEFAULT_CREATION) -> None:
        """Make the new layer ``layer_id`` a writable copy of snapshot ``key``."""
        source = self.path(key)
        self._driver.create_from_path(layer_id, source, creation)
        self._remember(source)

    def remove(self, key: str) -> None:
        """Delete a snapshot, and the directory that held it when it was the last there."""
        path = self.path(key)
        with self._driver.quotas.removing(path):
            destroy_tree(path)
        with self._directories:
            self._prune(path.parent)

    def rename(self, key: str, new_key: str) -> None:
        """Give a snapshot another key, on the disk at return; ``SnapshotUnknown``, ``SnapshotExists``."""
        source, target = self.path(key), self._place(new_key)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if source.parent != target.parent:
            # The kernel refuses to move a read-only subvolume to another directory.
            self._copy(source, target, new_key)
            self._remember(source)
            self.remove(key)
            return
        try:
            syscalls.renameat2(source, target, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            raise SnapshotExists(f"snapshot {new_key} exists") from None
        self._commit()

    def exists(self, key: str) -> bool:
        """Whether the snapshot ``key`` is there."""
        try:
            return btrfs_ioctl.is_subvolume(self._place(key))
        except BadLayerID:
            return False

    def keys(self) -> Iterator[str]:
        """Every snapshot's key, in no particular order."""
        for entry in _directories(self._root):
            if btrfs_ioctl.is_subvolume(entry.path):
                yield entry.name
            else:
                inner = (item for item in _directories(entry.path) if btrfs_ioctl.is_subvolume(item.path))
                yield from (f"{entry.name}/{item.name}" for item in inner)

    def path(self, key: str) -> Path:
        """Directory of a snapshot's content; ``SnapshotUnknown``."""
        path = self._place(key)
        if not btrfs_ioctl.is_subvolume(path):
            raise SnapshotUnknown(f"there is no snapshot {key}")
        return path

    def describe(self, key: str) -> SnapshotFacts:
        """The creation time and content's generation in the snapshot's own root item."""
        info = btrfs_ioctl.subvolume_info(self.path(key))
        return SnapshotFacts(created_ns=info.created_ns, generation=info.ctransid)

    def generation(self, layer_id: str, *, settle: bool = True) -> int:
        """The last transaction that changed the content.

        That is ``ctransid``, which a snapshot inherits: taking one raises the source's ``generation``
        although nothing changed. Data not yet written may still raise it, hence ``settle``.
        """
        with self._driver.opened(layer_id) as fd:
            if settle:
                self._flusher.settle(fd)
            return btrfs_ioctl.ctransid(fd)

    def is_copy_of(self, key: str, layer_id: str) -> bool:
        """Whether the snapshot's parent is the layer's present subvolume."""
        copied = btrfs_ioctl.subvolume_info(self.path(key)).parent_uuid
        return copied == btrfs_ioctl.subvolume_info(self._driver.present(layer_id)).uuid

    def _place(self, key: str) -> Path:
        parts = key.split("/")
        if len(parts) > 2:
            raise BadLayerID(f"snapshot key {key!r} has more than two components")
        for part in parts:
            check_layer_id(part)
        return self._root.joinpath(*parts)

    def _copy(self, source: Path, target: Path, key: str) -> None:
        with self._directories:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                btrfs_ioctl.snapshot(source, target.parent, target.name, read_only=True)
            except btrfs_ioctl.BtrfsError as error:
                self._prune(target.parent)
                if error.errno == errno.EEXIST:
                    raise SnapshotExists(f"snapshot {key} exists") from error
                raise

    def _commit(self) -> None:
        """Have a rename on the disk; the content of what was renamed is, since it was made.

        Unlike a full sync this does not wait for the unwritten data of anybody else's files.
        """
        btrfs_ioctl.commit(self._driver.home)

    def _remember(self, *subvolumes: Path) -> None:
        """Keep the descent of subvolumes that may be gone while copies of them are not."""
        for subvolume in subvolumes:
            self._driver.origins.remember(btrfs_ioctl.subvolume_info(subvolume))

    def _prune(self, directory: Path) -> None:
        if directory == self._root:
            return
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise


def _refuse_losses(layer: Path) -> None:
    for place in nested_places(layer):
        with os.scandir(place) as entries:
            if next(entries, None) is not None:
                raise NotSupported(
                    f"/{place.relative_to(layer)} is a subvolume of its own, of which no snapshot has the "
                    "files; move them away, or delete it, and try again"
                )


def _directories(path: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
