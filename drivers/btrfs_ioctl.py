"""btrfs ioctls as typed, errno-checked functions (the only importer of ``drivers._btrfs``).

A function that works on a subvolume takes an open descriptor or a path; one that makes or removes a name
takes the directory that holds it and the name. Every failure is a :class:`BtrfsError`, an ``OSError`` that
also says which ioctl failed. Numbers and layouts come from ``<linux/btrfs.h>``; the behaviour is that of
btrfs-ioctl(2) and of ``fs/btrfs/ioctl.c``. Sizes are bytes, generations are btrfs transaction numbers.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from drivers import btrfs_commits, syscalls
from drivers._btrfs import ffi as ffi
from drivers._btrfs import lib as lib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Place = int | str | bytes | os.PathLike[str] | os.PathLike[bytes]

SUPER_MAGIC: int = lib.BTRFS_SUPER_MAGIC
ROOT_INODE: int = lib.BTRFS_FIRST_FREE_OBJECTID
"""Inode number of every subvolume's root directory: 256."""
NAME_MAX = 255
"""Bytes a name can have (``BTRFS_NAME_LEN``)."""
LIMIT_REFERENCED: int = lib.BTRFS_QGROUP_LIMIT_MAX_RFER
HAVE_SIMPLE_QUOTA = bool(lib.HAVE_SIMPLE_QUOTA)
HAVE_SEND_VERSION = bool(lib.HAVE_SEND_VERSION)

_CLEANER_POLL = 0.05
"""Seconds between two looks at what the cleaner has left."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class BtrfsError(OSError):
    """A btrfs ioctl failed: errno, text with the ioctl's name, and the path when one is known."""


def checked(result: int, ioctl: str, place: Place | None = None) -> int:
    """``result`` unless it is ``-errno``, which becomes a :class:`BtrfsError`."""
    if result < 0:
        path = None if place is None or isinstance(place, int) else os.fsdecode(place)
        raise BtrfsError(-result, f"{ioctl}: {os.strerror(-result)}", path)
    return result


def call(fd: int, ioctl: str, argument: Any, place: Place | None = None) -> int:
    """Issue one ioctl by name; :class:`BtrfsError` when it fails."""
    return checked(lib.btrfs_call(fd, getattr(lib, ioctl), argument), ioctl, place)


@contextmanager
def opened(place: Place, flags: int = _DIRECTORY) -> Iterator[int]:
    """A descriptor of ``place``; one that was given stays open, one opened here is closed."""
    if isinstance(place, int):
        yield place
        return
    fd = os.open(place, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _name(name: str | bytes) -> bytes:
    raw = os.fsencode(name)
    if not raw or b"/" in raw or b"\0" in raw or raw in (b".", b".."):
        raise BtrfsError(errno.EINVAL, f"{os.fsdecode(raw)!r} is not a name a subvolume can have")
    if len(raw) > NAME_MAX:
        raise BtrfsError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), os.fsdecode(raw))
    return raw


# -- what a place is ---------------------------------------------------------------------------


def is_btrfs(place: Place) -> bool:
    """Whether ``place`` is on btrfs (statfs(2) magic 0x9123683E)."""
    with opened(place, os.O_RDONLY | os.O_CLOEXEC) as fd:
        return syscalls.statfs_type(fd) == SUPER_MAGIC


def is_subvolume(place: Place) -> bool:
    """Whether ``place`` is the root of a subvolume: a directory with inode 256, on btrfs.

    A symbolic link is not followed. An inode number alone proves nothing elsewhere than on btrfs.
    """
    try:
        status = os.stat(place) if isinstance(place, int) else os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_ino == ROOT_INODE and is_btrfs(place)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubvolumeInfo:
    """BTRFS_IOC_GET_SUBVOL_INFO: ``generation`` is the last commit that changed the subvolume,
    ``ctransid`` the last that changed its root item, ``parent_id`` the subvolume it is nested in,
    ``parent_uuid`` the one it is a snapshot of; times are nanoseconds since the epoch. ``flags`` are those
    of the root item, numbered otherwise than those of :func:`flags`."""

    id: int
    name: str
    parent_id: int
    directory_id: int
    generation: int
    ctransid: int
    otransid: int
    flags: int
    uuid: UUID
    parent_uuid: UUID | None
    received_uuid: UUID | None
    created_ns: int
    changed_ns: int

    @property
    def read_only(self) -> bool:
        """Whether the subvolume's read-only property is set."""
        return bool(self.flags & lib.BTRFS_ROOT_SUBVOL_RDONLY)


def subvolume_info(place: Place) -> SubvolumeInfo:
    """Facts about the subvolume ``place`` is in; needs no privilege (Linux 4.18)."""
    raw = _subvolume_info(place)
    return SubvolumeInfo(
        id=raw.treeid,
        name=os.fsdecode(ffi.string(raw.name)),
        parent_id=raw.parent_id,
        directory_id=raw.dirid,
        generation=raw.generation,
        ctransid=raw.ctransid,
        otransid=raw.otransid,
        flags=raw.flags,
        uuid=UUID(bytes=bytes(raw.uuid)),
        parent_uuid=_uuid(raw.parent_uuid),
        received_uuid=_uuid(raw.received_uuid),
        created_ns=raw.otime.sec * 10**9 + raw.otime.nsec,
        changed_ns=raw.ctime.sec * 10**9 + raw.ctime.nsec,
    )


def ctransid(place: Place) -> int:
    """:attr:`SubvolumeInfo.ctransid` alone, at half the cost."""
    return int(_subvolume_info(place).ctransid)


def _subvolume_info(place: Place) -> Any:
    raw = ffi.new("struct btrfs_ioctl_get_subvol_info_args *")
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_GET_SUBVOL_INFO", raw, place)
    return raw


def is_untouched(copy: int, source: int) -> bool:
    """Whether a subvolume is a copy of another, neither was written since, and neither holds others.

    Takes descriptors; by their root items (GET_SUBVOL_INFO, GET_SUBVOL_ROOTREF), without privilege.
    """
    return bool(checked(lib.btrfs_is_untouched(copy, source), "BTRFS_IOC_GET_SUBVOL_INFO"))


def _uuid(raw: Any) -> UUID | None:
    data = bytes(raw)
    return UUID(bytes=data) if any(data) else None


def subvolume_id(place: Place) -> int:
    """ID of the subvolume ``place`` is in (INO_LOOKUP of its root; needs no privilege)."""
    args = ffi.new("struct btrfs_ioctl_ino_lookup_args *")
    args.objectid = ROOT_INODE
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_INO_LOOKUP", args, place)
    return int(args.treeid)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemInfo:
    """BTRFS_IOC_FS_INFO: sizes in bytes, ``generation`` of the transaction begun last."""

    fsid: UUID
    devices: int
    sector_size: int
    node_size: int
    generation: int


def filesystem_info(place: Place) -> FilesystemInfo:
    """Facts about the filesystem ``place`` is on."""
    raw = ffi.new("struct btrfs_ioctl_fs_info_args *")
    raw.flags = 1 << 1  # BTRFS_FS_INFO_FLAG_GENERATION, ignored before Linux 5.9
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_FS_INFO", raw, place)
    return FilesystemInfo(
        fsid=UUID(bytes=bytes(raw.fsid)),
        devices=raw.num_devices,
        sector_size=raw.sectorsize,
        node_size=raw.nodesize,
        generation=raw.generation,
    )


# -- making and removing -----------------------------------------------------------------------


def create_subvolume(parent: Place, name: str | bytes) -> None:
    """Make the empty subvolume ``name`` in directory ``parent``, mode 0777 less the umask."""
    args = ffi.new("struct btrfs_ioctl_vol_args_v2 *")
    args.name = _name(name)
    with opened(parent) as fd:
        call(fd, "BTRFS_IOC_SUBVOL_CREATE_V2", args, _joined(parent, name))


def snapshot(source: Place, parent: Place, name: str | bytes, *, read_only: bool = False) -> None:
    """Make ``name`` in directory ``parent`` a copy of the subvolume ``source``, in constant time.

    Nested subvolumes appear in the copy as empty directories.
    """
    args = ffi.new("struct btrfs_ioctl_vol_args_v2 *")
    args.name = _name(name)
    args.flags = lib.BTRFS_SUBVOL_RDONLY if read_only else 0
    with opened(source) as source_fd, opened(parent) as fd:
        args.fd = source_fd
        call(fd, "BTRFS_IOC_SNAP_CREATE_V2", args, _joined(parent, name))


def destroy(parent: Place, name: str | bytes) -> None:
    """Remove the subvolume ``name`` of directory ``parent``; its space returns when the cleaner ran.

    ENOTEMPTY when subvolumes are nested in it, EPERM without privilege and ``user_subvol_rm_allowed``.
    """
    args = ffi.new("struct btrfs_ioctl_vol_args *")
    args.name = _name(name)
    with opened(parent) as fd:
        call(fd, "BTRFS_IOC_SNAP_DESTROY", args, _joined(parent, name))


def destroy_by_id(place: Place, identifier: int) -> None:
    """Remove a subvolume by its ID, from anywhere on the filesystem (SNAP_DESTROY_V2, Linux 5.7)."""
    args = ffi.new("struct btrfs_ioctl_vol_args_v2 *")
    args.flags = lib.BTRFS_SUBVOL_SPEC_BY_ID
    args.subvolid = identifier
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_SNAP_DESTROY_V2", args, place)


def _joined(parent: Place, name: str | bytes) -> str:
    text = os.fsdecode(name)
    return text if isinstance(parent, int) else os.path.join(os.fsdecode(parent), text)


# -- properties and order on disk --------------------------------------------------------------


def flags(place: Place) -> int:
    """The subvolume's flags (``BTRFS_SUBVOL_RDONLY`` is 2); ``place`` must be its root."""
    value = ffi.new("uint64_t *")
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_SUBVOL_GETFLAGS", value, place)
    return int(value[0])


def is_read_only(place: Place) -> bool:
    """Whether the subvolume's read-only property is set."""
    return bool(flags(place) & lib.BTRFS_SUBVOL_RDONLY)


def set_read_only(place: Place, read_only: bool) -> None:
    """Set or clear the read-only property; clearing it on a received subvolume breaks later receives."""
    value = ffi.new("uint64_t *")
    with opened(place) as fd:
        current = flags(fd)
        value[0] = current | lib.BTRFS_SUBVOL_RDONLY if read_only else current & ~lib.BTRFS_SUBVOL_RDONLY
        call(fd, "BTRFS_IOC_SUBVOL_SETFLAGS", value, place)


def sync(place: Place) -> None:
    """Write all data and commit the running transaction (BTRFS_IOC_SYNC, as syncfs(2))."""
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_SYNC", ffi.NULL, place)


def flush(place: Place) -> None:
    """Write the data of one subvolume and wait until its metadata tell of that, as a snapshot does first.

    Where the kernel does it, that is; see :mod:`drivers.btrfs_flush`. EPERM unless one owns the subvolume.
    """
    args = ffi.new("struct btrfs_ioctl_vol_args_v2 *")
    args.name = b"x" * (NAME_MAX + 1)  # so that there can never be a snapshot
    with opened(place) as fd:
        args.fd = fd
        try:
            call(fd, "BTRFS_IOC_SNAP_CREATE_V2", args, place)
        except BtrfsError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise


def commit(place: Place) -> None:
    """Have all changes made so far on the disk (START_SYNC, WAIT_SYNC), but not files' unwritten data."""
    with opened(place) as fd:
        btrfs_commits.commit(fd)


def queued_for_cleaning(place: Place) -> int:
    """Number of destroyed subvolumes whose space has not returned yet (Linux 6.13, else ENOTTY)."""
    args = ffi.new("struct btrfs_ioctl_subvol_wait *")
    args.mode = lib.BTRFS_SUBVOL_SYNC_COUNT
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_SUBVOL_SYNC_WAIT", args, place)
    return int(args.count)


def wait_cleaned(place: Place, timeout: float = 120.0) -> None:
    """Wait until every destroyed subvolume of the filesystem is cleaned (Linux 6.13, else ENOTTY).

    The cleaner sleeps until a commit wakes it, by default for up to 30 seconds; so this commits, and does
    so again while something is left.

    Raises:
        TimeoutError: the cleaner is not done after ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    with opened(place) as fd:
        sync(fd)
        while left := queued_for_cleaning(fd):
            if time.monotonic() > end:
                raise TimeoutError(f"{left} subvolumes are not cleaned after {timeout} seconds")
            time.sleep(_CLEANER_POLL)
            sync(fd)


# -- send --------------------------------------------------------------------------------------


def send(
    place: Place,
    write_fd: int,
    *,
    parent_id: int = 0,
    clone_ids: Sequence[int] = (),
    no_file_data: bool = False,
    version: int = 1,
) -> None:
    """Write the send stream of the read-only subvolume ``place`` to ``write_fd``.

    Args:
        parent_id: send only what differs from this read-only subvolume; 0 sends everything.
        clone_ids: read-only subvolumes the receiver has, as sources of clone commands.
        no_file_data: writes become UPDATE_EXTENT commands without the bytes.
        version: stream protocol, 1 everywhere, 2 since Linux 6.0 (EPROTO beyond the kernel's).

    Raises:
        BtrfsError: EPERM without CAP_SYS_ADMIN or when a subvolume is writable; EPIPE.
    """
    bits = lib.BTRFS_SEND_FLAG_NO_FILE_DATA if no_file_data else 0
    if version != 1:
        bits |= lib.BTRFS_SEND_FLAG_VERSION
    # The parent must be among the clone sources too, else the kernel refuses the pair.
    sources = list(dict.fromkeys([*clone_ids, parent_id] if parent_id else clone_ids))
    clones = ffi.new("uint64_t[]", sources) if sources else ffi.NULL
    with opened(place) as fd:
        protocol = version if version != 1 else 0
        result = lib.btrfs_send(fd, write_fd, parent_id, clones, len(sources), bits, protocol)
        checked(result, "BTRFS_IOC_SEND", place)


# -- quotas ------------------------------------------------------------------------------------


def quota_control(place: Place, command: str) -> None:
    """``enable`` full qgroups, ``enable-simple`` ones (Linux 6.7), or ``disable`` quotas altogether."""
    args = ffi.new("struct btrfs_ioctl_quota_ctl_args *")
    args.cmd = {
        "enable": lib.BTRFS_QUOTA_CTL_ENABLE,
        "enable-simple": lib.BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA,
        "disable": lib.BTRFS_QUOTA_CTL_DISABLE,
    }[command]
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_QUOTA_CTL", args, place)


def limit_qgroup(place: Place, qgroup: int, max_referenced: int) -> None:
    """Limit a qgroup's referenced bytes; 0 lifts the limit.

    The change is charged to the subvolume ``place`` is in: it must not be the one whose limit is reached.
    """
    # The kernel lifts a limit for the value -1 with the flag set; without the flag it keeps the old one.
    value = max_referenced or 2**64 - 1
    with opened(place) as fd:
        result = lib.btrfs_limit(fd, qgroup, lib.BTRFS_QGROUP_LIMIT_MAX_RFER, value, 0)
        checked(result, "BTRFS_IOC_QGROUP_LIMIT", place)


def remove_qgroup(place: Place, qgroup: int) -> None:
    """Delete a qgroup; EBUSY while its subvolume exists, ENOENT when the kernel was faster."""
    args = ffi.new("struct btrfs_ioctl_qgroup_create_args *", {"create": 0, "qgroupid": qgroup})
    with opened(place) as fd:
        call(fd, "BTRFS_IOC_QGROUP_CREATE", args, place)


def rescan_quotas(place: Place, *, start: bool = False) -> None:
    """Wait for a running quota rescan; with ``start`` begin one first (EINPROGRESS is joined)."""
    with opened(place) as fd:
        if start:
            try:
                call(fd, "BTRFS_IOC_QUOTA_RESCAN", ffi.new("struct btrfs_ioctl_quota_rescan_args *"), place)
            except BtrfsError as error:
                if error.errno != errno.EINPROGRESS:
                    raise
        call(fd, "BTRFS_IOC_QUOTA_RESCAN_WAIT", ffi.NULL, place)
