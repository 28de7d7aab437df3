"""What one directory tree changes against another: the comparison behind ``changes``.

The rules are those of containers/storage's generic driver part (FORMAT 6.2): paths that are new
are ADDED one by one, a directory that is gone is one DELETED, everything whose ``stat`` or
compared extended attributes differ is MODIFIED, and so is each directory above a change, the root
excepted. Content is never read.

:func:`tree_changes` walks both trees completely. Its parts (:class:`Owners`, :func:`stat_differs`,
:func:`entry_differs`, :class:`Collector`) are what cheaper comparisons decide single paths with, so that
all of them give one answer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drivers import syscalls
from drivers.base import Change, ChangeKind

if TYPE_CHECKING:
    from drivers.idmap import IDMappings

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)
"""openat2(2): missing, below a file, below a symbolic link, outside the tree."""
_BENEATH = syscalls.RESOLVE_BENEATH
_PIECE = 4000
"""Bytes of a path opened at once; the kernel takes up to PATH_MAX, 4096."""
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Where the generations of containers/storage disagree (FORMAT 6.2)."""

    directory_times: bool = False
    """A directory whose mtime alone differs is MODIFIED (1.55 and later)."""
    symlink_targets: bool = False
    """A symbolic link whose target alone differs is MODIFIED (1.57 and later)."""


RULES = Rules()
"""The rules of containers/storage 1.43, the generation Debian's podman 4.3 is built with."""


@dataclass(frozen=True, slots=True)
class Owners:
    """Decides whether two files have one owner, each seen through its own layer's ID mappings."""

    new: IDMappings | None = None
    old: IDMappings | None = None

    def differ(self, new: os.stat_result, old: os.stat_result) -> bool:
        """Whether the owners differ as container IDs, or as host IDs where ``new`` has no mapping.

        The old owner is translated only if the new one could be: that is the original's rule.
        """
        mine, theirs = (new.st_uid, new.st_gid), (old.st_uid, old.st_gid)
        if self.new or self.old:
            mapped = _to_container(self.new, *mine)
            if mapped is not None:
                mine = mapped
                theirs = _to_container(self.old, *theirs) or theirs
        return mine != theirs


SAME_OWNERS = Owners()
"""Both sides without ID mappings."""


def _to_container(mappings: IDMappings | None, uid: int, gid: int) -> tuple[int, int] | None:
    if not mappings:
        return uid, gid
    try:
        return mappings.to_container(uid, gid)
    except ValueError:
        return None


def is_directory_like(mode: int) -> bool:
    """True for directories, and for block devices and sockets, whose type bits include S_IFDIR's.

    containers/storage tests the bit instead of the type, and treats the three alike.
    """
    return bool(mode & stat.S_IFDIR)


def same_time(a: int, b: int) -> bool:
    """Whether two times in nanoseconds are equal, as far as both were recorded exactly.

    An archive may carry whole seconds only, so a time without nanoseconds equals any in its second.
    """
    return a == b or (a // _SECOND == b // _SECOND and (a % _SECOND == 0 or b % _SECOND == 0))


def stat_differs(new: os.stat_result, old: os.stat_result, owners: Owners, rules: Rules = RULES) -> bool:
    """Whether two ``lstat`` results make a path MODIFIED; inode, links and ctime never do."""
    if new.st_mode != old.st_mode or new.st_rdev != old.st_rdev or owners.differ(new, old):
        return True
    if is_directory_like(old.st_mode):
        return rules.directory_times and not same_time(new.st_mtime_ns, old.st_mtime_ns)
    return new.st_size != old.st_size or not same_time(new.st_mtime_ns, old.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file at hand: how to reach it now, its ``lstat``, and the ``d_ino`` it was listed with.

    ``path`` is a name in an open directory, or with ``fd`` the magic link of that O_PATH descriptor.
    """

    path: bytes
    stat: os.stat_result
    listed_inode: int
    fd: int = -1

    def xattrs(self) -> dict[str, bytes]:
        """The extended attributes that are compared: capabilities and ``user.*``."""
        follow = self.fd >= 0
        try:
            names = os.listxattr(self.path, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return {}
        return {
            name: os.getxattr(self.path, name, follow_symlinks=follow)
            for name in names
            if name == "security.capability" or name.startswith("user.")
        }

    def target(self) -> bytes:
        """What a symbolic link says."""
        return os.readlink(b"", dir_fd=self.fd) if self.fd >= 0 else os.readlink(self.path)


def entry_differs(new: Entry, old: Entry, owners: Owners, rules: Rules = RULES) -> bool:
    """Whether a path present on both sides is MODIFIED by itself."""
    if stat_differs(new.stat, old.stat, owners, rules) or new.xattrs() != old.xattrs():
        return True
    return rules.symlink_targets and stat.S_ISLNK(new.stat.st_mode) and new.target() != old.target()


class Collector:
    """Gathers changes by path and adds the directories above them."""

    def __init__(self) -> None:
        self._kinds: dict[bytes, ChangeKind] = {}

    def add(self, path: bytes, kind: ChangeKind) -> None:
        """Record a change; the last word on a path counts."""
        self._kinds[path] = kind

    def update(self, changes: Iterable[Change]) -> None:
        """Record changes another comparison found."""
        for change in changes:
            self._kinds[change.path] = change.kind

    def finish(self) -> list[Change]:
        """All changes with every directory above them, sorted bytewise by path."""
        kinds = self._kinds
        for path in list(kinds):
            parent = path.rpartition(b"/")[0]
            while parent and parent not in kinds:
                kinds[parent] = ChangeKind.MODIFIED
                parent = parent.rpartition(b"/")[0]
        return [Change(path, kinds[path]) for path in sorted(kinds)]


class Cursor:
    """A place in a tree, moved one directory at a time and held by one descriptor.

    Depth costs no descriptors and no path is ever resolved twice, so neither a deep tree nor a
    symbolic link put in the way meanwhile leads anywhere else. A directory moved elsewhere while
    the cursor is below it gives ``OSError(ESTALE)`` on the way up.
    """

    def __init__(self, root: int) -> None:
        self.fd = root
        self._above: list[tuple[int, int, int]] = []

    def down(self, name: bytes) -> None:
        """Enter the subdirectory ``name``."""
        here = os.fstat(self.fd)
        fd = os.open(name, _DIRECTORY, dir_fd=self.fd)
        keep = self.fd if not self._above else -1
        self._above.append((keep, here.st_dev, here.st_ino))
        if keep < 0:
            os.close(self.fd)
        self.fd = fd

    def up(self) -> None:
        """Return to the directory :meth:`down` left."""
        kept, device, inode = self._above.pop()
        fd = kept if kept >= 0 else os.open("..", _DIRECTORY, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = fd
        here = os.fstat(fd)
        if (here.st_dev, here.st_ino) != (device, inode):
            raise OSError(errno.ESTALE, "a directory was moved during the comparison")

    def close(self) -> None:
        """Give up the descriptor unless it is the caller's root."""
        if self._above:
            os.close(self.fd)

    def entries(self) -> dict[bytes, Entry]:
        """The directory's entries by name; those removed while reading are left out."""
        prefix = b"/proc/self/fd/%d/" % self.fd
        found = {}
        with os.scandir(self.fd) as listing:
            for item in listing:
                try:
                    status = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                name = os.fsencode(item.name)
                found[name] = Entry(prefix + name, status, item.inode())
        return found


class TreeWalk:
    """Compares one pair of directories and everything below them into a :class:`Collector`."""

    def __init__(self, into: Collector, owners: Owners, rules: Rules = RULES) -> None:
        self._into = into
        self._owners = owners
        self._rules = rules

    def compare(self, new: int, old: int | None, prefix: bytes = b"") -> None:
        """Compare the directories behind two descriptors; without ``old`` all below is ADDED.

        Args:
            prefix: absolute path of the pair within its layer, ``b""`` for the root.
        """
        cursors = Cursor(new), Cursor(old) if old is not None else None
        try:
            self._walk(cursors[0], cursors[1], prefix)
        finally:
            for cursor in cursors:
                if cursor is not None:
                    cursor.close()

    def _walk(self, new: Cursor, old: Cursor | None, prefix: bytes) -> None:
        # A frame is a directory's path, its subdirectories to visit, and whether old has it too.
        frames = [(prefix, iter(self._directory(prefix, new, old)), old is not None)]
        while frames:
            path, waiting, _ = frames[-1]
            step = next(waiting, None)
            if step is None:
                paired = frames.pop()[2]
                if frames:
                    new.up()
                    if old is not None and paired:
                        old.up()
                continue
            name, both = step
            new.down(name)
            if old is not None and both:
                old.down(name)
            below = path + b"/" + name
            frames.append((below, iter(self._directory(below, new, old if both else None)), both))

    def _directory(self, path: bytes, new: Cursor, old: Cursor | None) -> list[tuple[bytes, bool]]:
        """Compare one directory's entries; returns subdirectories and whether both sides have them."""
        mine = new.entries()
        theirs = old.entries() if old is not None else {}
        same_device = old is not None and os.fstat(new.fd).st_dev == os.fstat(old.fd).st_dev
        below = []
        for name, entry in mine.items():
            other = theirs.pop(name, None)
            if other is not None and same_device and entry.listed_inode == other.listed_inode:
                continue
            self._entry(path + b"/" + name, entry, other)
            if stat.S_ISDIR(entry.stat.st_mode):
                below.append((name, other is not None and stat.S_ISDIR(other.stat.st_mode)))
            elif other is not None and is_directory_like(entry.stat.st_mode):
                self.emptied(path + b"/" + name, other)
        for name in theirs:
            self._into.add(path + b"/" + name, ChangeKind.DELETED)
        return below

    def _entry(self, path: bytes, new: Entry, old: Entry | None) -> None:
        if old is None:
            self._into.add(path, ChangeKind.ADDED)
        elif entry_differs(new, old, self._owners, self._rules):
            self._into.add(path, ChangeKind.MODIFIED)

    def emptied(self, path: bytes, old: Entry) -> None:
        """List what a directory held that became a block device or socket: each entry is DELETED."""
        if stat.S_ISDIR(old.stat.st_mode):
            with os.scandir(old.path) as listing:
                for item in listing:
                    self._into.add(path + b"/" + os.fsencode(item.name), ChangeKind.DELETED)


def tree_changes(
    new: Path | int,
    old: Path | int | None,
    new_mappings: IDMappings | None = None,
    old_mappings: IDMappings | None = None,
    *,
    rules: Rules = RULES,
) -> list[Change]:
    """What the tree ``new`` changes against ``old``, sorted bytewise by path.

    Args:
        new, old: root directories, as paths or open descriptors; without ``old`` all is ADDED.
        new_mappings, old_mappings: owners are compared as container IDs.
        rules: which generation of containers/storage to agree with.

    Raises:
        OSError: a directory cannot be read, or moved during the walk (``ESTALE``).
    """
    into = Collector()
    walk = TreeWalk(into, Owners(new_mappings, old_mappings), rules)
    with ExitStack() as stack:
        new_fd = stack.enter_context(directory(new))
        old_fd = stack.enter_context(directory(old)) if old is not None else None
        walk.compare(new_fd, old_fd)
    return into.finish()


@contextmanager
def directory(place: Path | bytes | int) -> Iterator[int]:
    """A directory's descriptor: the caller's own, or one opened for the length of the block."""
    if isinstance(place, int):
        yield place
        return
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def located(root: int, path: bytes) -> Iterator[Entry | None]:
    """What is at the absolute ``path`` of the tree below ``root``, or ``None``.

    No symbolic link is followed, so a path below one is missing. The entry's own ``path`` is valid
    inside the block only. Paths of any length work.
    """
    try:
        fd = _open_path(root, path.lstrip(b"/") or b".")
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        yield None
        return
    try:
        status = os.fstat(fd)
        yield Entry(b"/proc/self/fd/%d" % fd, status, status.st_ino, fd)
    finally:
        os.close(fd)


def _open_path(root: int, path: bytes) -> int:
    """An O_PATH descriptor of ``path``, in pieces where the whole is longer than the kernel takes."""
    here = root
    while len(path) > _PIECE:
        cut = path.rindex(b"/", 0, _PIECE)
        there = _open_piece(here, path[:cut])
        if here != root:
            os.close(here)
        here, path = there, path[cut + 1 :]
    try:
        return _open_piece(here, path)
    finally:
        if here != root:
            os.close(here)


def _open_piece(root: int, path: bytes) -> int:
    flags = os.O_PATH | os.O_NOFOLLOW
    return syscalls.openat2(root, path, flags, resolve=syscalls.RESOLVE_NO_SYMLINKS | _BENEATH)


def changes_size(root: Path | int, changes: Sequence[Change]) -> int:
    """Bytes of content in what is ADDED or MODIFIED below ``root``; hard links count once.

    Directories count nothing, symbolic links their length; a path that is gone meanwhile is skipped.
    """
    size = 0
    seen = set()
    with directory(root) as fd:
        for change in changes:
            if change.kind is ChangeKind.DELETED:
                continue
            with located(fd, change.path) as entry:
                status = entry.stat if entry is not None else None
            if status is None or stat.S_ISDIR(status.st_mode):
                continue
            if status.st_nlink > 1:
                # By number alone, as the original: nested subvolumes may hide a file of their own.
                if status.st_ino in seen:
                    continue
                seen.add(status.st_ino)
            size += status.st_size
    return size
