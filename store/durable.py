"""Writing files so that a crash leaves the old content or the new, never a mixture."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple


class FileState(NamedTuple):
    """What tells two versions of an atomically replaced file apart without reading it."""

    device: int = 0
    inode: int = 0
    mtime_ns: int = 0
    size: int = -1


ABSENT = FileState()


def state_of(st: os.stat_result) -> FileState:
    """The version of a file with these attributes."""
    return FileState(st.st_dev, st.st_ino, st.st_mtime_ns, st.st_size)


def file_state(path: Path | str) -> FileState:
    """The version of ``path`` now; :data:`ABSENT` when there is none."""
    try:
        return state_of(os.stat(path))
    except FileNotFoundError:
        return ABSENT


def file_state_of(fd: int) -> FileState:
    """The version of an open file."""
    return state_of(os.fstat(fd))


def read_with_state(path: Path) -> tuple[bytes, FileState]:
    """Content and version of ``path``, of one and the same file; empty when there is none."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall(), state_of(os.fstat(file.fileno()))
    except FileNotFoundError:
        return b"", ABSENT


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> FileState:
    """Replace the content of ``path``.

    The new file is ``.tmp-<name><digits>`` beside it until it is complete, as in containers/storage
    (FORMAT 1.1).

    Args:
        durable: whether to wait until content and name are on the disk.
    """
    temporary = path.with_name(f".tmp-{path.name}{int.from_bytes(os.urandom(4), 'little')}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fchmod(fd, mode)
            if durable:
                os.fdatasync(fd)
            state = state_of(os.fstat(fd))
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)
    return state


def sync_directory(path: Path) -> None:
    """Wait until the names in directory ``path`` are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Delete a directory of ours with everything in it; a missing one is fine."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        path.unlink(missing_ok=True)
        return
    for entry in entries:
        child = path / entry.name
        if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
            remove_tree(child)
        else:
            child.unlink(missing_ok=True)
    path.rmdir()


def sync_filesystem(path: Path) -> None:
    """Wait until everything written to the filesystem of ``path`` is on the disk (syncfs(2))."""
    from drivers import syscalls  # a slow import, needed by the rare writer of whole trees only

    syscalls.sync_filesystem(path)
