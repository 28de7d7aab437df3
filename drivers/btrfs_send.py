"""The btrfs send stream: commands that turn one read-only subvolume into another.

A stream is a header, then commands, each a kind, a CRC-32C and attributes (``fs/btrfs/send.h``; protocol
versions 1, 2 and 3). :func:`read_commands` parses one from any file; :func:`sent_commands` runs
``BTRFS_IOC_SEND`` in a thread and parses what comes through the pipe, which never touches a disk.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from drivers import btrfs_ioctl
from drivers._send import ffi, lib
from drivers.errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from drivers.btrfs_ioctl import Place


MAGIC = b"btrfs-stream\0"
NEWEST_VERSION = 3
MAX_COMMAND = 16 << 20
"""Bytes one command may announce. The kernel's are below 256 KiB; more is garbage, not a command."""
_HEADER = struct.Struct("<13sI")
_COMMAND = struct.Struct("<IHI")
_TLV = struct.Struct("<HH")
_TIME = struct.Struct("<qI")
_CHUNK = 1 << 18
_BATCH = 4096
_PIPE_SIZE = 1 << 20
_HEAD_START = 0.02
"""Seconds the kernel may fill the pipe before it is read, which spares a wake-up for each command."""


class MalformedStream(DriverError):
    """The send stream is truncated, damaged, or of an unknown version."""


class Kind(enum.IntEnum):
    """What a command does; the numbers are ``enum btrfs_send_cmd``."""

    SUBVOL = 1
    SNAPSHOT = 2
    MKFILE = 3
    MKDIR = 4
    MKNOD = 5
    MKFIFO = 6
    MKSOCK = 7
    SYMLINK = 8
    RENAME = 9
    LINK = 10
    UNLINK = 11
    RMDIR = 12
    SET_XATTR = 13
    REMOVE_XATTR = 14
    WRITE = 15
    CLONE = 16
    TRUNCATE = 17
    CHMOD = 18
    CHOWN = 19
    UTIMES = 20
    END = 21
    UPDATE_EXTENT = 22
    FALLOCATE = 23
    FILEATTR = 24
    ENCODED_WRITE = 25
    ENABLE_VERITY = 26


class Attribute(enum.IntEnum):
    """What a value of a command means; the numbers are ``enum`` BTRFS_SEND_A_*."""

    UUID = 1
    CTRANSID = 2
    INO = 3
    SIZE = 4
    MODE = 5
    UID = 6
    GID = 7
    RDEV = 8
    CTIME = 9
    MTIME = 10
    ATIME = 11
    OTIME = 12
    XATTR_NAME = 13
    XATTR_DATA = 14
    PATH = 15
    PATH_TO = 16
    PATH_LINK = 17
    FILE_OFFSET = 18
    DATA = 19
    CLONE_UUID = 20
    CLONE_CTRANSID = 21
    CLONE_PATH = 22
    CLONE_OFFSET = 23
    CLONE_LEN = 24
    FALLOCATE_MODE = 25
    FILEATTR = 26
    UNENCODED_FILE_LEN = 27
    UNENCODED_LEN = 28
    UNENCODED_OFFSET = 29
    COMPRESSION = 30
    ENCRYPTION = 31
    VERITY_ALGORITHM = 32
    VERITY_BLOCK_SIZE = 33
    VERITY_SALT_DATA = 34
    VERITY_SIG_DATA = 35


@dataclass(frozen=True, slots=True)
class Command:
    """One command; ``kind`` stays a plain number where it is newer than :class:`Kind`.

    Paths are relative to the subvolume's root, without a leading ``/``; the root itself is empty.
    """

    kind: int
    values: dict[int, bytes]

    def path(self, attribute: Attribute = Attribute.PATH) -> bytes:
        """A path of the command; :class:`MalformedStream` when it has none."""
        return self.value(attribute)

    def value(self, attribute: Attribute) -> bytes:
        """Bytes of an attribute; :class:`MalformedStream` when the command lacks it."""
        try:
            return self.values[attribute]
        except KeyError:
            raise MalformedStream(f"a {self.name} command has no {attribute.name} attribute") from None

    def number(self, attribute: Attribute) -> int:
        """An attribute that is one little-endian number of 1, 2, 4 or 8 bytes."""
        return int.from_bytes(self.value(attribute), "little")

    def time(self, attribute: Attribute) -> int:
        """A time attribute as nanoseconds since the epoch."""
        raw = self.value(attribute)
        if len(raw) != _TIME.size:
            raise MalformedStream(f"a time of {len(raw)} bytes in a {self.name} command")
        seconds, nanoseconds = _TIME.unpack(raw)
        return int(seconds * 10**9 + nanoseconds)

    @property
    def name(self) -> str:
        """The kind's name, or its number when it is unknown."""
        try:
            return Kind(self.kind).name
        except ValueError:
            return str(self.kind)


def read_commands(stream: BinaryIO) -> Iterator[Command]:
    """The commands of a stream up to its END, which is not among them.

    Raises:
        MalformedStream: bad magic, an unknown version, a checksum that does not match, a command cut
            short, or a stream without its END.
    """
    head = _exactly(stream, _HEADER.size)
    magic, version = _HEADER.unpack(head)
    if magic != MAGIC:
        raise MalformedStream("not a btrfs send stream")
    if not 1 <= version <= NEWEST_VERSION:
        raise MalformedStream(f"send stream version {version} is unknown")
    for kind, data in _frames(stream):
        if kind == Kind.END:
            return
        yield Command(kind, _values(data, version))
    raise MalformedStream("the send stream ends without its END command")


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise MalformedStream("the send stream is cut short")
        data += more
    return data


def _frames(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Kind and attributes of each command, its checksum verified."""
    out = ffi.new("struct send_command[]", _BATCH)
    pending = b""
    while True:
        more = stream.read(_CHUNK)
        if not more:
            break
        pending += more
        pending = yield from _cut(pending, out)
    if pending:
        raise MalformedStream("the send stream is cut short")


def _cut(pending: bytes, out: Any) -> Generator[tuple[int, bytes], None, bytes]:
    """Yield the whole commands of a buffer; the generator's return value is the rest."""
    count = _BATCH
    while count == _BATCH:
        count = lib.send_scan(pending, len(pending), out, _BATCH)
        used = 0
        for i in range(count):
            command = out[i]
            if not command.sound:
                raise MalformedStream("a command of the send stream fails its checksum")
            used = command.at + command.size
            yield command.kind, pending[command.at : used]
        pending = pending[used:]
    if len(pending) >= _COMMAND.size and _COMMAND.unpack_from(pending)[0] > MAX_COMMAND:
        raise MalformedStream("a command of the send stream is impossibly long")
    return pending


def _values(data: bytes, version: int) -> dict[int, bytes]:
    """Attributes of a command; since version 2 a DATA attribute is last and has no length."""
    values = {}
    at, end = 0, len(data)
    while at < end:
        if end - at < _TLV.size and not (version > 1 and end - at >= 2):
            raise MalformedStream("an attribute of the send stream is cut short")
        kind = data[at] | data[at + 1] << 8
        if version > 1 and kind == Attribute.DATA:
            values[kind] = data[at + 2 :]
            break
        if end - at < _TLV.size:
            raise MalformedStream("an attribute of the send stream is cut short")
        start = at + _TLV.size
        at = start + (data[at + 2] | data[at + 3] << 8)
        if at > end:
            raise MalformedStream("an attribute of the send stream is cut short")
        values[kind] = data[start:at]
    return values


@contextmanager
def sent_commands(
    snapshot: Place, parent_id: int, *, version: int = 1, no_file_data: bool = True
) -> Iterator[Iterator[Command]]:
    """Commands that turn read-only subvolume ``parent_id`` into the read-only ``snapshot``.

    Leaving the block early stops the kernel's side.

    Args:
        parent_id: subvolume ID, or 0 for the whole of ``snapshot``.
        version: protocol to ask for; every kernel with send has 1.
        no_file_data: have UPDATE_EXTENT commands instead of the written bytes.

    Raises:
        BtrfsError: what ``BTRFS_IOC_SEND`` failed with; EPERM without CAP_SYS_ADMIN.
    """

    def work(fd: int) -> None:
        btrfs_ioctl.send(snapshot, fd, parent_id=parent_id, no_file_data=no_file_data, version=version)

    with _through_pipe(work) as stream:
        yield read_commands(stream)


@contextmanager
def _through_pipe(work: Callable[[int], None]) -> Iterator[BinaryIO]:
    """What ``work`` writes to the descriptor it gets, read while it runs in a thread."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work(write_fd)
        except BaseException as error:
            failures.append(error)
        finally:
            os.close(write_fd)

    read_fd, write_fd = os.pipe()
    with suppress(OSError):  # above the system's limit for this user: the default size does
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    thread = threading.Thread(target=run, name="btrfs-send", daemon=True)
    thread.start()
    thread.join(_HEAD_START)
    try:
        with open(read_fd, "rb", buffering=0) as stream:
            yield stream
    except MalformedStream:
        # A failed send cuts its stream short: the reason is the failure, not the stream.
        thread.join()
        if failures:
            raise failures[0] from None
        raise
    finally:
        thread.join()
    if failures and not _broken_pipe(failures[0]):
        raise failures[0]


def _broken_pipe(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE
