"""Copies of directory trees, with everything a file has and blocks shared where they can be; removals.

The only importer of ``drivers._copy``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers._copy import ffi, lib

if TYPE_CHECKING:
    from pathlib import Path

_WHERE_SIZE = 8192
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What :func:`copy_tree` made: numbers of files, directories and further hard links, and file bytes.

    ``size`` is the sum of the file sizes in bytes, shared blocks and holes included.
    """

    files: int
    directories: int
    hard_links: int
    size: int


def copy_tree(source: Path, target: Path) -> Copied:
    """Copy the content and the attributes of directory ``source`` to the empty directory ``target``.

    Kept: type, mode, owner, access and modification times (of directories too), extended attributes with
    ACLs and file capabilities, hard links among the copied files, device numbers, holes. Data is shared
    by FICLONE (ioctl_ficlone(2)) where the filesystem can, else copied by copy_file_range(2). No symbolic
    link is followed. The GIL is released meanwhile.

    Raises:
        OSError: with errno, what failed, and the path below ``source``; ``target`` is then incomplete.
        ``ESTALE`` if a directory was moved while it was being copied.
    """
    source_fd = os.open(source, _DIRECTORY)
    try:
        target_fd = os.open(target, _DIRECTORY)
        try:
            return _copy_open(source_fd, target_fd, source)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def _copy_open(source_fd: int, target_fd: int, source: Path) -> Copied:
    counts, where, what = ffi.new("uint64_t[4]"), ffi.new("char[]", _WHERE_SIZE), ffi.new("const char **")
    result = lib.copy_tree(source_fd, target_fd, counts, where, _WHERE_SIZE, what)
    if result < 0:
        place = os.path.join(os.fsencode(source), ffi.string(where))
        action = ffi.string(what[0]).decode("ascii")
        raise OSError(-result, f"{action}: {os.strerror(-result)}", os.fsdecode(place))
    files, directories, hard_links, size = counts
    return Copied(files=files, directories=directories, hard_links=hard_links, size=size)


def copy_entry(source: int, target: int, name: bytes) -> None:
    """Copy one entry between two open directories: a file whole, a directory with nothing in it.

    Raises:
        OSError: ``FileNotFoundError``, ``FileExistsError``, …, with what failed and the name.
    """
    what = ffi.new("const char **")
    result = lib.copy_entry_alone(source, target, name, what)
    if result < 0:
        action = ffi.string(what[0]).decode("ascii")
        raise OSError(-result, f"{action}: {os.strerror(-result)}", os.fsdecode(name))


def has_entry_types(directory: Path) -> bool:
    """Whether the filesystem keeps entry types in directories (xfs ``ftype=1``), as overlayfs needs."""
    fd = os.open(directory, _DIRECTORY)
    try:
        return int(lib.directory_has_types(fd)) > 0
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory and everything below it, however deep, without following symbolic links.

    What vanishes meanwhile is no error. The GIL is released.

    Raises:
        OSError: ``FileNotFoundError`` or ``NotADirectoryError`` for ``path`` itself, ``EBUSY`` if something
            is mounted below it, ``EPERM`` if something in it is immutable; the tree is then partly removed.
    """
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        result = lib.remove_tree(parent, os.fsencode(path.name))
    finally:
        os.close(parent)
    if result < 0:
        raise OSError(-result, os.strerror(-result), str(path))
