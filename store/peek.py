"""Looking into an object's tree without mounting it: listing a directory, reading a file.

Paths are looked up inside the tree as if it were the root directory, so no link leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from drivers.confine import IN_ROOT
from drivers.syscalls import openat2
from store.comparison import opened_tree, side_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from store.store import Store

_PIECE = 1 << 20
_KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character-device",
    stat.S_IFBLK: "block-device",
}


class File(NamedTuple):
    """One entry; ``mode`` with the type's bits, ``target`` of a symbolic link."""

    name: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    modified_ns: int
    target: str


def list_directory(store: Store, text: str, path: str = "/") -> list[File]:
    """The entries of a directory of what ``text`` names, by name; of anything else, itself.

    Raises:
        NoSuchSource; OSError: the path cannot be looked up
    """
    with _opened(store, text, path) as fd:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            return [_file(os.path.basename(path), os.fstat(fd), "")]
        with os.scandir(f"/proc/self/fd/{fd}") as entries:
            return sorted(_entry(entry) for entry in entries)


def read_file(store: Store, text: str, path: str) -> Iterator[bytes]:
    """The content of a regular file of what ``text`` names, in pieces.

    Raises:
        NoSuchSource; OSError: the path cannot be looked up, or is no regular file
    """
    with _opened(store, text, path) as place:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            number = errno.EISDIR if stat.S_ISDIR(os.fstat(place).st_mode) else errno.EINVAL
            raise OSError(number, "it is no regular file", path)
        with open(f"/proc/self/fd/{place}", "rb") as file:
            while piece := file.read(_PIECE):
                yield piece


@contextmanager
def _opened(store: Store, text: str, path: str) -> Iterator[int]:
    """A descriptor that marks the place (``O_PATH``)."""
    with opened_tree(store, side_of(store, text)) as tree:
        root = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            place = openat2(root, path, os.O_PATH | os.O_CLOEXEC, resolve=IN_ROOT)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{text}:{path}") from None
        finally:
            os.close(root)
        try:
            yield place
        finally:
            os.close(place)


def _entry(entry: os.DirEntry[str]) -> File:
    found = entry.stat(follow_symlinks=False)
    return _file(entry.name, found, os.readlink(entry.path) if entry.is_symlink() else "")


def _file(name: str, found: os.stat_result, target: str) -> File:
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "unknown")
    return File(
        name, kind, found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns, target
    )
