"""Layers under other IDs: rewriting every owner, or mounting with the IDs shifted.

:func:`update_id_map` changes what is on the disk, as containers/storage does, and is what a store shared
with podman needs. :class:`MappedViews` mounts a layer whose owners on disk are container IDs so that they
appear as host IDs (mount_setattr(2), Linux 5.12, btrfs since 5.15): constant time, nothing is copied.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from drivers import syscalls
from drivers.errors import NotSupported
from drivers.idmap import IDMap, IDMappings, translate
from drivers.processes import is_alive, private_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CAPABILITY = "security.capability"
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_ACL_HEAD = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")  # tag, permissions, ID
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_CAPS_V3 = struct.Struct("<IIIIII")  # magic, two pairs of masks, root's host UID
_CAPS_REVISION_3 = 0x03000000
_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP)


# -- on disk -----------------------------------------------------------------------------------


def update_id_map(root: Path, old: IDMappings, new: IDMappings) -> None:
    """Rewrite the owners below ``root``, and ``root``'s own, from ``old`` to ``new`` mappings.

    Set-ID bits and file capabilities, which chown(2) drops, are put back; users and groups named in ACLs,
    and the root user of version 3 capabilities, are translated like owners. All owners are looked at
    before the first is changed. As in containers/storage an owner whose container ID is in no range of
    ``new`` becomes nobody, and what the host's root owns under ``old`` counts as the container's root's:
    that library leaves directories it made for an archive so (FORMAT 6.1).

    Raises:
        NotSupported: an owner is in no range of ``old``.
    """
    shift = _Shift(old, new)
    for entry in _walk(root):
        shift.owners(entry)
    for entry in _walk(root):
        shift.apply(entry)


class _Entry:
    """A file by the descriptor of its directory and its name, with its status."""

    __slots__ = ("directory", "name", "status")

    def __init__(self, directory: int, name: str, status: os.stat_result) -> None:
        self.directory, self.name, self.status = directory, name, status

    @property
    def path(self) -> str:
        """A path to the entry itself that no rename above it can redirect."""
        return f"/proc/self/fd/{self.directory}/{self.name}"


class _Shift:
    def __init__(self, old: IDMappings, new: IDMappings) -> None:
        self._old, self._new = old, new

    def owners(self, entry: _Entry) -> tuple[int, int]:
        owner = entry.status.st_uid, entry.status.st_gid
        try:
            inside = self._old.to_container(*owner)
        except ValueError as error:
            if owner != (0, 0):
                raise NotSupported(f"owner of {entry.name!r} cannot be shifted: {error}") from error
            inside = owner
        return self._new.to_host_or_nobody(*inside)

    def apply(self, entry: _Entry) -> None:
        owners = self.owners(entry)
        mode = entry.status.st_mode
        if stat.S_ISLNK(mode):
            os.chown(entry.name, *owners, dir_fd=entry.directory, follow_symlinks=False)
            return
        capability = _get(entry.path, _CAPABILITY)
        acls = {name: value for name in _ACLS if (value := _get(entry.path, name)) is not None}
        os.chown(entry.name, *owners, dir_fd=entry.directory, follow_symlinks=False)
        if mode & (stat.S_ISUID | stat.S_ISGID):
            os.chmod(entry.name, stat.S_IMODE(mode), dir_fd=entry.directory)
        if capability is not None:
            os.setxattr(entry.path, _CAPABILITY, self._capability(capability), follow_symlinks=False)
        for name, value in acls.items():
            self._put_acl(entry.path, name, value)

    def _put_acl(self, path: str, name: str, value: bytes) -> None:
        translated = self._acl(value)
        if translated != value:
            os.setxattr(path, name, translated, follow_symlinks=False)

    def _acl(self, value: bytes) -> bytes:
        out = bytearray(value[: _ACL_HEAD.size])
        for tag, permissions, identifier in _ACL_ENTRY.iter_unpack(value[_ACL_HEAD.size :]):
            if tag == _ACL_USER:
                identifier = self._named(identifier, user=True)
            elif tag == _ACL_GROUP:
                identifier = self._named(identifier, user=False)
            out += _ACL_ENTRY.pack(tag, permissions, identifier)
        return bytes(out)

    def _named(self, identifier: int, *, user: bool) -> int:
        # An ACL may name someone the mapping does not know; then the entry keeps naming nobody.
        old, new = (self._old.uids, self._new.uids) if user else (self._old.gids, self._new.gids)
        try:
            return translate(translate(identifier, old, to_host=False), new, to_host=True)
        except ValueError:
            return identifier

    def _capability(self, value: bytes) -> bytes:
        if len(value) != _CAPS_V3.size:
            return value
        magic, *masks, root = _CAPS_V3.unpack(value)
        if magic & 0xFF000000 != _CAPS_REVISION_3:
            return value
        return _CAPS_V3.pack(magic, *masks, self._named(root, user=True))


def _get(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def _walk(root: Path) -> Iterator[_Entry]:
    """Every file once, hard-linked ones too; one open descriptor per level, symbolic links not followed."""
    seen: set[tuple[int, int]] = set()
    fd = os.open(root, _DIRECTORY)
    stack = [(fd, iter([".", *os.listdir(fd)]))]
    try:
        while stack:
            directory, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                if name != ".":
                    inner = os.open(name, _DIRECTORY, dir_fd=directory)
                    stack.append((inner, iter(os.listdir(inner))))
            elif status.st_nlink > 1:
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            yield _Entry(directory, name, status)
    finally:
        for directory, _ in stack:
            os.close(directory)


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


# -- mounted -----------------------------------------------------------------------------------


class _View:
    __slots__ = ("count", "path")

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 1


class MappedViews:
    """Idmapped mounts of layers below one directory, counted per layer and mapping; thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._views: dict[tuple[str, IDMappings, bool], _View] = {}
        self._opened: dict[str, list[tuple[str, IDMappings, bool]]] = {}
        self._lock = threading.Lock()
        self._supported: bool | None = None

    def open(self, layer_id: str, source: Path, mappings: IDMappings, *, read_only: bool) -> Path:
        """Mount ``source`` with its IDs shifted by ``mappings``, or share the mount that does so already.

        Raises:
            NotSupported: the kernel or the filesystem has no idmapped mounts, or privilege is missing.
        """
        key = (layer_id, mappings, read_only)
        with self._lock:
            view = self._views.get(key)
            if view is None:
                view = self._views[key] = _View(self._mount(source, mappings, read_only))
            else:
                view.count += 1
            self._opened.setdefault(layer_id, []).append(key)
            return view.path

    def close(self, layer_id: str) -> None:
        """Undo the latest :meth:`open` of a layer; harmless when there is none."""
        with self._lock:
            keys = self._opened.get(layer_id)
            if not keys:
                return
            key = keys.pop()
            if not keys:
                del self._opened[layer_id]
            view = self._views[key]
            view.count -= 1
            if not view.count:
                del self._views[key]
                _unmount(view.path)

    def close_all(self) -> None:
        """Unmount every view."""
        with self._lock:
            for view in self._views.values():
                _unmount(view.path)
            self._views.clear()
            self._opened.clear()

    def is_mounted(self, layer_id: str) -> bool:
        """Whether a view of the layer is open in this process."""
        with self._lock:
            return layer_id in self._opened

    def supported(self, source: Path) -> bool:
        """Whether ``source`` can be mounted with shifted IDs here; tried once."""
        if self._supported is None:
            probe = IDMap(0, os.getuid(), 1), IDMap(0, os.getgid(), 1)
            try:
                os.close(_idmapped(source, IDMappings((probe[0],), (probe[1],)), read_only=True))
                self._supported = True
            except NotSupported:
                self._supported = False
        return self._supported

    def sweep(self) -> None:
        """Unmount views of processes that are gone; what is still busy stays."""
        with suppress(OSError):
            for left in self._directory.iterdir():
                if not is_alive(left.name):
                    _unmount(left)

    def _mount(self, source: Path, mappings: IDMappings, read_only: bool) -> Path:
        tree = _idmapped(source, mappings, read_only=read_only)
        try:
            target = self._directory / private_name()
            target.mkdir(mode=0o700, parents=True)
            try:
                syscalls.attach_tree(tree, target)
            except BaseException:
                target.rmdir()
                raise
            return target
        finally:
            os.close(tree)


def _idmapped(source: Path, mappings: IDMappings, *, read_only: bool) -> int:
    """A detached mount of ``source`` under ``mappings``, as a descriptor."""
    try:
        namespace = syscalls.open_user_namespace(mappings)
        try:
            tree = syscalls.clone_tree(source)
            try:
                syscalls.set_mount_attributes(tree, read_only=read_only, userns_fd=namespace)
            except BaseException:
                os.close(tree)
                raise
            return tree
        finally:
            os.close(namespace)
    except OSError as error:
        raise NotSupported(f"{source} cannot be mounted with shifted IDs: {error}") from error


def _unmount(path: Path) -> None:
    with suppress(FileNotFoundError):
        if syscalls.is_mount_root(path):
            syscalls.umount(path, syscalls.MNT_DETACH)
        path.rmdir()
