"""Unpacking into an upper directory: whiteouts and copies from below in overlayfs's own form.

Done while the layer is not mounted; the marks are those of the kernel's overlayfs.rst: a character device
0:0 hides what is below at its name, ``overlay.opaque=y`` all that a directory has below it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from drivers.beneath import Beneath
from drivers.changes import located
from drivers.copytree import copy_entry
from drivers.overlay_features import xattr_prefix
from drivers.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ABSENT = (FileNotFoundError, NotADirectoryError)
_NO_ATTRIBUTE = (errno.ENODATA, errno.EOPNOTSUPP)
_FILES = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_OVERLAY_ATTRIBUTES = (b"trusted.overlay.", b"user.overlay.")


OVERRIDE = "user.containers.override_stat"
"""Owner and mode of a file whose own are forced; ``uid:gid:octal mode`` (fuse-overlayfs(1))."""


class BaseUpper(Beneath):
    """The upper directory of a base layer.

    Args:
        forced: permission bits all files get, their own going to an attribute; ``None`` for none.
    """

    def __init__(self, forced: int | None = None) -> None:
        self._forced = forced
        self.plain = forced is None

    def own(self, target: int | bytes, uid: int, gid: int, mode: int) -> bool:
        """Under forced permissions, keep the real ones where a file can have attributes."""
        if self._forced is None or stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFDIR):
            return False
        os.setxattr(target, OVERRIDE, f"{uid}:{gid}:0{stat.S_IMODE(mode):o}".encode())
        os.chmod(target, self._forced)
        return True

    def accepts(self, attribute: bytes) -> bool:
        """All but overlayfs's own, which would let an archive rearrange the layers below."""
        return not attribute.startswith(_OVERLAY_ATTRIBUTES)


class Upper(BaseUpper):
    """An upper directory over other layers.

    Args:
        upper: the open upper directory.
        lower: the open root of what the layers below show together.
        forced: as for a base layer.
    """

    directories = True

    def __init__(self, upper: int, lower: int, forced: int | None = None) -> None:
        super().__init__(forced)
        self._upper = upper
        self._lower = lower
        self._opaque = xattr_prefix() + "opaque"
        self._shown: tuple[bytes, bool] | None = None

    def bring(self, path: bytes) -> None:
        """Copy up directories on the way to ``path`` until one is hidden, absent, or a symbolic link."""
        done = b""
        for name in path.split(b"/") if path else []:
            here = done + b"/" + name if done else name
            fd = openat2(self._upper, done or b".", _DIRECTORY, resolve=RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH)
            try:
                mode = self._mode(fd, name)
                if mode is None:
                    mode = self._copy_up(fd, here, name, (stat.S_IFDIR, stat.S_IFLNK))
            finally:
                os.close(fd)
            if mode is None or not stat.S_ISDIR(mode):
                return
            done = here

    def bring_directory(self, directory: int, path: bytes, name: bytes) -> bool:
        """Copy up a directory with its attributes and without its content."""
        return self._copy_up(directory, path, name, (stat.S_IFDIR,)) is not None

    def bring_file(self, directory: int, path: bytes, name: bytes) -> None:
        """Copy up a file of any type; one hidden by a whiteout is missing."""
        try:
            status = os.lstat(name, dir_fd=directory)
        except FileNotFoundError:
            self._copy_up(directory, path, name, _FILES)
            return
        if is_whiteout_device(status):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))

    def hide(self, directory: int, path: bytes, name: bytes) -> None:
        """Make a whiteout, if there is anything to hide."""
        if self._lower_mode(path) is not None:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=directory)

    def hide_content(self, directory: int) -> None:
        """Make the directory opaque."""
        os.setxattr(directory, self._opaque, b"y")
        self._shown = None

    def uncover(self, directory: int, name: bytes) -> bool:
        """Remove a whiteout."""
        try:
            found = is_whiteout_device(os.lstat(name, dir_fd=directory))
        except FileNotFoundError:
            return False
        if found:
            os.unlink(name, dir_fd=directory)
        return found

    # -- below ---------------------------------------------------------------------------------------

    def _mode(self, directory: int, name: bytes) -> int | None:
        try:
            return os.lstat(name, dir_fd=directory).st_mode
        except FileNotFoundError:
            return None

    def _lower_mode(self, path: bytes) -> int | None:
        """Mode of what is below at ``path``; ``None`` if nothing is, or it does not show through."""
        if not self._shows(path.rpartition(b"/")[0]):
            return None
        with located(self._lower, path) as entry:
            return None if entry is None else entry.stat.st_mode

    def _copy_up(self, directory: int, path: bytes, name: bytes, kinds: tuple[int, ...]) -> int | None:
        mode = self._lower_mode(path)
        if mode is None or stat.S_IFMT(mode) not in kinds:
            return None
        with self._lower_directory(path.rpartition(b"/")[0]) as source:
            copy_entry(source, directory, name)
        self._own_copy(directory, name)
        return mode

    def _own_copy(self, directory: int, name: bytes) -> None:
        if self._forced is None:
            return
        status = os.lstat(name, dir_fd=directory)
        if self.own(b"/proc/self/fd/%d/" % directory + name, status.st_uid, status.st_gid, status.st_mode):
            os.chown(name, os.geteuid(), os.getegid(), dir_fd=directory)

    @contextmanager
    def _lower_directory(self, path: bytes) -> Iterator[int]:
        fd = openat2(self._lower, path or b".", _DIRECTORY, resolve=RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH)
        try:
            yield fd
        finally:
            os.close(fd)

    def _shows(self, path: bytes) -> bool:
        """Whether the upper directory ``path`` is merged with what is below: nothing on the way is opaque."""
        if self._shown is None or self._shown[0] != path:
            self._shown = path, self._is_merged(path)
        return self._shown[1]

    def _is_merged(self, path: bytes) -> bool:
        done = b""
        for name in path.split(b"/") if path else []:
            done = done + b"/" + name if done else name
            try:
                fd = openat2(self._upper, done, _DIRECTORY, resolve=RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH)
            except _ABSENT:
                return True
            try:
                if is_opaque(fd, self._opaque):
                    return False
            finally:
                os.close(fd)
        return True


def is_whiteout_device(status: os.stat_result) -> bool:
    """Whether a file in an upper directory is a whiteout."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: int | bytes, attribute: str) -> bool:
    """Whether a directory, open or by path, hides everything below it."""
    return get_mark(directory, attribute) == b"y"


def get_mark(directory: int | bytes, attribute: str) -> bytes | None:
    """Value of an attribute of overlayfs; ``None`` where there is none."""
    try:
        return os.getxattr(directory, attribute)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTE:
            return None
        raise


def copy_attributes(source: Path, target: Path) -> None:
    """Extended attributes, as far as both sides have them and but overlayfs's own, and times."""
    prefix = xattr_prefix()
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        names = []
    for name in names:
        if not name.startswith(prefix):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.EPERM):
                    raise
    status = source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
