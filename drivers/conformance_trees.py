"""Trees for the conformance checks: steps that build and change them, and a census to compare them by.

A *step* is a function of a root directory. The same steps run in a driver's layer and in a plain directory
on the same filesystem, the oracle; afterwards both have the same census.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Step = Callable[[Path], None]

EPOCH = 1_500_000_000
"""Whole seconds, because not every archive format keeps more."""
SPARSE_SIZE = 16 << 20
DEEP = 300
LONG_NAME = "n" * 255
RAW_NAME = b"caf\xe9-\xff\x80"
CAPABILITY = struct.pack("<IIIII", 0x02000000 | 1, 1 << 10, 0, 0, 0)
"""security.capability revision 2, effective, CAP_NET_BIND_SERVICE permitted (linux/capability.h)."""
_UNORDERED = ("security.selinux", "security.ima", "security.evm", "btrfs.compression")


# -- census ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Everything a user can see of one file; ``links`` are all its paths in the tree."""

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    device: int
    content: str
    sparse: bool
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[bytes, ...]


Census = dict[bytes, Fact]


def census(root: Path) -> Census:
    """Facts of ``root`` (as ``b"."``) and of everything below it, by relative path."""
    statuses = dict(_below(root))
    links: dict[tuple[int, int], list[bytes]] = {}
    for path, status in statuses.items():
        if not stat.S_ISDIR(status.st_mode):
            links.setdefault((status.st_dev, status.st_ino), []).append(path)
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return {
            path: _fact(top, path, status, tuple(sorted(links.get((status.st_dev, status.st_ino), ()))))
            for path, status in statuses.items()
        }
    finally:
        os.close(top)


def _below(root: Path) -> list[tuple[bytes, os.stat_result]]:
    found, pending = [(b".", os.lstat(root))], [b"."]
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while pending:
            base = pending.pop()
            fd = _open_below(top, base, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for name in os.listdir(fd):
                    raw = os.fsencode(name)
                    path = raw if base == b"." else base + b"/" + raw
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    found.append((path, status))
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(path)
            finally:
                os.close(fd)
    finally:
        os.close(top)
    return found


def _open_below(top: int, path: bytes, flags: int) -> int:
    """Open ``path`` in pieces, so that its length does not matter (PATH_MAX)."""
    fd = os.dup(top)
    *directories, last = _pieces(path)
    for piece in directories:
        inner = os.open(piece, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        os.close(fd)
        fd = inner
    try:
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)


def _pieces(path: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    for part in path.split(b"/"):
        if pieces and len(pieces[-1]) + len(part) < 2000:
            pieces[-1] += b"/" + part
        else:
            pieces.append(part)
    return pieces


def _fact(top: int, path: bytes, status: os.stat_result, links: tuple[bytes, ...]) -> Fact:
    fd = _open_below(top, path, os.O_PATH)
    try:
        handle = f"/proc/self/fd/{fd}"
        return Fact(
            kind=_KINDS[stat.S_IFMT(status.st_mode)],
            mode=stat.S_IMODE(status.st_mode),
            owner=(status.st_uid, status.st_gid),
            mtime_ns=status.st_mtime_ns,
            device=status.st_rdev if stat.S_IFMT(status.st_mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            content=_content(fd, handle, status),
            sparse=stat.S_ISREG(status.st_mode) and status.st_blocks * 512 < status.st_size // 2,
            xattrs=_xattrs(handle, status),
            links=links,
        )
    finally:
        os.close(fd)


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def _content(fd: int, handle: str, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return os.fsdecode(os.readlink(b"", dir_fd=fd))
    if not stat.S_ISREG(status.st_mode):
        return ""
    digest = hashlib.blake2b(digest_size=16)
    with open(handle, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return f"{status.st_size}:{digest.hexdigest()}"


def _xattrs(handle: str, status: os.stat_result) -> tuple[tuple[str, bytes], ...]:
    if stat.S_ISLNK(status.st_mode):
        return ()
    names = sorted(name for name in os.listxattr(handle) if name not in _UNORDERED)
    return tuple((name, os.getxattr(handle, name)) for name in names)


def difference(got: Census, wanted: Census) -> str:
    """The first differences in words, empty when there are none."""
    lines = [f"missing {path!r}" for path in sorted(wanted.keys() - got.keys())]
    lines += [f"unexpected {path!r}" for path in sorted(got.keys() - wanted.keys())]
    for path in sorted(got.keys() & wanted.keys()):
        lines += [
            f"{path!r} {name}: {getattr(got[path], name)!r}, oracle {getattr(wanted[path], name)!r}"
            for name in Fact.__slots__
            if getattr(got[path], name) != getattr(wanted[path], name)
        ]
    return "\n".join(lines[:20])


# -- steps -------------------------------------------------------------------------------------


def settle(root: Path, when: int = EPOCH) -> None:
    """Give everything below ``root``, and it, the same known time, the deepest first."""
    for path, status in reversed(_below(root)):
        if status.st_mtime_ns == when * 10**9:
            continue  # a touched file is a changed file: a union of directories would copy it
        place = os.fsencode(root) + b"/" + path
        try:
            os.utime(place, (when, when), follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise


def plain_files(root: Path) -> None:
    """Files and directories with every interesting mode, several owners, and contents of several sizes."""
    for number, mode in enumerate((0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6711, 0o000, 0o444)):
        path = root / f"file{number}"
        path.write_bytes(bytes([number]) * (number * 5000))
        os.chown(path, number, number + 100)
        path.chmod(mode)
    for name, mode in (("d0", 0o755), ("d1", 0o1777), ("d2", 0o2775), ("d3", 0o700)):
        (root / name).mkdir()
        (root / name / "inside").write_text(name)
        os.chown(root / name, 7, 8)
        (root / name).chmod(mode)
    (root / "big").write_bytes(hashlib.shake_128(b"big").digest(3 << 20))


def links_and_names(root: Path) -> None:
    """Hard links within and across directories, symbolic links of all sorts, and awkward names."""
    (root / "a").write_text("linked")
    (root / "sub").mkdir()
    os.link(root / "a", root / "b")
    os.link(root / "a", root / "sub" / "c")
    (root / "relative").symlink_to("sub/c")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "dangling").symlink_to("nowhere/at/all")
    (root / "long").symlink_to("x" * 1000)
    os.chown(root / "dangling", 12, 34, follow_symlinks=False)
    (root / LONG_NAME).write_text("255 bytes")
    Path(os.fsdecode(os.path.join(os.fsencode(root), RAW_NAME))).write_text("not UTF-8")
    for name in (" ", "new\nline", "-rf", "*", "\\", "tab\t", "🐘", ".hidden", "..."):
        (root / name).write_text(name)


def special_files(root: Path) -> None:
    """FIFO, socket, character and block devices, with owners and modes."""
    os.mkfifo(root / "fifo", 0o620)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o640, os.makedev(8, 17))
    bind_socket(root / "socket")
    for name in ("fifo", "null", "disk", "socket"):
        os.chown(root / name, 3, 4)


def bind_socket(path: Path) -> None:
    """Make a socket through a short path: ``sun_path`` holds 108 bytes."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)


def extended_attributes(root: Path) -> None:
    """User and trusted attributes, ACLs with named users, default ACLs, and a file capability."""
    path = root / "attributes"
    path.write_text("x")
    os.setxattr(path, "user.note", b"\x00binary\xff")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.large", b"v" * 2000)
    os.setxattr(path, "trusted.note", b"kept")
    (root / "directory").mkdir()
    os.setxattr(root / "directory", "user.note", b"on a directory")
    os.setxattr(path, "system.posix_acl_access", acl(user=1000, group=1001))
    os.setxattr(root / "directory", "system.posix_acl_default", acl(user=1002, group=1003))
    tool = root / "tool"
    tool.write_bytes(b"#!/bin/true\n")
    tool.chmod(0o755)
    os.setxattr(tool, "security.capability", CAPABILITY)


def acl(*, user: int, group: int) -> bytes:
    """A POSIX ACL as its attribute holds it: ``u::rw-,u:USER:r--,g::r--,g:GROUP:r-x,m::r-x,o::---``."""
    none = 0xFFFFFFFF
    entries = ((1, 6, none), (2, 4, user), (4, 4, none), (8, 5, group), (16, 5, none), (32, 0, none))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def sparse_files(root: Path) -> None:
    """A file with data between holes, one that is all hole, and one that ends in a hole."""
    with (root / "islands").open("wb") as file:
        for offset in (1 << 20, 9 << 20):
            file.seek(offset)
            file.write(b"island" * 100)
        file.truncate(SPARSE_SIZE)
    with (root / "hole").open("wb") as file:
        file.truncate(SPARSE_SIZE)


def deep_tree(root: Path) -> None:
    """Directories nested until the path is far longer than PATH_MAX."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for level in range(DEEP):
            name = f"level-{level:03}-{'x' * 20}"
            os.mkdir(name, dir_fd=fd)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    finally:
        os.close(fd)
    _settle_down(root)


def _settle_down(root: Path) -> None:
    fds = [os.open(root, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for level in range(DEEP):
            name = f"level-{level:03}-{'x' * 20}"
            fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
        os.utime("bottom", (EPOCH, EPOCH), dir_fd=fds[-1])
        for fd in reversed(fds):
            os.utime(fd, (EPOCH, EPOCH))
    finally:
        for fd in fds:
            os.close(fd)


def edits(root: Path) -> None:
    """Changes to what :func:`plain_files` made: content, mode, owner, type, name, and absence."""
    (root / "file0").write_text("new content")
    (root / "file1").chmod(0o640)
    os.chown(root / "file2", 50, 60)
    (root / "file3").unlink()
    (root / "file4").unlink()
    (root / "file4").mkdir()
    (root / "file4" / "now").write_text("a directory")
    (root / "file5").rename(root / "renamed")
    with (root / "big").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed in the middle")
    remove_flat(root / "d3")
    move_flat(root / "d0", root / "d9")
    (root / "d1" / "added").write_text("added")
    remove_flat(root / "d2")
    (root / "d2").write_text("a file now")


EDITED = {
    b"/": "C", b"/big": "C", b"/file0": "C", b"/file1": "C", b"/file2": "C", b"/file3": "D", b"/file4": "C",
    b"/file4/now": "A", b"/file5": "D", b"/renamed": "A", b"/d0": "D", b"/d9": "A", b"/d9/inside": "A",
    b"/d1": "C", b"/d1/added": "A", b"/d2": "C", b"/d3": "D",
}  # fmt: skip
"""What :func:`edits` after :func:`plain_files` amounts to, by containers/storage's rules (FORMAT 6.2)."""


def move_flat(source: Path, target: Path) -> None:
    """Move a directory that holds files only, as mv(1) does where rename(2) says EXDEV (overlay)."""
    status = source.stat()
    target.mkdir()
    for entry in source.iterdir():
        entry.rename(target / entry.name)
    source.rmdir()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))


def remove_flat(directory: Path) -> None:
    """Remove a directory that holds files only."""
    for entry in directory.iterdir():
        entry.unlink()
    directory.rmdir()


def relinked(root: Path) -> None:
    """Changes to what :func:`links_and_names` made: new hard links, another target, other long names.

    Every old name of the linked file goes first: a union of directories cannot know the names a lower
    file has elsewhere, and would tear the links apart.
    """
    for name in ("a", "b", "sub/c"):
        (root / name).unlink()
    (root / "sub" / "d").write_text("linked anew")
    os.link(root / "sub" / "d", root / "b")
    (root / "relative").unlink()
    (root / "relative").symlink_to("b")
    (root / LONG_NAME).rename(root / ("m" * 255))
