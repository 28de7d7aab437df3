"""New contents of files, complete beside them before they take their names: one, or several in order.

A file alone is written, waited for and renamed (:func:`replace_file`). Several files that go with a new
tree are written first (:func:`prepare`, :func:`settle`), then the tree is made, and then all get their names
(:func:`secure`, :func:`publish`). On btrfs one commit has the tree and all contents; each name is logged by
fsync(2) of its directory then, which costs as much as a commit where there is little, and a third of it
where there are thousands of subvolumes. Contents have to be on the disk before: should somebody fsync(2) the
directory right after a rename, a power failure then would leave the name with an empty file. Only where the
tree was made such that no fsync(2) gets anything to the disk without it
(:meth:`drivers.base.Driver.precedes`) one commit is enough for all, names too, unless somebody else commits
in between.

Content that stays is not written again: it is copied from the present file, which shares the blocks where
the filesystem can. A commit takes longer with every piece that is shared, though, so what has many is written
as one again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from drivers import btrfs_commits, syscalls
from store.durable import FileState, file_state_of, state_of, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

_GRAIN: Final = 64 << 10
"""Bytes, a multiple of any filesystem's blocks: the pieces in which a growing file is shared."""
_PIECES_MAX: Final = 16
_WORTH_SHARING: Final = 2 * _GRAIN
"""Bytes; less is written faster than shared."""


class Replacement:
    """What a file will be.

    Attributes:
        path: the file.
        temporary: where its content is until it has the name.
        fd: the content, open as long as it is to be waited for; -1 otherwise.
        state: how the file can be recognised then.
        durable: whether it is to be waited for at all.
        named: whether the name is to be waited for too.
        commit: number of the commit the content is in (btrfs); 0 if in none, ``None`` until it settled.
    """

    __slots__ = ("commit", "durable", "fd", "named", "path", "state", "temporary")

    def __init__(self, path: Path, durable: bool) -> None:
        self.path = path
        self.temporary = path.with_name(f".tmp-{path.name}{int.from_bytes(os.urandom(4), 'little')}")
        self.durable = self.named = durable
        self.fd = -1
        self.commit: int | None = None
        self.state = FileState()

    def close(self) -> None:
        """Nobody waits for the content any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Give the content up."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.temporary)


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

    As in containers/storage the new file is ``.tmp-<name><digits>`` beside it (FORMAT 1.1). Its way to the
    disk has begun at return.
    """
    made = Replacement(path, durable)
    made.fd = fd = os.open(made.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        if kept is not None and kept.size >= _WORTH_SHARING and _copy(kept, fd):
            _write(fd, tail)
        else:
            _write(fd, whole())
        status = os.fstat(fd)
        if stat.S_IMODE(status.st_mode) != mode:  # the umask took something away
            os.fchmod(fd, mode)
        made.state = state_of(status)
        if durable:
            syscalls.start_writeback(fd)
        else:
            made.close()
    except BaseException:
        made.discard()
        raise
    return made


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _copy(kept: Kept, fd: int) -> bool:
    """Copy what stays; whether that can be done at all.

    The rest that makes no whole piece is copied by hand: blocks could be shared only whole, and for the last
    one the kernel would wait until the present file is on the disk.
    """
    try:
        source = os.open(kept.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        left = whole = kept.size // _GRAIN * _GRAIN
        if file_state_of(source) != kept.state or btrfs_commits.extents(source) > _PIECES_MAX:
            return False
        while left:
            done = os.copy_file_range(source, fd, left)
            if done == 0:
                break
            left -= done
        rest = os.pread(source, kept.size - whole, whole)
        if left or len(rest) != kept.size - whole:
            raise OSError(errno.EIO, "the file ended too early", str(kept.path))
        _write(fd, rest)
        return True
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL) and left == whole:
            return False
        raise
    finally:
        os.close(source)


def settle(replacements: Iterable[Replacement]) -> None:
    """Make sure that contents are on the disk after the next commit (btrfs), or now."""
    for made in replacements:
        if made.durable and made.commit is None:
            made.commit = _settle(made.fd)


def settle_file(path: Path) -> int:
    """:func:`settle` for what a file has.

    Returns:
        the commit after which it is on the disk; 0 if it is already.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _settle(fd)
    finally:
        os.close(fd)


def _settle(fd: int) -> int:
    if btrfs_commits.commits(fd):
        return btrfs_commits.settle(fd)
    os.fdatasync(fd)
    return 0


def secure(replacements: Sequence[Replacement]) -> None:
    """Wait until contents are on the disk."""
    settle(replacements)
    last: dict[int, tuple[int, int]] = {}
    for made in replacements:
        if made.commit:
            device = made.state.device
            last[device] = max(last.get(device, (0, 0)), (made.commit, made.fd))
    for number, fd in last.values():
        btrfs_commits.commit(fd, number)


def publish(
    replacements: Sequence[Replacement],
    placed: Callable[[Replacement], object],
    commit: Callable[[], object] | None = None,
) -> None:
    """Give secured contents their names, in order; those that are ``named`` are on the disk at return.

    Args:
        placed: called after each rename.
        commit: puts contents and names on the disk, which cannot get there one by one while the commit runs
            that the contents settled in. If the next was begun meanwhile, each name gets there by itself.
    """
    settled = max((made.commit or 0 for made in replacements), default=0)
    try:
        for made in replacements:
            put_in_place(made)
            placed(made)
            if made.named and (commit is None or not btrfs_commits.is_latest(made.fd, settled)):
                sync_directory(made.path.parent)
        if commit is not None:
            commit()
    finally:
        for made in replacements:
            made.close()


def replace_file(made: Replacement) -> None:
    """Give one file its content now, on the disk at return."""
    if made.durable:
        os.fdatasync(made.fd)
    put_in_place(made)
    made.close()
    if made.durable:
        sync_directory(made.path.parent)


def put_in_place(made: Replacement) -> None:
    """Give a content its name."""
    os.rename(made.temporary, made.path)
