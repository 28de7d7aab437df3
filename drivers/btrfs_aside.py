"""Layers set aside at ``<home>/fsd/aside/<group>/<id>``, where no other tool looks for them.

The subvolume itself is renamed, so that its ID, its qgroup with the limit, and its extents stay what
they are. Layers are writable: the kernel would not rename a read-only subvolume to another directory.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl, syscalls
from drivers.aside import Aside
from drivers.base import check_layer_id, first_with
from drivers.btrfs_removal import destroy_tree
from drivers.errors import BadLayerID, LayerExists, LayerUnknown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers.btrfs import BtrfsDriver


class BtrfsAside(Aside):
    """The layers one driver set aside."""

    def __init__(self, driver: BtrfsDriver) -> None:
        self._driver = driver
        self._roots = tuple(home / "fsd" / "aside" for home in driver.homes)

    def put(self, layer_id: str, key: str) -> None:
        """Rename a layer out of sight; the record of its limit is dropped, the limit itself stays."""
        source = self._driver.idle(layer_id)
        self._driver.present(layer_id)
        target = source.parents[1].joinpath("fsd", "aside", *_parts(key))
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._rename(source, target)
        self._driver.quotas.forget(layer_id)
        self._driver.usage.forget(layer_id)

    def take_back(self, key: str, layer_id: str) -> None:
        """Rename what was set aside into its place as a layer."""
        source, target = self.present(key), self._driver.path_of(layer_id)
        if os.path.lexists(target):
            raise LayerExists(f"{layer_id} exists at {target}")
        self._rename(source, source.parents[3] / "subvolumes" / layer_id)
        _remove_if_empty(source.parent)

    def discard(self, key: str) -> None:
        """Destroy what was set aside, and the group's directory with its last member."""
        path = self.present(key)
        with self._driver.quotas.removing(path):
            destroy_tree(path)
        _remove_if_empty(path.parent)

    def keys(self) -> Iterator[str]:
        """Every key; a group that vanishes meanwhile has none."""
        for root in self._roots:
            with suppress(FileNotFoundError):
                for group in list(root.iterdir()):
                    with suppress(FileNotFoundError, NotADirectoryError):
                        yield from [f"{group.name}/{path.name}" for path in group.iterdir()]

    def path(self, key: str) -> Path:
        """Where the content is, or would be."""
        return first_with(self._roots, os.path.join(*_parts(key)))

    def present(self, key: str) -> Path:
        """Directory of content that is there; ``LayerUnknown``."""
        path = self.path(key)
        if not path.is_dir():
            raise LayerUnknown(f"nothing is set aside as {key}")
        return path

    def _rename(self, source: Path, target: Path) -> None:
        try:
            syscalls.renameat2(source, target, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            raise LayerExists(f"{target.name} exists at {target}") from None
        except OSError as error:
            if error.errno == errno.EROFS and btrfs_ioctl.is_read_only(source):
                self._rename_read_only(source, target)
            else:
                raise

    def _rename_read_only(self, source: Path, target: Path) -> None:
        """Somebody marked the subvolume read-only; it is writable for the length of the rename."""
        btrfs_ioctl.set_read_only(source, False)
        moved = source
        try:
            syscalls.renameat2(source, target, syscalls.RENAME_NOREPLACE)
            moved = target
        finally:
            btrfs_ioctl.set_read_only(moved, True)


def _parts(key: str) -> list[str]:
    parts = key.split("/")
    if len(parts) != 2:
        raise BadLayerID(f"{key!r} is not a group and a layer ID")
    for part in parts:
        check_layer_id(part)
    return parts


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise
