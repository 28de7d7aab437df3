"""Linux system calls the standard library lacks, errno-checked (the only importer of ``drivers._linux``).

Paths are ``str``, ``bytes`` or ``os.PathLike``; a failure is an ``OSError`` with errno and path.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers._linux import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers.idmap import IDMap, IDMappings

    AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

AT_FDCWD: int = lib.AT_FDCWD
AT_EMPTY_PATH: int = lib.AT_EMPTY_PATH
RESOLVE_NO_XDEV: int = lib.RESOLVE_NO_XDEV
RESOLVE_NO_MAGICLINKS: int = lib.RESOLVE_NO_MAGICLINKS
RESOLVE_NO_SYMLINKS: int = lib.RESOLVE_NO_SYMLINKS
RESOLVE_BENEATH: int = lib.RESOLVE_BENEATH
RESOLVE_IN_ROOT: int = lib.RESOLVE_IN_ROOT
RENAME_NOREPLACE: int = lib.RENAME_NOREPLACE
RENAME_EXCHANGE: int = lib.RENAME_EXCHANGE
MS_RDONLY: int = lib.MS_RDONLY
MS_BIND: int = lib.MS_BIND
MS_REC: int = lib.MS_REC
MS_PRIVATE: int = lib.MS_PRIVATE
MS_REMOUNT: int = lib.MS_REMOUNT
MNT_DETACH: int = lib.MNT_DETACH
AT_RECURSIVE: int = lib.AT_RECURSIVE
HAVE_MOUNT_SETATTR = bool(lib.HAVE_MOUNT_SETATTR)

_FIEMAP_BATCH = 64


def _checked(result: int, path: AnyPath | int | None = None) -> int:
    if result < 0:
        where = None if isinstance(path, int) or path is None else os.fsdecode(path)
        raise OSError(-result, os.strerror(-result), where)
    return result


def openat2(dirfd: int, path: AnyPath, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open ``path`` below ``dirfd`` under the RESOLVE_* rules (openat2(2)); always close-on-exec."""
    return _checked(lib.linux_openat2(dirfd, os.fsencode(path), flags, mode, resolve), path)


def renameat2(
    source: AnyPath, target: AnyPath, flags: int, *, source_fd: int = AT_FDCWD, target_fd: int = AT_FDCWD
) -> None:
    """Rename with ``RENAME_NOREPLACE`` or ``RENAME_EXCHANGE`` (renameat2(2))."""
    raw = os.fsencode(source), os.fsencode(target)
    _checked(lib.linux_renameat2(source_fd, raw[0], target_fd, raw[1], flags), target)


def statfs_type(fd: int) -> int:
    """The filesystem's magic number (statfs(2) ``f_type``)."""
    return _checked(lib.linux_statfs_type(fd))


def is_mount_root(path: AnyPath, dirfd: int = AT_FDCWD) -> bool:
    """Whether something is mounted exactly at ``path`` (statx(2) STATX_ATTR_MOUNT_ROOT, Linux 5.8)."""
    return bool(_checked(lib.linux_is_mount_root(dirfd, os.fsencode(path)), path))


def known_file(path: AnyPath) -> tuple[int, int, int]:
    """Device and inode number and type (``S_IFMT``) behind a magic link of ``/proc``, as far as known.

    Asks no server of a network or FUSE filesystem, which may never answer (statx(2) AT_STATX_DONT_SYNC).
    """
    major, minor, inode = ffi.new("unsigned *"), ffi.new("unsigned *"), ffi.new("uint64_t *")
    kind = _checked(lib.linux_known_file(os.fsencode(path), major, minor, inode), path)
    return os.makedev(major[0], minor[0]), inode[0], kind


def sync_filesystem(path: AnyPath) -> None:
    """Wait until everything written to the filesystem of ``path`` is on the disk (syncfs(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(lib.linux_syncfs(fd), path)
    finally:
        os.close(fd)


def start_writeback(fd: int) -> None:
    """Begin to write a file's data to the disk, and wait for nothing (sync_file_range(2)).

    A hint: that it failed shows when the data is waited for.
    """
    lib.linux_start_writeback(fd)


def mount(
    source: AnyPath, target: AnyPath, fstype: str | None = None, flags: int = 0, options: str | None = None
) -> None:
    """mount(2)."""
    kind = ffi.NULL if fstype is None else fstype.encode()
    data = ffi.NULL if options is None else os.fsencode(options)
    _checked(lib.linux_mount(os.fsencode(source), os.fsencode(target), kind, flags, data), target)


def umount(target: AnyPath, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(lib.linux_umount(os.fsencode(target), flags), target)


def clone_file(target_fd: int, source_fd: int) -> None:
    """Share all extents of ``source_fd`` with ``target_fd`` (FICLONE); EOPNOTSUPP where it cannot be."""
    _checked(lib.linux_clone_file(target_fd, source_fd))


def file_handle(dirfd: int, path: AnyPath, flags: int = 0) -> tuple[int, bytes, int]:
    """``(type, opaque bytes, mount ID)`` of a file (name_to_handle_at(2))."""
    buffer = ffi.new("char[]", lib.MAX_HANDLE_SZ)
    kind, mount_id = ffi.new("int *"), ffi.new("int *")
    size = _checked(
        lib.linux_file_handle(dirfd, os.fsencode(path), flags, buffer, len(buffer), kind, mount_id), path
    )
    return kind[0], bytes(ffi.buffer(buffer, size)), mount_id[0]


def open_handle(mount_fd: int, kind: int, handle: bytes, flags: int) -> int:
    """Open a file by handle (open_by_handle_at(2), CAP_DAC_READ_SEARCH); ESTALE when it is gone."""
    return _checked(lib.linux_open_handle(mount_fd, kind, handle, len(handle), flags))


@dataclass(frozen=True, slots=True)
class Extent:
    """One extent of a file; offsets and length in bytes, ``flags`` are FIEMAP_EXTENT_*."""

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def shared(self) -> bool:
        """Whether another file or snapshot refers to the same bytes."""
        return bool(self.flags & lib.FIEMAP_EXTENT_SHARED)

    @property
    def addressable(self) -> bool:
        """Whether ``physical`` names a place on the disk (neither inline nor delayed)."""
        return not self.flags & (lib.FIEMAP_EXTENT_DATA_INLINE | lib.FIEMAP_EXTENT_UNKNOWN)


def extents(fd: int) -> Iterator[Extent]:
    """Extents of a file in logical order, delayed ones written first (FIEMAP with SYNC)."""
    start, out = 0, ffi.new("uint64_t[]", 4 * _FIEMAP_BATCH)
    while True:
        count = _checked(lib.linux_fiemap(fd, start, out, _FIEMAP_BATCH))
        for i in range(count):
            extent = Extent(*out[4 * i : 4 * i + 4])
            yield extent
            if extent.flags & lib.FIEMAP_EXTENT_LAST:
                return
            start = extent.logical + extent.length
        if not count:
            return


# -- mounts ------------------------------------------------------------------------------------


def clone_tree(path: AnyPath) -> int:
    """A detached copy of the mount at ``path``, as a descriptor (open_tree(2) with OPEN_TREE_CLONE)."""
    return _checked(lib.linux_open_tree(AT_FDCWD, os.fsencode(path), lib.OPEN_TREE_CLONE), path)


def attach_tree(tree_fd: int, target: AnyPath) -> None:
    """Attach a detached mount at ``target`` (move_mount(2))."""
    _checked(lib.linux_move_mount(tree_fd, os.fsencode(target)), target)


def set_mount_attributes(
    mount_fd: int, *, read_only: bool = False, userns_fd: int | None = None, recursive: bool = False
) -> None:
    """Make a detached mount read-only, idmapped, or both (mount_setattr(2), Linux 5.12)."""
    attributes = lib.FSD_MOUNT_ATTR_RDONLY if read_only else 0
    if userns_fd is not None:
        attributes |= lib.FSD_MOUNT_ATTR_IDMAP
    flags = AT_RECURSIVE if recursive else 0
    _checked(lib.linux_mount_setattr(mount_fd, flags, attributes, 0, userns_fd or 0))


def open_user_namespace(mappings: IDMappings) -> int:
    """Descriptor of a new user namespace with ``mappings``; it lives as long as the descriptor.

    Each empty side maps every ID to itself. Needs CAP_SETUID and CAP_SETGID over the host IDs named.
    """
    release = ffi.new("int *")
    pid = _checked(lib.linux_userns_child(release))
    try:
        _write_map(f"/proc/{pid}/uid_map", mappings.uids)
        _write_map(f"/proc/{pid}/gid_map", mappings.gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(release[0])
        os.waitpid(pid, 0)


def _write_map(path: str, ranges: tuple[IDMap, ...]) -> None:
    lines = [f"{r.container_id} {r.host_id} {r.size}" for r in ranges] or [f"0 0 {2**32 - 1}"]
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, "\n".join(lines).encode())
    finally:
        os.close(fd)
