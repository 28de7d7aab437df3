"""Quotas of btrfs layers: switching on, limits, figures, and qgroups without a subvolume.

A layer's qgroup is ``0/<subvolume id>``. In *full* mode its ``referenced`` bytes include what it shares
with its parent, and a limit counts those; in *simple* mode (Linux 6.7) every extent is charged to the
subvolume that wrote it, so that both figures are what the layer itself added. Full mode makes snapshots
and deletions slower with every snapshot (NEEDS 12), so new set-ups get simple mode; a filesystem that
already has full qgroups keeps them. Nothing is switched on unless a limit was asked for.
"""

from __future__ import annotations

import enum
import errno
import struct
import threading
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drivers import btrfs_ioctl, btrfs_tree
from drivers.btrfs_tree import Range
from drivers.errors import BadOption, NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATUS = struct.Struct("<4Q")  # version, generation, flags, rescan position
_FIVE = struct.Struct("<5Q")
_LEVEL_SHIFT = 48
_REAP_AT_ONCE = 2
"""Old qgroups tried at each removal, which adds one: a backlog shrinks, and removals stay quick."""
_QUOTAS_OFF = (errno.ENOTCONN, errno.EINVAL, errno.ENOENT)


class Mode(enum.Enum):
    """How a filesystem accounts for its subvolumes."""

    OFF = "off"
    FULL = "qgroups"
    SIMPLE = "simple quotas"


@dataclass(frozen=True, slots=True)
class QgroupUsage:
    """A qgroup's committed figures in bytes; ``limit`` 0 means there is none."""

    referenced: int
    exclusive: int
    limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaStatus:
    """The QGROUP_STATUS item: whether figures are complete, and whether a rescan runs."""

    mode: Mode
    consistent: bool = True
    rescanning: bool = False


class Quotas:
    """Limits of one driver's layers, recorded as ``<home>/quotas/<id>``."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._directory = home / "quotas"
        self.min_space = 0
        """Limits of fewer bytes are refused; 0 allows all."""
        self._orphaned: deque[int] = deque()
        self._lock = threading.Lock()

    # -- switching -----------------------------------------------------------------------------

    def status(self) -> QuotaStatus:
        """State of the filesystem's quotas, from the quota tree; from sysfs without privilege."""
        wanted = Range(
            tree=btrfs_tree.QUOTA_TREE,
            objectids=(0, 0),
            types=(btrfs_tree.QGROUP_STATUS, btrfs_tree.QGROUP_STATUS),
        )
        try:
            item = next(btrfs_tree.tree_search(self._home, wanted, buffer_size=4096), None)
        except btrfs_ioctl.BtrfsError as error:
            if error.errno == errno.ENOENT:
                return QuotaStatus(mode=Mode.OFF)
            if error.errno not in (errno.EPERM, errno.EACCES):
                raise
            return QuotaStatus(mode=self._mode_from_sysfs())
        return _parse_status(0 if item is None else _STATUS.unpack_from(item.data)[2])

    def mode(self) -> Mode:
        """Which accounting is on."""
        return self.status().mode

    def _mode_from_sysfs(self) -> Mode:
        fsid = btrfs_ioctl.filesystem_info(self._home).fsid
        try:
            text = Path(f"/sys/fs/btrfs/{fsid}/qgroups/mode").read_text()
        except FileNotFoundError:
            return Mode.OFF
        return Mode.SIMPLE if text.strip() == "squota" else Mode.FULL

    def enable(self) -> Mode:
        """Switch quotas on unless they are: simple ones where the kernel has them.

        Raises:
            NotSupported: neither mode can be switched on, for want of privilege for instance.
        """
        current = self.mode()
        if current is not Mode.OFF:
            return current
        try:
            btrfs_ioctl.quota_control(self._home, "enable-simple")
        except btrfs_ioctl.BtrfsError as error:
            if error.errno != errno.EINVAL:
                raise NotSupported(f"quotas cannot be switched on: {error}") from error
            btrfs_ioctl.quota_control(self._home, "enable")
        return self.mode()

    def disable(self) -> None:
        """Switch quotas off; every limit on the filesystem is lost, ``quotas/<id>`` files stay."""
        btrfs_ioctl.quota_control(self._home, "disable")

    def rescan(self) -> None:
        """Count everything anew and wait for it; full mode only (simple mode needs none)."""
        if self.mode() is Mode.FULL:
            btrfs_ioctl.rescan_quotas(self._home, start=True)

    # -- limits --------------------------------------------------------------------------------

    def check(self, size: int) -> None:
        """Raise ``BadOption`` for a limit below ``btrfs.min_space``."""
        if 0 < size < self.min_space:
            raise BadOption(f"a size of {size} bytes is less than btrfs.min_space ({self.min_space})")

    def set_limit(self, layer_id: str, subvolume: Path, size: int) -> None:
        """Limit a layer to ``size`` bytes from now on, switching quotas on; 0 lifts the limit."""
        self.check(size)
        if size == 0:
            self._lift(layer_id, subvolume)
            return
        self.enable()
        self._limit(subvolume, size)
        self._directory.mkdir(mode=0o700, exist_ok=True)
        record = self._directory / layer_id
        record.write_text(str(size), encoding="ascii")
        record.chmod(0o644)

    def _limit(self, subvolume: Path, size: int) -> None:
        # Through the home directory: a layer that has reached its limit could not pay for raising it.
        btrfs_ioctl.limit_qgroup(self._home, btrfs_ioctl.subvolume_id(subvolume), size)

    def _lift(self, layer_id: str, subvolume: Path) -> None:
        if self.mode() is not Mode.OFF:
            self._limit(subvolume, 0)
        self.forget(layer_id)

    def limit(self, layer_id: str) -> int:
        """The recorded limit of a layer in bytes, 0 without one."""
        try:
            return int((self._directory / layer_id).read_text(encoding="ascii") or 0)
        except FileNotFoundError:
            return 0
        except ValueError as error:
            raise BadOption(f"{self._directory / layer_id} is not a number of bytes") from error

    def reapply(self, layer_id: str, subvolume: Path) -> None:
        """Apply the recorded limit again: quotas may have been off, or the subvolume exchanged."""
        size = self.limit(layer_id)
        if size and size >= self.min_space:
            self.enable()
            self._limit(subvolume, size)

    def forget(self, layer_id: str) -> None:
        """Drop the record of a layer's limit."""
        with suppress(FileNotFoundError, NotADirectoryError):
            (self._directory / layer_id).unlink()

    # -- figures -------------------------------------------------------------------------------

    def usage(self, subvolume: Path) -> QgroupUsage | None:
        """What the qgroup of a subvolume counts as of the last commit; ``None`` without one."""
        identifier = btrfs_ioctl.subvolume_id(subvolume)
        info = self._item(btrfs_tree.QGROUP_INFO, identifier)
        if info is None:
            return None
        _, referenced, _, exclusive, _ = _FIVE.unpack_from(info)
        limits = self._item(btrfs_tree.QGROUP_LIMIT, identifier)
        return QgroupUsage(referenced, exclusive, _limit_of(limits))

    def _item(self, kind: int, qgroup: int) -> bytes | None:
        wanted = Range(
            tree=btrfs_tree.QUOTA_TREE, objectids=(0, 0), types=(kind, kind), offsets=(qgroup, qgroup)
        )
        try:
            return next((i.data for i in btrfs_tree.tree_search(self._home, wanted, buffer_size=4096)), None)
        except btrfs_ioctl.BtrfsError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    # -- qgroups without a subvolume -----------------------------------------------------------

    @contextmanager
    def removing(self, subvolume: Path) -> Iterator[None]:
        """Around the destruction of a subvolume: its qgroup goes afterwards.

        The kernel refuses to delete a qgroup whose subvolume exists, or is being cleaned, and since 6.11
        removes it itself once that is done. What is refused is tried again at later removals.
        """
        identifier = self._qgroup_of(subvolume)
        yield
        if identifier is not None:
            with self._lock:
                self._orphaned.append(identifier)
            self.reap(at_most=_REAP_AT_ONCE)

    def _qgroup_of(self, subvolume: Path) -> int | None:
        if self.mode() is Mode.OFF or not btrfs_ioctl.is_subvolume(subvolume):
            return None
        return btrfs_ioctl.subvolume_id(subvolume)

    def reap(self, at_most: int | None = None) -> None:
        """Delete qgroups of subvolumes this object saw destroyed, as far as the kernel lets it."""
        with self._lock:
            count = len(self._orphaned) if at_most is None else min(at_most, len(self._orphaned))
            batch = [self._orphaned.popleft() for _ in range(count)]
        kept = [identifier for identifier in batch if not self._remove_qgroup(identifier)]
        with self._lock:
            self._orphaned.extend(kept)

    def _remove_qgroup(self, identifier: int) -> bool:
        try:
            btrfs_ioctl.remove_qgroup(self._home, identifier)
        except btrfs_ioctl.BtrfsError as error:
            if error.errno in (errno.EBUSY, errno.EPERM):
                return False
            if error.errno not in _QUOTAS_OFF:
                raise
        return True

    def stale(self) -> list[int]:
        """Level-0 qgroups on the whole filesystem whose subvolume is gone."""
        wanted = Range(
            tree=btrfs_tree.QUOTA_TREE,
            objectids=(0, 0),
            types=(btrfs_tree.QGROUP_INFO, btrfs_tree.QGROUP_INFO),
            offsets=(btrfs_ioctl.ROOT_INODE, (1 << _LEVEL_SHIFT) - 1),
        )
        try:
            groups = [item.offset for item in btrfs_tree.tree_search(self._home, wanted)]
        except btrfs_ioctl.BtrfsError as error:
            if error.errno == errno.ENOENT:
                return []
            raise
        alive = btrfs_tree.subvolume_ids(self._home)
        return [group for group in groups if group not in alive]

    def reap_stale(self) -> list[int]:
        """Delete every stale qgroup of the filesystem; returns those the kernel would not let go."""
        return [group for group in self.stale() if not self._remove_qgroup(group)]


def _parse_status(flags: int) -> QuotaStatus:
    if not flags & btrfs_tree.STATUS_ON:
        return QuotaStatus(mode=Mode.OFF)
    return QuotaStatus(
        mode=Mode.SIMPLE if flags & btrfs_tree.STATUS_SIMPLE else Mode.FULL,
        consistent=not flags & btrfs_tree.STATUS_INCONSISTENT,
        rescanning=bool(flags & btrfs_tree.STATUS_RESCAN),
    )


def _limit_of(item: bytes | None) -> int:
    if item is None:
        return 0
    flags, max_referenced, *_ = _FIVE.unpack_from(item)
    return max_referenced if flags & btrfs_ioctl.LIMIT_REFERENCED else 0
