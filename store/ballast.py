"""A reserve of disk space that is given up when nothing else is left, so that things can be removed.

Removing an object writes a little: a lock's stamp, the table without it, an entry of the journal. On a
copy-on-write filesystem even overwriting needs space, and on a disk filled to the last byte no removal
could begin. The ballast is a file without content that occupies its blocks; it is made anew as soon as
there is room again.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Final

from store.durable import sync_filesystem

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

BALLAST_FILE: Final = "fsd/ballast"
"""Below the graphroot."""
SIZE: Final = 16 << 20
FULL: Final = 4 << 20
"""With fewer free bytes the ballast is given up."""
ROOMY: Final = 0.10
"""With this fraction of the filesystem free, the ballast is made."""


class Ballast:
    """The reserve of one store."""

    def __init__(self, graphroot: Path, size: int = SIZE) -> None:
        self.path = graphroot / BALLAST_FILE
        self.size = size

    def release_if_full(self) -> bool:
        """Give the reserve up when the disk is full; tells whether that was done."""
        try:
            info = os.statvfs(self.path)
        except OSError:
            return False
        if info.f_bavail * info.f_frsize >= FULL:
            return False
        self.path.unlink(missing_ok=True)
        sync_filesystem(self.path.parent)
        log.warning("the disk is full: %s was removed so that other things can be", self.path)
        return True

    def restore(self) -> bool:
        """Make the reserve if there is none, and room for it; tells whether there is one."""
        if self.path.exists():
            return True
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            info = os.statvfs(self.path.parent)
            room = info.f_bavail * info.f_frsize
            if room < max(ROOMY * info.f_blocks * info.f_frsize, 4 * self.size):
                return False
            self._make()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EOPNOTSUPP, errno.EACCES):
                raise
            return False
        return True

    def _make(self) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self.size)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
