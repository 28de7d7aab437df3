"""Operations below one directory that cannot reach anything outside it.

A :class:`Root` holds a descriptor of the directory. Parents are opened with openat2(2) under
``RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS``; everything else names a single
component relative to such a descriptor. No path is ever resolved twice.

Symbolic links in a *parent* are followed the way a chroot follows them, because layers rely on it
(``/var/run`` is a link to ``/run`` in the layer below). They are walked here, one component at a time:
a link that climbs above the root, or an absolute one that the same archive planted, is an attack and
raises :class:`~drivers.errors.HostileArchive`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from drivers.errors import HostileArchive, MalformedArchive
from drivers.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from drivers.tarformat import show

BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_LINKS_MAX = 40
"""Symbolic links in one walk; the kernel's MAXSYMLINKS."""


def split(path: bytes) -> tuple[bytes, bytes]:
    """Parent and last component of a clean relative path."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


class Root:
    """A directory descriptor and the confined operations below it; close it or use ``with``."""

    def __init__(self, root: int | str | os.PathLike[str]) -> None:
        self.fd = os.dup(root) if isinstance(root, int) else os.open(root, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def open_directory(self, path: bytes) -> int:
        """A descriptor of the directory ``path``, no symbolic link followed."""
        return openat2(self.fd, path or b".", _DIRECTORY, resolve=BENEATH)

    def open_file(self, path: bytes) -> int:
        """A readable descriptor of the regular file ``path``; links in parents stay inside the root."""
        fd = openat2(self.fd, path or b".", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, resolve=IN_ROOT)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
        return fd

    def canonical(self, path: bytes, planted: Callable[[bytes], bool]) -> bytes:
        """``path`` with every symbolic link in it followed inside the root.

        Components that do not exist stay as they are. ``planted`` says whether a link was made by
        the archive now being applied.

        Raises:
            HostileArchive: a link climbs above the root, a planted one is absolute, or there are too many.
        """
        done: list[bytes] = []
        todo = path.split(b"/")[::-1] if path else []
        links = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                if not done:
                    raise HostileArchive(
                        f"{show(path)}: a symbolic link on the way reaches outside the layer"
                    )
                done.pop()
                continue
            if part in (b"", b"."):
                continue
            here = b"/".join([*done, part])
            target = self._readlink(here)
            if target is None:
                done.append(part)
                continue
            links += 1
            if links > _LINKS_MAX:
                raise HostileArchive(f"{show(path)}: too many symbolic links on the way")
            if target.startswith(b"/"):
                if planted(here):
                    raise HostileArchive(
                        f"{show(path)}: the archive made {show(here)} a link out of the layer"
                    )
                done = []
            todo.extend(target.split(b"/")[::-1])
        return b"/".join(done)

    def _readlink(self, path: bytes) -> bytes | None:
        parent, name = split(path)
        try:
            fd = self.open_directory(parent)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return os.readlink(name, dir_fd=fd)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise
        finally:
            os.close(fd)


def remove(directory: int, name: bytes) -> bool:
    """Delete ``name`` in ``directory`` with everything below it; false if it was not there.

    Descends by descriptor with one open directory at a time, so depth is bounded by nothing but disk.
    """
    try:
        os.unlink(name, dir_fd=directory)
        return True
    except FileNotFoundError:
        return False
    except (IsADirectoryError, PermissionError):
        pass
    try:
        os.rmdir(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _empty(directory, name)
        os.rmdir(name, dir_fd=directory)
    return True


def _empty(directory: int, name: bytes) -> None:
    here = os.open(name, _DIRECTORY, dir_fd=directory)
    trail: list[bytes] = []
    try:
        while True:
            child = _remove_files(here)
            if child is not None:
                trail.append(child)
                here = _step(here, child)
            elif trail:
                here = _step(here, b"..")
                os.rmdir(trail.pop(), dir_fd=here)
            else:
                return
    finally:
        os.close(here)


def _step(here: int, name: bytes) -> int:
    there = os.open(name, _DIRECTORY, dir_fd=here)
    os.close(here)
    return there


def _remove_files(here: int) -> bytes | None:
    """Unlink all but non-empty directories; returns one of those, if any."""
    with os.scandir(here) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(name, dir_fd=here)
                continue
            try:
                os.rmdir(name, dir_fd=here)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return name
    return None


def entry_error(name: bytes, error: OSError) -> Exception:
    """The exception to raise when the system refused ``name``: ours where the archive is to blame."""
    text = f"{show(name)}: {error.strerror}"
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return HostileArchive(text)
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EEXIST, errno.ENOENT, errno.EMLINK):
        return MalformedArchive(text)
    return OSError(error.errno, error.strerror, os.fsdecode(name))
