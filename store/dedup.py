"""Letting identical files of different layers share their blocks (FIDEDUPERANGE, ioctl_fideduperange(2)).

The kernel compares the bytes itself and shares only what is equal, so neither a file that changes meanwhile
nor two different files of one checksum can be harmed, and no lock is needed. What shares its blocks
already, as copies on btrfs do, is not counted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from drivers import syscalls
from drivers.errors import LayerUnknown as DriverLayerUnknown
from drivers.errors import NotSupported
from store.errors import BadValue
from store.queries import Queries

_FIDEDUPERANGE: Final = 0xC0189436
_RANGE: Final = struct.Struct("=QQHHIqQQiI")
"""struct file_dedupe_range with room for one struct file_dedupe_range_info."""
_PIECE: Final = 16 << 20
"""The most btrfs compares in one call."""
_SMALLEST: Final = 4096
"""Bytes a file must have: smaller ones lie within the metadata or save no block."""
_NOT_HERE: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS)
_HASHES: Final = ("size", "crc", "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupResult:
    """``files`` that now share what they have with another, and the ``bytes`` that saves."""

    files: int
    bytes: int


class _File(NamedTuple):
    root: Path
    path: str


class Dedups(Queries):
    """The method of :class:`store.store.Store` that saves space."""

    def dedup(self, *, hash: str = "sha256", dry_run: bool = False) -> DedupResult:
        """Let identical files of the layers share their blocks; ``Dedup``.

        Args:
            hash: what makes files candidates: equal ``size``, or also an equal ``crc`` or ``sha256``.
            dry_run: only count. By ``size`` that would be a guess, so contents are hashed then.

        Raises:
            BadValue: no such ``hash``.
            drivers.errors.NotSupported: the filesystem cannot share blocks between files.
            OSError
        """
        if hash not in _HASHES:
            raise BadValue(f"hash must be one of {', '.join(_HASHES)}, not {hash!r}")
        files, saved = 0, 0
        for group in self._candidates("sha256" if dry_run and hash == "size" else hash):
            for count in _share(group, dry_run):
                files, saved = files + 1, saved + count
        return DedupResult(files=files, bytes=saved)

    def _candidates(self, how: str) -> Iterator[list[_File]]:
        """Files of one size, and of one checksum where that is asked for."""
        by_size: dict[int, list[_File]] = {}
        seen: set[tuple[int, int]] = set()
        for layer in self.tables.layers.peek():
            try:
                root = self.driver.path_of(layer.id)
                for file, st in _regular_files(root):
                    if st.st_size >= _SMALLEST and (st.st_dev, st.st_ino) not in seen:
                        seen.add((st.st_dev, st.st_ino))
                        by_size.setdefault(st.st_size, []).append(file)
            except (FileNotFoundError, DriverLayerUnknown):
                continue  # removed meanwhile
        for group in (group for group in by_size.values() if len(group) > 1):
            yield from [group] if how == "size" else _by_checksum(group, how)


def _regular_files(root: Path) -> Iterator[tuple[_File, os.stat_result]]:
    for top, _, names, fd in os.fwalk(root, follow_symlinks=False):
        for name in names:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISREG(st.st_mode):
                yield _File(root, os.path.relpath(os.path.join(top, name), root)), st


def _open(file: _File) -> int:
    """Open a file without following any link: what runs in a container may put some there any time."""
    root = os.open(file.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
        return syscalls.openat2(root, file.path, os.O_RDONLY | os.O_NONBLOCK, resolve=resolve)
    finally:
        os.close(root)


def _by_checksum(group: list[_File], how: str) -> list[list[_File]]:
    found: dict[bytes | int, list[_File]] = {}
    for file in group:
        try:
            fd = _open(file)
        except OSError:
            continue
        with open(fd, "rb") as opened:
            if how == "sha256":
                key: bytes | int = hashlib.file_digest(opened, "sha256").digest()
            else:
                key = 0
                for piece in iter(lambda: opened.read(1 << 20), b""):
                    key = zlib.crc32(piece, key)
        found.setdefault(key, []).append(file)
    return [files for files in found.values() if len(files) > 1]


def _share(group: list[_File], dry_run: bool) -> Iterator[int]:
    """Let each file share with the first of the same content; gives the bytes each saves."""
    with ExitStack() as stack:
        originals: list[int] = []
        for file in group:
            try:
                fd = _open(file)
            except OSError:
                continue
            for original in originals:
                common = _common(fd, original)
                equal = os.fstat(fd).st_size if dry_run or common is None else _dedupe(original, fd)
                if equal:
                    if common is not None and equal > common:
                        yield equal - common
                    break
            else:
                originals.append(fd)
                stack.callback(os.close, fd)
                continue
            os.close(fd)


def _common(one: int, other: int) -> int | None:
    """Bytes two files share already, up to a block; ``None`` if that is all of them."""
    first, second = (
        {(extent.logical, extent.physical, extent.length) for extent in syscalls.extents(fd)}
        for fd in (one, other)
    )
    return None if first == second else sum(length for _, _, length in first & second)


def _dedupe(source: int, target: int) -> int:
    """Share what is equal from the start; the bytes.

    Raises:
        NotSupported
    """
    size = min(os.fstat(source).st_size, os.fstat(target).st_size)
    done = 0
    while done < size:
        length = min(_PIECE, size - done)
        request = bytearray(_RANGE.pack(done, length, 1, 0, 0, target, done, 0, 0, 0))
        try:
            fcntl.ioctl(source, _FIDEDUPERANGE, request)
        except OSError as error:
            if error.errno in _NOT_HERE:
                raise NotSupported("this filesystem cannot let files share blocks") from error
            raise
        *_, shared, status, _ = _RANGE.unpack(request)
        if -status in _NOT_HERE:
            raise NotSupported("this filesystem cannot let files share blocks")
        if status or not shared:
            break
        done += shared
    return done
