"""A directory tree as comparable data."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a copy must preserve of one file; ``link`` is the first path of the same hard-linked file."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    rdev: int
    mtime_ns: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    link: str


KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def snapshot_tree(path: Path | str, *, times: bool = True) -> dict[str, Entry]:
    """Every path below ``path`` (the top as ``.``) with type, mode, owner, content, xattrs and links.

    ``times=False`` leaves modification times out of the comparison. Directory sizes never take part: they
    differ between file systems.
    """
    top = os.fspath(path)
    first_seen: dict[tuple[int, int], str] = {}
    found: dict[str, Entry] = {}
    for full in _walk(top):
        relative = os.path.relpath(full, top)
        found[relative] = _entry(full, relative, first_seen, times=times)
    return found


def _walk(top: str) -> list[str]:
    paths = [top]
    for directory, subdirectories, files in os.walk(top, onerror=_fail):
        paths += [os.path.join(directory, name) for name in sorted(subdirectories + files)]
    return paths


def _fail(error: OSError) -> None:
    raise error


def _entry(path: str, relative: str, first_seen: dict[tuple[int, int], str], *, times: bool) -> Entry:
    info = os.lstat(path)
    regular = stat.S_ISREG(info.st_mode)
    shared = info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode)
    return Entry(
        kind=KINDS[stat.S_IFMT(info.st_mode)],
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        size=info.st_size if regular else 0,
        rdev=info.st_rdev,
        mtime_ns=info.st_mtime_ns if times else 0,
        content=_content(path, info.st_mode),
        xattrs=_xattrs(path),
        link=first_seen.setdefault((info.st_dev, info.st_ino), relative) if shared else "",
    )


def _content(path: str, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return ""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _xattrs(path: str) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
