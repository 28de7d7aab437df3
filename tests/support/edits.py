"""Edit scripts: a tree changed at random by everything that can change one.

An edit is a tuple of plain values, so that Hypothesis can shrink a script. One that is impossible
where it stands (the target is missing, a directory is not empty) does nothing.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import stat
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from drivers import btrfs_ioctl, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Edit = tuple[str, int, int, int]
    Script = Sequence[Edit]

PATHS = ["/".join(parts) for depth in (1, 2, 3) for parts in product("abc", repeat=depth)]
TIMES = (10**18, 10**18 + 7, 10**18 + 999_999_999, 10**18 + 10**9, -(10**9) + 3, 0, 7, 2**31 * 10**9)
CAPABILITIES = (
    bytes.fromhex("0100000200200000000000000000000000000000"),
    bytes.fromhex("0100000200040000000000000000000000000000"),
)
_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


_UNUSED_MAJOR = 4000
"""No driver has it: a script must never reach a device of the machine through a node it made."""


def _open(path: Path, flags: int) -> int:
    """Open without waiting for the other end of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)


def _fill(path: Path, flags: int, data: bytes) -> None:
    fd = _open(path, flags)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _parent(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def _write(path: Path, other: Path, n: int) -> None:
    _parent(path)
    _fill(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, bytes([n]) * (n * 1000 + 1))


def _append(path: Path, other: Path, n: int) -> None:
    _fill(path, os.O_WRONLY | os.O_APPEND, b"x" * n)


def _truncate(path: Path, other: Path, n: int) -> None:
    os.truncate(path, n * 500)


def _rewrite_in_secret(path: Path, other: Path, n: int) -> None:
    status = os.lstat(path)
    _fill(path, os.O_WRONLY, bytes([n + 65]) * min(status.st_size, 9))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _mkdir(path: Path, other: Path, n: int) -> None:
    path.mkdir(parents=True)


def _remove(path: Path, other: Path, n: int) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _rename(path: Path, other: Path, n: int) -> None:
    if n % 2:
        _parent(other)
    os.rename(path, other)


def _exchange(path: Path, other: Path, n: int) -> None:
    syscalls.renameat2(path, other, syscalls.RENAME_EXCHANGE)


def _away_and_back(path: Path, other: Path, n: int) -> None:
    os.rename(path, other)
    os.rename(other, path)


def _recreate(path: Path, other: Path, n: int) -> None:
    status = os.lstat(path)
    if stat.S_ISDIR(status.st_mode):
        names = os.listdir(path)
        os.rename(path, f"{path}~")
        path.mkdir(mode=stat.S_IMODE(status.st_mode))
        for name in names[n % 2 :]:
            os.rename(f"{path}~/{name}", path / name)
        shutil.rmtree(f"{path}~")
    elif stat.S_ISREG(status.st_mode):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path, other: Path, n: int) -> None:
    draft = path.parent / "draft"
    draft.write_bytes(b"r" * n)
    os.replace(draft, path)


def _link(path: Path, other: Path, n: int) -> None:
    if n % 2:
        _parent(other)
    os.link(path, other, follow_symlinks=False)


def _symlink(path: Path, other: Path, n: int) -> None:
    _parent(path)
    os.symlink("abcdefgh"[: n + 1], path)


def _special(path: Path, other: Path, n: int) -> None:
    _parent(path)
    kinds = (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)
    if n == 7:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        return
    os.mknod(path, kinds[n % 4] | 0o600, os.makedev(_UNUSED_MAJOR, n))


def _chmod(path: Path, other: Path, n: int) -> None:
    os.chmod(path, (0o644, 0o755, 0o4755, 0o600, 0o1777, 0o700, 0o2755, 0o000)[n])


def _chown(path: Path, other: Path, n: int) -> None:
    os.chown(path, n, n // 2, follow_symlinks=False)


def _utime(path: Path, other: Path, n: int) -> None:
    os.utime(path, ns=(TIMES[n], TIMES[n]), follow_symlinks=False)


def _set_xattr(path: Path, other: Path, n: int) -> None:
    name = ("user.a", "user.b", "trusted.a", "security.b")[n % 4]
    os.setxattr(path, name, b"v" * n, follow_symlinks=False)


def _remove_xattr(path: Path, other: Path, n: int) -> None:
    names = os.listxattr(path, follow_symlinks=False)
    os.removexattr(path, names[n % len(names)] if names else "user.a", follow_symlinks=False)


def _capability(path: Path, other: Path, n: int) -> None:
    os.setxattr(path, "security.capability", CAPABILITIES[n % 2], follow_symlinks=False)


def _fallocate(path: Path, other: Path, n: int) -> None:
    mode = (0, _KEEP_SIZE, _KEEP_SIZE | _PUNCH_HOLE, _KEEP_SIZE)[n % 4]
    fd = _open(path, os.O_RDWR)
    try:
        _libc.fallocate(fd, mode, ctypes.c_long(4096 * (n // 4)), ctypes.c_long(8192))
    finally:
        os.close(fd)


def _clone(path: Path, other: Path, n: int) -> None:
    _parent(other)
    source = _open(path, os.O_RDONLY)
    try:
        target = _open(other, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            syscalls.clone_file(target, source)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _commit(path: Path, other: Path, n: int) -> None:
    btrfs_ioctl.sync(_existing(path))


def _subvolume(path: Path, other: Path, n: int) -> None:
    _parent(path)
    btrfs_ioctl.create_subvolume(path.parent, path.name)
    for name in "abc"[: n % 4]:
        (path / name).write_bytes(b"nested")


def _existing(path: Path) -> Path:
    while not path.is_dir():
        path = path.parent
    return path


EDITS: dict[str, Callable[[Path, Path, int], None]] = {
    "write": _write,
    "append": _append,
    "truncate": _truncate,
    "rewrite in secret": _rewrite_in_secret,
    "mkdir": _mkdir,
    "remove": _remove,
    "rename": _rename,
    "exchange": _exchange,
    "away and back": _away_and_back,
    "recreate": _recreate,
    "replace": _replace,
    "link": _link,
    "symlink": _symlink,
    "special": _special,
    "chmod": _chmod,
    "chown": _chown,
    "utime": _utime,
    "set xattr": _set_xattr,
    "remove xattr": _remove_xattr,
    "capability": _capability,
    "fallocate": _fallocate,
    "clone": _clone,
    "commit": _commit,
}
NESTING: dict[str, Callable[[Path, Path, int], None]] = {"subvolume": _subvolume}
START: Script = (
    ("write", PATHS.index("a/a"), 0, 1),
    ("write", PATHS.index("a/b"), 0, 3),
    ("write", PATHS.index("b/a/a"), 0, 2),
    ("write", PATHS.index("b/a/b"), 0, 5),
    ("mkdir", PATHS.index("b/c"), 0, 0),
    ("link", PATHS.index("a/a"), PATHS.index("b/b"), 0),
    ("symlink", PATHS.index("a/c"), 0, 2),
)


def scripts(length: int, *, nesting: bool = False) -> st.SearchStrategy[list[Edit]]:
    """Scripts of up to ``length`` edits, with nested subvolumes if asked for."""
    kinds = [*EDITS, *NESTING] if nesting else list(EDITS)
    place = st.integers(0, len(PATHS) - 1)
    return st.lists(st.tuples(st.sampled_from(kinds), place, place, st.integers(0, 7)), max_size=length)


def apply_script(root: Path, script: Script) -> None:
    """Run the edits of a script in the directory ``root``."""
    known = EDITS | NESTING
    for kind, path, other, n in script:
        with suppress(OSError, shutil.Error):
            known[kind](root / PATHS[path], root / PATHS[other], n)
