"""Writes the tar of a layer from its tree: the archive ``diff`` gives where no tar-split exists.

Header conventions are those of containers/storage, whose digests depend on them, and of the Go tar
writer below it: USTAR wherever a header fits, a pax header with only the needed keys otherwise
(FORMAT 6.3).
"""

from __future__ import annotations

import enum
import errno
import grp
import os
import pwd
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, BinaryIO

from drivers import tarformat as tar
from drivers.base import Change, ChangeKind
from drivers.compress import reader_of
from drivers.confine import Root, split
from drivers.idmap import IDMappings
from drivers.tarformat import BLOCK, XATTR_PREFIX

if TYPE_CHECKING:
    from pathlib import Path

_PIECE = 1 << 20
_GATHER = 1 << 16
"""Small pieces are joined up to this size before they are handed on."""
END = bytes(2 * BLOCK)
_ID_OCTAL_MAX = 0o7777777
_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Gone, something else, or a symbolic link."""
_USER = b"user."
_SECURITY = (b"security.capability", b"security.ima")


class HeaderStyle(enum.Enum):
    """Which generation of containers/storage the headers follow; digests differ between them."""

    V1_43 = "1.43"
    """Mode fields carry the file type bits; owners' names are looked up on the host."""
    HEAD = "head"
    """Permission bits only, no owners' names, no overlay xattrs (since 1.48 and 1.53)."""


@dataclass(slots=True, kw_only=True)
class Member:
    """What goes into one header; ``path`` has no leading slash, a directory's ends in one."""

    path: bytes
    type: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    linkname: bytes = b""
    uname: bytes = b""
    gname: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


# -- headers -----------------------------------------------------------------------------------


def header_blocks(member: Member) -> bytes:
    """All header blocks of a member: a pax header if it needs one, then its own."""
    split_at = _ustar_split(member.path)
    records = _needed_records(member, split_at)
    if not records:
        prefix, name = (
            (member.path[:split_at], member.path[split_at + 1 :]) if split_at else (b"", member.path)
        )
        return _block(member, name, prefix)
    body = tar.format_pax(records)
    directory, base = split(member.path)
    pax_path = b"/".join(part for part in (directory, b"PaxHeaders.0", base) if part)
    pax_name = _ascii(pax_path)[:100].rstrip(b"/")
    pax = Member(path=pax_name, type=tar.PAX, size=len(body))
    return (
        _block(pax, pax_name, b"")
        + body
        + bytes(tar.padding(len(body)))
        + _block(member, _ascii(member.path), b"")
    )


def header_size(member: Member) -> int:
    """Bytes of :func:`header_blocks`, without making them."""
    records = _needed_records(member, _ustar_split(member.path))
    if not records:
        return BLOCK
    length = len(tar.format_pax(records))
    return 2 * BLOCK + length + tar.padding(length)


def _needed_records(member: Member, split_at: int) -> dict[bytes, bytes]:
    """What a pax header must hold; nothing where its own header is enough, if need be with a split path."""
    records = _pax_records(member)
    return records if records.keys() - ({b"path"} if split_at else set()) else {}


def _pax_records(member: Member) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    for key, value, width in ((b"path", member.path, 100), (b"linkpath", member.linkname, 100)):
        if len(value) > width or not value.isascii():
            records[key] = value
    for key, value, width in ((b"uname", member.uname, 32), (b"gname", member.gname, 32)):
        if len(value) > width or not value.isascii():
            records[key] = value
    for key, number, width in (
        (b"uid", member.uid, 8),
        (b"gid", member.gid, 8),
        (b"size", member.size, 12),
        (b"mtime", member.mtime, 12),
    ):
        if tar.format_number(number, width) is None:
            records[key] = str(number).encode()
    records.update((XATTR_PREFIX + name, value) for name, value in member.xattrs)
    return records


def _ustar_split(path: bytes) -> int:
    """Where a USTAR header may cut a long path into prefix and name; 0 if it cannot or need not."""
    if len(path) <= 100 or not path.isascii():
        return 0
    length = len(path)
    if length > 156:
        length = 156
    elif path.endswith(b"/"):
        length -= 1
    at = path.rfind(b"/", 0, length)
    rest = len(path) - at - 1
    return at if 0 < at <= 155 and 0 < rest <= 100 else 0


def _ascii(text: bytes) -> bytes:
    return bytes(b for b in text if 0 < b < 128)


def _string(value: bytes, width: int) -> bytes:
    cut = value[:width]
    if len(value) > width:
        # A cut at a slash would make a file look like a directory to old readers.
        cut = cut.rstrip(b"/")
    return cut.ljust(width, b"\0")


def _number(value: int, width: int) -> bytes:
    return tar.format_number(value, width) or tar.format_number(0, width) or b""


def _block(member: Member, name: bytes, prefix: bytes) -> bytes:
    head = b"".join(
        (
            _string(name, 100),
            _number(member.mode, 8),
            _number(member.uid, 8),
            _number(member.gid, 8),
            _number(member.size, 12),
            _number(member.mtime, 12),
        )
    )
    tail = b"".join(
        (
            bytes([member.type]),
            _string(_ascii(member.linkname), 100),
            b"ustar\x0000",
            _string(_ascii(member.uname), 32),
            _string(_ascii(member.gname), 32),
            # Go leaves these two empty in a pax header.
            bytes(16) if member.type == tar.PAX else _number(member.major, 8) + _number(member.minor, 8),
            _string(prefix, 155),
            bytes(12),
        )
    )
    total = sum(head) + sum(tail) + 8 * 32
    return b"%s%06o\0 %s" % (head, total, tail)


# -- members from the tree ---------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _user_name(uid: int) -> bytes:
    try:
        return os.fsencode(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return b""


@lru_cache(maxsize=4096)
def _group_name(gid: int) -> bytes:
    try:
        return os.fsencode(grp.getgrgid(gid).gr_name)
    except (KeyError, OverflowError):
        return b""


_TYPES = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHARDEV,
    stat.S_IFBLK: tar.BLOCKDEV,
    stat.S_IFIFO: tar.FIFO,
}


class TreeArchiver:
    """Turns paths of one tree into archive bytes; remembers inodes to write hard links once."""

    def __init__(
        self, root: Root, mappings: IDMappings | None, style: HeaderStyle, *, measures: bool = False
    ) -> None:
        self.size = 0
        """Bytes that ``measures`` had counted instead of made."""
        self._measures = measures
        self._root = root
        self._mappings = mappings or IDMappings()
        self._style = style
        self._links: dict[tuple[int, int], bytes] = {}
        self._parent: tuple[bytes, int] | None = None

    def close(self) -> None:
        """Release descriptors."""
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None
        self._root.close()

    def whiteout(self, path: bytes) -> bytes:
        """The header that deletes ``path``.

        Its time is that of the directory, which the deletion changed; the original takes the present, so that
        no two of its archives of one state are the same (FORMAT 6.3).
        """
        parent, name = split(path)
        full = parent + b"/.wh." + name if parent else b".wh." + name
        try:
            changed = os.fstat(self._directory(parent)).st_mtime
        except OSError:
            changed = time.time()
        return self._header(Member(path=full, type=tar.REGULAR, mtime=int(changed)))

    def add(self, path: bytes) -> Iterator[bytes]:
        """Header and content of ``path``.

        Nothing for a socket, for an owner without a mapping (FORMAT 6.3), and for what has gone since
        the list of changes was made.
        """
        parent, name = split(path)
        try:
            directory = self._directory(parent)
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            yield from self._add(path, fd, directory, name)
        finally:
            os.close(fd)

    def _add(self, path: bytes, fd: int, directory: int, name: bytes) -> Iterator[bytes]:
        st = os.fstat(fd)
        member = self._member(path, fd, st)
        if member is None:
            return
        if member.type != tar.REGULAR or not member.size:
            yield self._header(member)
            return
        if self._measures:
            self.size += member.size + tar.padding(member.size)
            yield self._header(member)
            return
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        try:
            yield self._header(member)
            yield from _content(source, member.size)
        finally:
            os.close(source)

    def _header(self, member: Member) -> bytes:
        if not self._measures:
            return header_blocks(member)
        self.size += header_size(member)
        return b""

    def _directory(self, parent: bytes) -> int:
        if self._parent is not None:
            if self._parent[0] == parent:
                return self._parent[1]
            os.close(self._parent[1])
            self._parent = None
        self._parent = (parent, self._root.open_directory(parent))
        return self._parent[1]

    def _member(self, path: bytes, fd: int, st: os.stat_result) -> Member | None:
        kind = _TYPES.get(stat.S_IFMT(st.st_mode))
        if kind is None:
            return None
        try:
            uid, gid = self._mappings.to_container(st.st_uid, st.st_gid)
        except ValueError:
            return None
        old = self._style is HeaderStyle.V1_43
        member = Member(
            path=path + b"/" if kind == tar.DIRECTORY else path,
            type=kind,
            mode=st.st_mode if old else stat.S_IMODE(st.st_mode),
            uid=uid,
            gid=gid,
            mtime=st.st_mtime_ns // tar.NS,
            uname=_user_name(st.st_uid) if old else b"",
            gname=_group_name(st.st_gid) if old else b"",
            xattrs=self._xattrs(fd, st),
        )
        self._fill(member, fd, st)
        return member

    def _fill(self, member: Member, fd: int, st: os.stat_result) -> None:
        if member.type == tar.SYMLINK:
            member.linkname = os.readlink(b"", dir_fd=fd)
        elif member.type in (tar.CHARDEV, tar.BLOCKDEV):
            member.major, member.minor = os.major(st.st_rdev), os.minor(st.st_rdev)
        elif member.type == tar.REGULAR:
            member.size = st.st_size
        if st.st_nlink > 1 and member.type != tar.DIRECTORY:
            first = self._links.setdefault((st.st_dev, st.st_ino), member.path)
            if first != member.path:
                member.type, member.linkname, member.size = tar.HARDLINK, first, 0

    def _xattrs(self, fd: int, st: os.stat_result) -> tuple[tuple[bytes, bytes], ...]:
        if stat.S_ISLNK(st.st_mode):
            return ()
        place = b"/proc/self/fd/%d" % fd
        try:
            names = [os.fsencode(name) for name in os.listxattr(place)]
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return ()
        return tuple((name, os.getxattr(place, name)) for name in sorted(names) if self._keeps(name))

    def _keeps(self, name: bytes) -> bool:
        if name.startswith(b"user.overlay.") and self._style is HeaderStyle.HEAD:
            return False
        return name in _SECURITY or name.startswith(_USER)


def _content(fd: int, size: int) -> Iterator[bytes]:
    """Exactly ``size`` bytes and their padding; a file that shrank meanwhile is filled with zeros."""
    left = size
    while left:
        piece = os.read(fd, min(left, _PIECE)) or bytes(min(left, _PIECE))
        left -= len(piece)
        yield piece
    if tar.padding(size):
        yield bytes(tar.padding(size))


# -- order -------------------------------------------------------------------------------------


def _tree_paths(root: Root) -> Iterator[bytes]:
    """Every path below the root, each directory's entries in name order, a directory before its content."""
    todo = [b""]
    while todo:
        path = todo.pop()
        if path:
            yield path
        try:
            fd = root.open_directory(path)
        except OSError as error:  # nothing else may pass: whatever it held would be missing unnoticed
            if error.errno not in _NO_DIRECTORY:
                raise
            continue
        try:
            names = sorted(map(os.fsencode, os.listdir(fd)), reverse=True)
        finally:
            os.close(fd)
        todo.extend(path + b"/" + name if path else name for name in names)


def _members(archiver: TreeArchiver, root: Root, changes: Iterable[Change] | None) -> Iterator[bytes]:
    if changes is None:
        for path in _tree_paths(root):
            yield from archiver.add(path)
        return
    for change in sorted(changes):
        path = change.path.lstrip(b"/")
        if change.kind is ChangeKind.DELETED:
            yield archiver.whiteout(path)
        elif path:
            yield from archiver.add(path)


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    small: list[bytes] = []
    total = 0
    for piece in pieces:
        small.append(piece)
        total += len(piece)
        if total >= _GATHER:
            yield b"".join(small)
            small, total = [], 0
    if small:
        yield b"".join(small)


def tar_chunks(
    root: int | Path,
    changes: Iterable[Change] | None,
    *,
    mappings: IDMappings | None = None,
    generation: HeaderStyle = HeaderStyle.V1_43,
) -> Iterator[bytes]:
    """The archive as an iterator of pieces; see :func:`open_diff`."""
    tree = Root(root)
    archiver = TreeArchiver(tree, mappings, generation)
    try:
        yield from _gathered(_members(archiver, tree, changes))
        yield END
    finally:
        archiver.close()


def archive_size(
    root: int | Path,
    changes: Iterable[Change] | None,
    *,
    mappings: IDMappings | None = None,
    generation: HeaderStyle = HeaderStyle.V1_43,
) -> int:
    """Bytes of the archive :func:`open_diff` gives, from the files' attributes alone."""
    tree = Root(root)
    archiver = TreeArchiver(tree, mappings, generation, measures=True)
    try:
        for _ in _members(archiver, tree, changes):
            pass
    finally:
        archiver.close()
    return archiver.size + len(END)


def write_tar(
    out: BinaryIO,
    root: int | Path,
    changes: Iterable[Change] | None,
    *,
    mappings: IDMappings | None = None,
    generation: HeaderStyle = HeaderStyle.V1_43,
) -> int:
    """Write the archive to ``out`` and return its size in bytes; see :func:`open_diff`."""
    total = 0
    for piece in tar_chunks(root, changes, mappings=mappings, generation=generation):
        out.write(piece)
        total += len(piece)
    return total


def open_diff(
    root: int | Path,
    changes: Iterable[Change] | None,
    *,
    mappings: IDMappings | None = None,
    generation: HeaderStyle = HeaderStyle.V1_43,
    on_close: Callable[[], None] | None = None,
) -> BinaryIO:
    """An uncompressed tar of ``changes`` as a stream, made while it is read, in constant memory.

    Args:
        root: the layer's tree, path or directory descriptor.
        changes: paths to archive, deletions becoming whiteouts; ``None`` for the complete tree.
        mappings: owners in the tree are host IDs; they become container IDs.
        on_close: called once when the stream is closed.

    Raises (while reading):
        OSError: a file cannot be read.
    """
    return reader_of(tar_chunks(root, changes, mappings=mappings, generation=generation), on_close)
