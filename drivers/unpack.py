"""Puts archive entries into a layer's tree: the rules of FORMAT 6.1, confined by descriptor."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from drivers import tarformat as tar
from drivers.confine import Root, entry_error, remove, split
from drivers.errors import HostileArchive, MalformedArchive
from drivers.idmap import IDMappings
from drivers.tarformat import Entry, clean_name, show

if TYPE_CHECKING:
    from drivers.limits import Limits

WHITEOUT = b".wh."
WHITEOUT_META = b".wh..wh."
OPAQUE = b".wh..wh..opq"
_ALL_MODES = 0o7777
_ID_MAX = (1 << 32) - 2
_SKIPPED_XATTRS = frozenset((b"security.selinux",))


class Seen:
    """Paths this archive has put into the tree, and which of them are symbolic links or files."""

    def __init__(self) -> None:
        self._marks: set[tuple[bytes, bytes]] = set()
        self._salt = os.urandom(16)

    def _key(self, kind: bytes, path: bytes) -> tuple[bytes, bytes]:
        return kind, hashlib.blake2b(path, digest_size=12, key=self._salt).digest()

    def add(self, kind: bytes, path: bytes) -> bool:
        """Mark ``path``; false if it was marked already."""
        key = self._key(kind, path)
        if key in self._marks:
            return False
        self._marks.add(key)
        return True

    def has(self, kind: bytes, path: bytes) -> bool:
        """Whether ``path`` is marked."""
        return self._key(kind, path) in self._marks

    def drop(self, kind: bytes, path: bytes) -> None:
        """Take a mark away."""
        self._marks.discard(self._key(kind, path))


class Unpacker:
    """Applies entries one after another to the tree below ``root``.

    Raises (every call):
        MalformedArchive, HostileArchive: naming the entry; OSError: the system refused.
    """

    def __init__(self, root: Root, mappings: IDMappings | None, limits: Limits) -> None:
        self._root = root
        self._mappings = mappings or IDMappings()
        self._limits = limits
        self._times: list[tuple[bytes, int]] = []
        self._parent: tuple[bytes, int] | None = None
        self._own = (os.geteuid(), os.getegid())
        self.seen = Seen()
        self.uids: set[int] = set()
        self.gids: set[int] = set()
        self.content_size = 0

    def close(self) -> None:
        """Release descriptors."""
        self._forget_parent()

    def apply(self, entry: Entry, content: Iterable[bytes]) -> None:
        """Put one entry into the tree; consumes ``content`` whole."""
        path = clean_name(entry.name)
        self.content_size += entry.header_size
        try:
            if split(path)[1].startswith(WHITEOUT):
                self._whiteout(path)
                _exhaust(content)
            else:
                self.uids.add(entry.uid)
                self.gids.add(entry.gid)
                self._create(path, entry, content)
        except (MalformedArchive, HostileArchive):
            raise
        except OSError as error:
            raise entry_error(entry.name, error) from error

    def finish(self) -> None:
        """Set the times of directories, which creating files in them has moved."""
        self._forget_parent()
        for path, mtime_ns in self._times:
            try:
                fd = self._root.open_directory(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno == errno.ELOOP:
                    continue
                raise
            try:
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(fd)

    # -- parents -------------------------------------------------------------------------------------

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _parent_fd(self, parent: bytes) -> int:
        if self._parent is not None and self._parent[0] == parent:
            return self._parent[1]
        self._forget_parent()
        fd = self._open_parent(parent)
        self._parent = (parent, fd)
        return fd

    def _open_parent(self, parent: bytes) -> int:
        try:
            return self._root.open_directory(parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
        parent = self._root.canonical(parent, lambda path: self.seen.has(b"l", path))
        self._make_parents(parent)
        return self._root.open_directory(parent)

    def _make_parents(self, parent: bytes) -> None:
        """Missing directories: mode 0755, owned by the container's root."""
        parts = parent.split(b"/") if parent else []
        for depth in range(1, len(parts) + 1):
            above, name = b"/".join(parts[: depth - 1]), parts[depth - 1]
            fd = self._root.open_directory(above)
            try:
                os.mkdir(name, 0o755, dir_fd=fd)
            except FileExistsError:
                continue
            else:
                self._own_and_mode(fd, name, *self._mappings.root, 0o755)
            finally:
                os.close(fd)

    # -- whiteouts -----------------------------------------------------------------------------------

    def _whiteout(self, path: bytes) -> None:
        parent, name = split(path)
        directory = self._parent_fd(parent)
        if name == OPAQUE:
            self._opaque(parent)
        elif not name.startswith(WHITEOUT_META):
            target = name[len(WHITEOUT) :]
            if target in (b"", b".", b".."):
                raise HostileArchive(f"{show(path)}: a whiteout of {show(target)}")
            self._remove(directory, parent, target)

    def _opaque(self, path: bytes) -> None:
        """Remove what earlier layers left in a directory, and keep what this archive put there."""
        todo = [path]
        while todo:
            here = todo.pop()
            directory = self._root.open_directory(here)
            try:
                for name in map(os.fsencode, os.listdir(directory)):
                    child = here + b"/" + name if here else name
                    if self.seen.has(b"p", child):
                        if stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
                            todo.append(child)
                    else:
                        self._remove(directory, here, name)
            finally:
                os.close(directory)

    def _remove(self, directory: int, parent: bytes, name: bytes) -> None:
        if remove(directory, name):
            self.seen.drop(b"l", parent + b"/" + name if parent else name)
            if self._parent is not None and directory != self._parent[1]:
                self._forget_parent()

    # -- entries -------------------------------------------------------------------------------------

    def _create(self, path: bytes, entry: Entry, content: Iterable[bytes]) -> None:
        if not path:
            self._existing_root(entry)
            _exhaust(content)
            return
        parent, name = split(path)
        directory = self._parent_fd(parent)
        kind = self._clear(directory, parent, name, entry)
        self._mark(path)
        if entry.is_file:
            self._file(directory, name, entry, content)
            return
        if entry.type == tar.DIRECTORY:
            if not kind:
                os.mkdir(name, 0o700, dir_fd=directory)
        elif entry.type == tar.SYMLINK:
            if not entry.linkname:
                raise MalformedArchive(f"{show(entry.name)}: a symbolic link without a target")
            os.symlink(entry.linkname, name, dir_fd=directory)
            self.seen.add(b"l", path)
        elif entry.type == tar.HARDLINK:
            self._hardlink(directory, name, entry)
        else:
            self._special(directory, name, entry)
        self._finish_entry(directory, path, name, entry)

    def _mark(self, path: bytes) -> None:
        """Mark ``path`` and the directories above it, so that opaque whiteouts spare them."""
        while path and self.seen.add(b"p", path):
            path = split(path)[0]

    def _clear(self, directory: int, parent: bytes, name: bytes, entry: Entry) -> bool:
        """Remove what is in the way; true if a directory stays to be merged with."""
        try:
            mode = os.lstat(name, dir_fd=directory).st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(mode) and entry.type == tar.DIRECTORY:
            return True
        self._remove(directory, parent, name)
        return False

    def _existing_root(self, entry: Entry) -> None:
        if entry.type != tar.DIRECTORY:
            raise HostileArchive(f"{show(entry.name)}: the layer's root cannot be anything but a directory")
        self._set_metadata(self._root.fd, entry)
        self._times.append((b"", entry.mtime_ns))

    def _file(self, directory: int, name: bytes, entry: Entry, content: Iterable[bytes]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            if entry.sparse is not None:
                _write_sparse(fd, entry, content)
            else:
                for piece in content:
                    _write(fd, piece)
            self._set_metadata(fd, entry)
            _set_times(fd, entry)
        finally:
            os.close(fd)

    def _hardlink(self, directory: int, name: bytes, entry: Entry) -> None:
        target = clean_name(entry.linkname)
        parent, last = split(target)
        if not last:
            raise HostileArchive(f"{show(entry.name)}: a hard link to the layer's root")
        fd = self._root.open_directory(self._root.canonical(parent, lambda path: self.seen.has(b"l", path)))
        try:
            os.link(last, name, src_dir_fd=fd, dst_dir_fd=directory, follow_symlinks=False)
        except PermissionError as error:
            raise MalformedArchive(
                f"{show(entry.name)}: a hard link to {show(target)}: {error.strerror}"
            ) from None
        finally:
            os.close(fd)

    def _special(self, directory: int, name: bytes, entry: Entry) -> None:
        types = {tar.FIFO: stat.S_IFIFO, tar.CHARDEV: stat.S_IFCHR, tar.BLOCKDEV: stat.S_IFBLK}
        if entry.type not in types:
            raise MalformedArchive(f"{show(entry.name)}: unknown entry type {bytes([entry.type])!r}")
        if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
            raise MalformedArchive(f"{show(entry.name)}: device number {entry.major}:{entry.minor}")
        device = os.makedev(entry.major, entry.minor)
        os.mknod(name, types[entry.type] | 0o600, device, dir_fd=directory)

    # -- metadata ------------------------------------------------------------------------------------

    def _finish_entry(self, directory: int, path: bytes, name: bytes, entry: Entry) -> None:
        if entry.type == tar.DIRECTORY:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                self._set_metadata(fd, entry)
            finally:
                os.close(fd)
            self._times.append((path, entry.mtime_ns))
            return
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory)
        try:
            self._set_metadata(fd, entry, through=True)
        finally:
            os.close(fd)
        os.utime(name, ns=_times(entry), dir_fd=directory, follow_symlinks=False)

    def _host_owner(self, entry: Entry) -> tuple[int, int]:
        if not (0 <= entry.uid <= _ID_MAX and 0 <= entry.gid <= _ID_MAX):
            raise MalformedArchive(f"{show(entry.name)}: owner {entry.uid}:{entry.gid} is not possible")
        try:
            return self._mappings.to_host(entry.uid, entry.gid)
        except ValueError as error:
            raise MalformedArchive(f"{show(entry.name)}: {error}") from None

    def _set_metadata(self, fd: int, entry: Entry, *, through: bool = False) -> None:
        """Owner, mode, xattrs; in this order, for chown clears setuid bits and capabilities.

        ``through``: ``fd`` is an O_PATH descriptor, so calls go by its link in /proc.
        """
        uid, gid = self._host_owner(entry)
        mode = os.fstat(fd).st_mode
        target: int | bytes = b"/proc/self/fd/%d" % fd if through else fd
        if through:
            os.chown(target, uid, gid)
        else:
            os.fchown(fd, uid, gid)
        if not stat.S_ISLNK(mode):
            os.chmod(target, entry.mode & _ALL_MODES)
        for name, value in entry.xattrs.items():
            if name not in _SKIPPED_XATTRS:
                _set_xattr(target, name, value, entry)

    def _own_and_mode(self, directory: int, name: bytes, uid: int, gid: int, mode: int) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)


def _set_xattr(target: int | bytes, name: bytes, value: bytes, entry: Entry) -> None:
    try:
        os.setxattr(target, name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise OSError(error.errno, f"extended attribute {show(name)}: {error.strerror}") from error


def _times(entry: Entry) -> tuple[int, int]:
    seconds = entry.mtime_ns // tar.NS
    if not -(1 << 62) < seconds < 1 << 62:
        raise MalformedArchive(f"{show(entry.name)}: time {seconds} is not possible")
    return entry.mtime_ns, entry.mtime_ns


def _set_times(fd: int, entry: Entry) -> None:
    os.utime(fd, ns=_times(entry))


def _exhaust(content: Iterable[bytes]) -> None:
    for _ in content:
        pass


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _write_sparse(fd: int, entry: Entry, content: Iterable[bytes]) -> None:
    """Content pieces go to the places the map gives them; the rest stays a hole."""
    assert entry.sparse is not None
    parts = iter(entry.sparse)
    offset, left = 0, 0
    for piece in content:
        view = memoryview(piece)
        while view:
            while not left:
                offset, left = next(parts)
            written = os.pwrite(fd, view[:left], offset)
            view, offset, left = view[written:], offset + written, left - written
    os.ftruncate(fd, entry.real_size)
