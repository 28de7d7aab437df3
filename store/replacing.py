"""New contents of files, complete beside them before they take their names: one, or several in order.

A file alone is written, waited for and renamed (:func:`replace_file`). Several files that go with a new
tree are written first (:func:`prepare`, :func:`settle`), then the tree is made, and then all get their names
(:func:`secure`, :func:`publish`). On btrfs that takes two commits however many files there are: one for the
tree and the contents, one for the names. A commit has everything that came before it, so no name can be on
the disk without what it stands for.

Content that stays is not written again: it is copied from the present file, which shares the blocks where
the filesystem can.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from store.durable import FileState, file_state_of, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_START_SYNC: Final = 0x80089418
"""``BTRFS_IOC_START_SYNC``: begin to commit what is not on the disk; tells which commit that is."""
_WAIT_SYNC: Final = 0x40089416
"""``BTRFS_IOC_WAIT_SYNC``: wait until a commit is complete."""
_GET_FEATURES: Final = 0x80189439
"""``BTRFS_IOC_GET_FEATURES``: only btrfs answers it."""
_FS_INFO: Final = 0x8400941F
"""``BTRFS_IOC_FS_INFO``."""
_FS_INFO_ASKED: Final = bytes(48) + (2).to_bytes(8, sys.byteorder) + bytes(968)
"""``struct btrfs_ioctl_fs_info_args`` with ``BTRFS_FS_INFO_FLAG_GENERATION``; the answer is at byte 56."""
_NEVER: Final = 2**63
_FIEMAP: Final = 0xC020660B
_FIEMAP_WHOLE: Final = struct.pack("=QQLLLL", 0, 2**64 - 1, 1, 0, 0, 0)
"""``struct fiemap`` for the whole file with ``FIEMAP_FLAG_SYNC`` and no room for an answer."""
_BLOCK: Final = 4096
_WORTH_SHARING: Final = 32 << 10
"""Bytes; less is written faster than shared."""


class Replacement:
    """What a file will be.

    Attributes:
        path: the file.
        temporary: where its content is until it has the name.
        state: how the file can be recognised then.
        durable: whether it is to be waited for at all.
        commit: number of the commit the content is in; 0 if it is in none.
    """

    __slots__ = ("commit", "durable", "path", "state", "temporary")

    def __init__(self, path: Path, durable: bool) -> None:
        self.path = path
        self.temporary = path.with_name(f".tmp-{path.name}{int.from_bytes(os.urandom(4), 'little')}")
        self.durable = durable
        self.commit = 0
        self.state = FileState()

    def discard(self) -> None:
        """Give the content up."""
        with contextlib.suppress(FileNotFoundError):
            self.temporary.unlink()


class Kept:
    """The beginning of a present file that stays.

    Attributes:
        path: where the file is now.
        state: its version; nothing is taken from any other.
        size: how many bytes of it stay.
    """

    __slots__ = ("path", "size", "state")

    def __init__(self, path: Path, state: FileState, size: int) -> None:
        self.path = path
        self.state = state
        self.size = size


def prepare(
    path: Path,
    tail: bytes,
    whole: Callable[[], bytes],
    *,
    kept: Kept | None = None,
    mode: int = 0o600,
    durable: bool = True,
) -> Replacement:
    """Write what a file will be: ``kept`` with ``tail`` after it, or else ``whole``.

    As in containers/storage the new file is ``.tmp-<name><digits>`` beside it (FORMAT 1.1).
    """
    made = Replacement(path, durable)
    fd = os.open(made.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        if kept is not None and kept.size >= _WORTH_SHARING and _copy(kept, fd):
            _write(fd, tail)
        else:
            _write(fd, whole())
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:  # the umask took something away
            os.fchmod(fd, mode)
        made.state = file_state_of(fd)
    except BaseException:
        made.discard()
        raise
    finally:
        os.close(fd)
    return made


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _copy(kept: Kept, fd: int) -> bool:
    """Copy what stays, whole blocks first since these can be shared; whether that can be done at all."""
    try:
        source = os.open(kept.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        left = kept.size
        if file_state_of(source) != kept.state:
            return False
        while left:
            count = left // _BLOCK * _BLOCK or left
            done = os.copy_file_range(source, fd, count)
            if done == 0:
                raise OSError(errno.EIO, "the file ended too early", str(kept.path))
            left -= done
        return True
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL) and left == kept.size:
            return False
        raise
    finally:
        os.close(source)


def settle(path: Path) -> int:
    """Make sure that what a file has is on the disk after the next commit (btrfs), or now.

    Returns:
        the commit after which it is; 0 if it is already.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not commits(path.parent):
            os.fdatasync(fd)
            return 0
        # Waits until the data is written and the running transaction knows where: what fdatasync(2)
        # does before it writes a log of its own, which a commit makes unnecessary.
        fcntl.ioctl(fd, _FIEMAP, _FIEMAP_WHOLE)
        return _generation(fd)
    finally:
        os.close(fd)


def _generation(fd: int) -> int:
    """The latest commit that was begun or is still to be."""
    answer = fcntl.ioctl(fd, _FS_INFO, _FS_INFO_ASKED)
    if not answer[48] & 2 and not answer[55] & 2:  # Linux before 5.9 does not tell: as if it were never done
        return _NEVER
    return int.from_bytes(answer[56:64], sys.byteorder)


def secure(replacements: Iterable[Replacement]) -> None:
    """Wait until settled contents are on the disk."""
    needed: dict[int, tuple[int, Path]] = {}
    for made in replacements:
        if made.commit:
            directory = made.path.parent
            device = os.stat(directory).st_dev
            needed[device] = (max(made.commit, needed.get(device, (0, directory))[0]), directory)
    for number, directory in needed.values():
        commit(directory, number)


def publish(replacements: Iterable[Replacement], placed: Callable[[Replacement], object]) -> None:
    """Give secured contents their names, in order; all names are on the disk at return.

    Args:
        placed: called after each rename.
    """
    together: dict[int, Path] = {}
    for made in replacements:
        put_in_place(made)
        placed(made)
        directory = made.path.parent
        if made.durable and commits(directory):
            together[os.stat(directory).st_dev] = directory
        elif made.durable:
            sync_directory(directory)
    for directory in together.values():
        commit(directory)


def replace_file(made: Replacement) -> None:
    """Give one file its content now, on the disk at return."""
    if made.durable:
        fd = os.open(made.temporary, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)
    put_in_place(made)
    if made.durable:
        sync_directory(made.path.parent)


def put_in_place(made: Replacement) -> None:
    """Give a content its name."""
    os.rename(made.temporary, made.path)


@lru_cache(maxsize=64)
def _commits(device: int, directory: Path) -> bool:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _GET_FEATURES, bytes(24))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def commits(directory: Path) -> bool:
    """Whether the filesystem of ``directory`` puts all its changes on the disk together (btrfs)."""
    return _commits(os.stat(directory).st_dev, directory)


def commit(directory: Path, number: int = 0) -> None:
    """Wait until a commit is complete, or else all that was done so far. Only where :func:`commits`.

    Unlike syncfs(2) this does not write the unwritten data of everybody else's files.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if number and _generation(fd) > number:  # it is under way, or done
            fcntl.ioctl(fd, _WAIT_SYNC, number.to_bytes(8, sys.byteorder))
        else:
            fcntl.ioctl(fd, _WAIT_SYNC, fcntl.ioctl(fd, _START_SYNC, bytes(8)))
    finally:
        os.close(fd)
