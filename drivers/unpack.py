"""Puts archive entries into a layer's tree: the rules of FORMAT 6.1, confined by descriptor."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from drivers import tarformat as tar
from drivers.archive_native import ENTRY, LINK, PARENT, Loop, Seen
from drivers.beneath import NOTHING, Beneath
from drivers.confine import Root, entry_error, remove, split
from drivers.errors import HostileArchive, MalformedArchive
from drivers.tarformat import Entry, clean_name, show

if TYPE_CHECKING:
    from drivers.idmap import IDMappings
    from drivers.limits import Limits
    from drivers.rescue import Rescue

WHITEOUT = b".wh."
WHITEOUT_META = b".wh..wh."
OPAQUE = b".wh..wh..opq"
_ID_MAX = (1 << 32) - 2
_SECONDS_MAX = 1 << 62
_NO_SUCH_OWNER = (errno.EPERM, errno.EINVAL)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_SKIPPED_XATTRS = frozenset((b"security.selinux",))
_DEVICES = {tar.CHARDEV: stat.S_IFCHR, tar.BLOCKDEV: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}


def is_whiteout(path: bytes) -> bool:
    """Whether a clean path is a whiteout or one of its relatives."""
    return split(path)[1].startswith(WHITEOUT)


@lru_cache(maxsize=1)
def in_user_namespace() -> bool:
    """Whether this process is root of less than the whole machine (user_namespaces(7))."""
    try:
        with open("/proc/self/uid_map", "rb") as table:
            return table.read().split() != [b"0", b"0", b"4294967295"]
    except OSError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The tree an archive goes into, and how owners in the archive become owners there."""

    root: Root
    mappings: IDMappings
    beneath: Beneath = NOTHING
    ignore_chown_errors: bool = False


class Unpacker:
    """Applies entries one after another to the tree ``target``.

    Args:
        seen: marks shared with the compiled loop.
        loop: gets directory times, and is told when directories go.
        rescue: asked to set aside content this archive removes again.

    Raises (every call):
        MalformedArchive, HostileArchive: naming the entry; OSError: the system refused.
    """

    def __init__(self, target: Target, limits: Limits, seen: Seen, loop: Loop, rescue: Rescue | None) -> None:
        self._root = target.root
        self._mappings = target.mappings
        self._beneath = target.beneath
        self._ignore_chown_errors = target.ignore_chown_errors
        self._limits = limits
        self._seen = seen
        self._loop = loop
        self._rescue = rescue
        self._parent: tuple[bytes, int, bytes] | None = None
        self.uids: set[int] = set()
        self.gids: set[int] = set()
        self.entries = 0
        self.content_size = 0

    def close(self) -> None:
        """Release descriptors."""
        self._forget_parent()

    def apply(self, entry: Entry, path: bytes, content: Iterable[bytes]) -> None:
        """Put one entry into the tree at the clean ``path``; consumes ``content`` whole."""
        self.entries += 1
        if self.entries >= self._limits.entries:
            raise HostileArchive(f"{show(entry.name)}: entry number {self.entries}, which is too many")
        self.content_size += entry.header_size
        try:
            if is_whiteout(path):
                self._whiteout(path)
                _exhaust(content)
            else:
                self._create(path, entry, content)
                self.uids.add(entry.uid)
                self.gids.add(entry.gid)
        except OSError as error:
            raise entry_error(entry.name, error) from error
        self._seen.add(ENTRY, path)

    # -- parents -------------------------------------------------------------------------------------

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _parent_of(self, path: bytes) -> tuple[int, bytes]:
        """Descriptor and canonical path of the directory that holds ``path``; made if it is missing."""
        parent = split(path)[0]
        if self._parent is None or self._parent[0] != parent:
            self._forget_parent()
            fd, canonical = self._open_parent(parent)
            self._parent = (parent, fd, canonical)
            self._mark_above(canonical)
        return self._parent[1], self._parent[2]

    def _open_parent(self, parent: bytes) -> tuple[int, bytes]:
        try:
            return self._root.open_directory(parent), parent
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
        canonical = self._resolve(parent)
        self._make_parents(canonical)
        return self._root.open_directory(canonical), canonical

    def _resolve(self, path: bytes) -> bytes:
        """``path`` with its symbolic links followed, those from below among them."""
        while True:
            self._beneath.bring(path)
            resolved = self._root.canonical(path, self._planted)
            if resolved == path:
                return resolved
            path = resolved

    def _planted(self, path: bytes) -> bool:
        return self._seen.has(LINK, path)

    def _mark_above(self, path: bytes) -> None:
        while path and self._seen.add(PARENT, path):
            path = split(path)[0]

    def _make_parents(self, parent: bytes) -> None:
        """Missing directories: mode 0755, owned by the container's root."""
        parts = parent.split(b"/") if parent else []
        for depth in range(1, len(parts) + 1):
            fd = self._root.open_directory(b"/".join(parts[: depth - 1]))
            try:
                self._make_parent(fd, parts[depth - 1])
            finally:
                os.close(fd)

    def _make_parent(self, directory: int, name: bytes) -> None:
        covered = self._beneath.uncover(directory, name)
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
        except FileExistsError:
            return
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            self._own(fd, stat.S_IFDIR, *self._mappings.root, 0o755)
            if covered:
                self._beneath.hide_content(fd)
        finally:
            os.close(fd)

    # -- whiteouts -----------------------------------------------------------------------------------

    def _whiteout(self, path: bytes) -> None:
        directory, parent = self._parent_of(path)
        name = split(path)[1]
        if name == OPAQUE:
            self._opaque(parent)
        elif not name.startswith(WHITEOUT_META):
            target = name[len(WHITEOUT) :]
            if target in (b"", b".", b".."):
                raise HostileArchive(f"{show(path)}: a whiteout of {show(target)}")
            self._remove(directory, parent, target)
            self._beneath.hide(directory, _join(parent, target), target)

    def _opaque(self, path: bytes) -> None:
        """Remove what earlier layers left in a directory, and keep what this archive put there."""
        todo = [path]
        while todo:
            here = todo.pop()
            directory = self._root.open_directory(here)
            try:
                if here == path:
                    self._beneath.hide_content(directory)
                for name in map(os.fsencode, os.listdir(directory)):
                    child = _join(here, name)
                    if not (self._seen.has(ENTRY, child) or self._seen.has(PARENT, child)):
                        self._remove(directory, here, name)
                    elif stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
                        todo.append(child)
            finally:
                os.close(directory)

    def _remove(self, directory: int, parent: bytes, name: bytes) -> None:
        path = _join(parent, name)
        known = self._seen.has(ENTRY, path) or self._seen.has(PARENT, path)
        try:
            if known and self._rescue is not None:
                self._rescue.save(path)
        except FileNotFoundError:
            return
        if remove(directory, name):
            self._seen.drop(LINK, path)
            self._loop.forget()
            if self._parent is not None and directory != self._parent[1]:
                self._forget_parent()

    # -- entries -------------------------------------------------------------------------------------

    def _create(self, path: bytes, entry: Entry, content: Iterable[bytes]) -> None:
        if not path:
            self._existing_root(entry)
            return
        directory, parent = self._parent_of(path)
        name = split(path)[1]
        place = _join(parent, name)
        stays, replaced = self._clear(directory, parent, name, entry)
        if place != path:
            self._seen.add(PARENT, place)
            if self._rescue is not None:
                self._rescue.alias(place, path)
        if entry.is_file:
            self._file(directory, name, entry, content)
            return
        if entry.type == tar.DIRECTORY:
            if not stays:
                os.mkdir(name, 0o700, dir_fd=directory)
        elif entry.type == tar.SYMLINK:
            self._symlink(directory, name, place, entry)
        elif entry.type == tar.HARDLINK:
            self._hardlink(directory, name, entry)
        elif not self._special(directory, name, entry):
            return
        self._finish_entry(directory, place, name, entry, replaced=replaced)

    def _clear(self, directory: int, parent: bytes, name: bytes, entry: Entry) -> tuple[bool, bool]:
        """Remove what is in the way; whether a directory stays to be merged with, and if anything went."""
        wanted = entry.type == tar.DIRECTORY
        try:
            mode = os.lstat(name, dir_fd=directory).st_mode
        except FileNotFoundError:
            return wanted and self._beneath.bring_directory(directory, _join(parent, name), name), False
        if stat.S_ISDIR(mode) and wanted:
            return True, False
        self._remove(directory, parent, name)
        return False, True

    def _existing_root(self, entry: Entry) -> None:
        if entry.type != tar.DIRECTORY:
            raise HostileArchive(f"{show(entry.name)}: the layer's root can only be a directory")
        self._set_metadata(self._root.fd, entry)
        self._note_time(b"", entry)

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
            os.utime(fd, ns=_times(entry))
        finally:
            os.close(fd)

    def _symlink(self, directory: int, name: bytes, place: bytes, entry: Entry) -> None:
        if not entry.linkname:
            raise MalformedArchive(f"{show(entry.name)}: a symbolic link without a target")
        os.symlink(entry.linkname, name, dir_fd=directory)
        self._seen.add(LINK, place)

    def _hardlink(self, directory: int, name: bytes, entry: Entry) -> None:
        target = self._link_target(entry)
        parent, last = split(target)
        try:
            parent = self._resolve(parent)
            fd = self._root.open_directory(parent)
            try:
                self._beneath.bring_file(fd, _join(parent, last), last)
                os.link(last, name, src_dir_fd=fd, dst_dir_fd=directory, follow_symlinks=False)
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            text = f"{show(entry.name)}: a hard link to {show(target)}: {error.strerror}"
            raise MalformedArchive(text) from None

    def _link_target(self, entry: Entry) -> bytes:
        try:
            target = clean_name(entry.linkname)
        except (HostileArchive, MalformedArchive) as error:
            raise type(error)(f"{show(entry.name)}: a hard link to {error}") from None
        if not target:
            raise HostileArchive(f"{show(entry.name)}: a hard link to the layer's root")
        return target

    def _special(self, directory: int, name: bytes, entry: Entry) -> bool:
        """Make a device or fifo; false where a user namespace forbids devices (FORMAT 6.1)."""
        kind = _DEVICES.get(entry.type)
        if kind is None:
            raise MalformedArchive(f"{show(entry.name)}: unknown entry type {bytes([entry.type])!r}")
        if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
            raise MalformedArchive(f"{show(entry.name)}: device number {entry.major}:{entry.minor}")
        try:
            os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=directory)
        except PermissionError:
            if entry.type != tar.FIFO and in_user_namespace():
                return False
            raise
        return True

    # -- metadata ------------------------------------------------------------------------------------

    def _finish_entry(
        self, directory: int, place: bytes, name: bytes, entry: Entry, *, replaced: bool
    ) -> None:
        is_directory = entry.type == tar.DIRECTORY
        fd = os.open(name, _DIRECTORY if is_directory else os.O_PATH | os.O_NOFOLLOW, dir_fd=directory)
        try:
            self._set_metadata(fd, entry, by_link=not is_directory)
            if is_directory and replaced:
                self._beneath.hide_content(fd)
        finally:
            os.close(fd)
        if is_directory:
            self._loop.forget()
            self._note_time(place, entry)
        else:
            os.utime(name, ns=_times(entry), dir_fd=directory, follow_symlinks=False)

    def _note_time(self, place: bytes, entry: Entry) -> None:
        self._loop.add_time(place, *divmod(_times(entry)[0], tar.NS))

    def _set_metadata(self, fd: int, entry: Entry, *, by_link: bool = False) -> None:
        """Owner, mode, xattrs; in this order, for chown clears setuid bits and capabilities.

        ``by_link``: ``fd`` is an O_PATH descriptor, which calls reach by its link in /proc.
        """
        target: int | bytes = b"/proc/self/fd/%d" % fd if by_link else fd
        kind = os.fstat(fd).st_mode
        self._own(target, kind, *self._host_owner(entry), entry.mode)
        for name, value in entry.xattrs.items():
            if name not in _SKIPPED_XATTRS and self._beneath.accepts(name):
                _set_xattr(target, name, value)

    def _own(self, target: int | bytes, kind: int, uid: int, gid: int, mode: int) -> None:
        if self._beneath.own(target, uid, gid, stat.S_IFMT(kind) | mode):
            return
        self._chown(target, uid, gid)
        if not stat.S_ISLNK(kind):
            os.chmod(target, mode)

    def _chown(self, target: int | bytes, uid: int, gid: int) -> None:
        try:
            os.chown(target, uid, gid)
        except OSError as error:
            if not self._ignore_chown_errors or error.errno not in _NO_SUCH_OWNER:
                raise

    def _host_owner(self, entry: Entry) -> tuple[int, int]:
        if not (0 <= entry.uid <= _ID_MAX and 0 <= entry.gid <= _ID_MAX):
            raise MalformedArchive(f"{show(entry.name)}: owner {entry.uid}:{entry.gid} is not possible")
        try:
            return self._mappings.to_host(entry.uid, entry.gid)
        except ValueError as error:
            raise MalformedArchive(f"{show(entry.name)}: {error}") from None


def _join(parent: bytes, name: bytes) -> bytes:
    return parent + b"/" + name if parent else name


def _set_xattr(target: int | bytes, name: bytes, value: bytes) -> None:
    try:
        os.setxattr(target, name, value)
    except OSError as error:
        if error.errno == errno.ENOTSUP or (error.errno == errno.EPERM and in_user_namespace()):
            return
        raise OSError(error.errno, f"extended attribute {show(name)}: {error.strerror}") from error


def _times(entry: Entry) -> tuple[int, int]:
    if abs(entry.mtime_ns // tar.NS) >= _SECONDS_MAX:
        raise MalformedArchive(f"{show(entry.name)}: a time of {entry.mtime_ns // tar.NS} seconds")
    return entry.mtime_ns, entry.mtime_ns


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
