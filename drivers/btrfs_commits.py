"""What btrfs has on the disk, and waiting for it.

btrfs gathers changes in a transaction and commits that whole; transactions follow each other in order, so
after a crash everything is there that came before anything that is there. Only what a program had written
with fsync(2) may be ahead of that (btrfs(5), "log tree").

These are the only ioctls of btrfs outside ``drivers._btrfs``: everybody who saves a table needs them,
whatever the driver, and :mod:`drivers.btrfs_ioctl` takes longer to load than a save. The numbers are those
of ``<linux/btrfs.h>`` and ``<linux/fs.h>``. A descriptor may be of any file or directory.
"""

from __future__ import annotations

import fcntl
import struct
import sys
from typing import Final
from uuid import UUID

START_SYNC: Final = 0x80089418
"""Begin to commit what is not on the disk; tells which commit that is."""
WAIT_SYNC: Final = 0x40089416
"""Wait until a commit is complete."""
GET_FEATURES: Final = 0x80189439
"""Only btrfs answers it."""
FS_INFO: Final = 0x8400941F
FIEMAP: Final = 0xC020660B

_FS_INFO_ASKED: Final = bytes(48) + (2).to_bytes(8, sys.byteorder) + bytes(968)
"""``struct btrfs_ioctl_fs_info_args`` with ``BTRFS_FS_INFO_FLAG_GENERATION``; the answer is at byte 56."""
_FEATURES_ASKED: Final = bytes(24)
_NEVER: Final = 2**63
_FIEMAP_WHOLE: Final = struct.pack("=QQLLLL", 0, 2**64 - 1, 1, 0, 0, 0)
"""``struct fiemap`` for the whole file with ``FIEMAP_FLAG_SYNC`` and no room for an answer."""
_FIEMAP_COUNT: Final = struct.pack("=QQLLLL", 0, 2**64 - 1, 0, 0, 0, 0)


def filesystem(fd: int) -> UUID | None:
    """Which btrfs a file is on; ``None`` if it is on none."""
    if not commits(fd):
        return None
    return UUID(bytes=fcntl.ioctl(fd, FS_INFO, _FS_INFO_ASKED)[16:32])


def commits(fd: int) -> bool:
    """Whether the filesystem puts all its changes on the disk together, that is, is btrfs."""
    try:
        fcntl.ioctl(fd, GET_FEATURES, _FEATURES_ASKED)
    except OSError:
        return False
    return True


def settle(fd: int) -> int:
    """Have the content of a file in the next commit; gives the number of that.

    Waits until the data is written and the running transaction knows where: what fdatasync(2) does before
    it writes a log of its own, which a commit makes unnecessary.
    """
    fcntl.ioctl(fd, FIEMAP, _FIEMAP_WHOLE)
    return generation(fd)


def extents(fd: int) -> int:
    """In how many pieces the content of a file is on the disk; 0 where the filesystem does not tell."""
    try:
        answer = fcntl.ioctl(fd, FIEMAP, _FIEMAP_COUNT)
    except OSError:
        return 0
    return int.from_bytes(answer[20:24], sys.byteorder)


def generation(fd: int) -> int:
    """The latest commit that was begun or is still to be; 2**63 before Linux 5.9, which does not tell."""
    answer = fcntl.ioctl(fd, FS_INFO, _FS_INFO_ASKED)
    if not answer[48] & 2 and not answer[55] & 2:
        return _NEVER
    return int.from_bytes(answer[56:64], sys.byteorder)


def is_latest(fd: int, number: int) -> bool:
    """Whether no commit was begun after that number; false where the kernel does not tell."""
    return number != _NEVER and generation(fd) == number


def commit(fd: int, number: int = 0) -> None:
    """Wait until the commit of that number is complete, or else all that was done so far.

    Unlike syncfs(2) this does not write the unwritten data of everybody else's files.
    """
    if number and generation(fd) > number:  # it is under way, or done
        fcntl.ioctl(fd, WAIT_SYNC, number.to_bytes(8, sys.byteorder))
    else:
        fcntl.ioctl(fd, WAIT_SYNC, fcntl.ioctl(fd, START_SYNC, bytes(8)))
