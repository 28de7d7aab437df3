"""Conformance, call by call: each outcome through the tree is that of the real file system.

``DIFFERENCES`` is the whole list of those that are not, with what happens in the tree, and why.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import mmap
import os
import resource
import select
import signal
import stat
import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import rootfs_served, syscalls
from tests.support.posix import Record, outcome

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.rootfs_served import Work

served = rootfs_served.served_each_way
work = rootfs_served.work

LIBC = ctypes.CDLL(None, use_errno=True)
BLOCK = 4096
FICLONE, FICLONERANGE = 0x40049409, 0x4020940D
DIFFERENCES: dict[str, tuple[Any, str]] = {
    "FICLONE": (
        "ENOTSUP",
        "the kernel passes no clone on to FUSE; copy_file_range(2) shares extents instead",
    ),
    "FICLONERANGE": ("ENOTSUP", "the same"),
    "epoll of a file": (None, "the kernel gives every file on FUSE a poll operation; it is always ready"),
}


def _libc(name: str, *args: Any) -> int:
    """A call of the C library that ``os`` does not have."""
    wide = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = int(getattr(LIBC, name)(*wide))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _open(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    return os.open(path, flags, 0o644)


def _closing(record: Record, label: str, *args: Any, **more: Any) -> None:
    """Record how opening goes, without keeping it open."""
    result = outcome(os.open, *args, **more)
    if isinstance(result, int):
        os.close(result)
        result = "ok"
    record.note(label, result)


def names_and_paths(top: Path, record: Record) -> None:
    (top / "f").write_text("f")
    (top / "d").mkdir()
    (top / "full/x").mkdir(parents=True)
    for length in (255, 256):
        for call in (os.mkdir, os.rmdir, os.mkfifo, os.unlink, os.readlink, os.listdir):
            record(f"{call.__name__} of a name of {length} bytes", call, top / ("n" * length))
        _closing(record, f"creat of a name of {length} bytes", top / ("n" * length), os.O_CREAT | os.O_RDWR)
        record(f"symlink of a name of {length}", os.symlink, "x", top / ("s" * length))
        record(f"link of a name of {length}", os.link, top / "f", top / ("l" * length))
        record(f"rename to a name of {length}", os.rename, top / "d", top / ("r" * length))
    for length in (4095, 4096):
        record(f"symlink to {length} bytes", os.symlink, "t" * length, top / f"long{length}")
        record(f"readlink of {length} bytes", os.readlink, top / f"long{length}")
    record("symlink to nothing", os.symlink, "", top / "nothing")
    for number in range(45):
        os.symlink(f"chain{number - 1}" if number else "f", top / f"chain{number}")
    for number in (38, 39, 40, 41):
        record(f"stat through {number} links", lambda at: os.stat(top / f"chain{at}").st_size, number)
    slash = f"{top}/"
    for name in ("f/", "d/", "none/", "chain0/", "full/x/.", "full/x/..", "f/.", "f/.."):
        _closing(record, f"open {name}", slash + name, os.O_RDONLY)
        _closing(record, f"creat {name}", slash + name, os.O_RDWR | os.O_CREAT)
        for call in (os.mkdir, os.rmdir, os.unlink, os.readlink, os.mkfifo):
            record(f"{call.__name__} {name}", call, slash + name)
        record(f"rename f to {name}", os.rename, top / "f", slash + name)
        record(f"rename of {name}", os.rename, slash + name, top / "moved")
        record(f"link to {name}", os.link, top / "f", slash + name)
    record("link of a directory", os.link, top / "full", top / "again")
    record("rename into itself", os.rename, top / "full", top / "full/x/y")
    record("rename onto its ancestor", os.rename, top / "full/x", top / "full")
    for kind in (
        stat.S_IFREG,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFDIR,
        0,
        0o30000,
    ):
        record(f"mknod of kind {kind:o}", os.mknod, top / f"kind{kind:o}", kind | 0o640, os.makedev(1, 3))
    record.note("names", sorted(os.listdir(top)))
    record.note(
        "modes", sorted((n, os.lstat(top / n).st_mode, os.lstat(top / n).st_nlink) for n in os.listdir(top))
    )


def rename_flags(top: Path, record: Record) -> None:
    kinds = ("file", "dir", "full", "link", "none")
    fd = os.open(top, os.O_RDONLY)
    for old, new, flags in itertools.product(kinds, kinds, (0, 1, 2, 4, 3, 5, 6, 8, 1 << 31)):
        place = top / f"{old}-{new}-{flags}"
        for side, kind in (("old", old), ("new", new)):
            path = place / side / kind
            path.parent.mkdir(parents=True)
            if kind == "file":
                path.write_text(side)
            elif kind == "link":
                path.symlink_to(side)
            elif kind != "none":
                path.mkdir()
            if kind == "full":
                (path / "x").touch()
        args = (fd, f"{place.name}/old/{old}".encode(), fd, f"{place.name}/new/{new}".encode(), flags)
        record(f"rename2 {old} to {new}, flags {flags}", syscalls.rename, *args)
        for side in ("old", "new"):
            found = sorted((e.name, e.stat(follow_symlinks=False).st_mode) for e in os.scandir(place / side))
            record.note(f"rename2 {old} to {new}, flags {flags}: {side}", found)
    os.close(fd)


def unnamed_files(top: Path, record: Record) -> None:
    for label, flags in (("plain", 0), ("exclusive", os.O_EXCL), ("appending", os.O_APPEND)):
        fd = os.open(top, os.O_TMPFILE | os.O_RDWR | flags, 0o640)
        record(f"{label}: write", os.write, fd, b"unnamed")
        record.note(f"{label}: links", os.fstat(fd).st_nlink)
        record(f"{label}: link", os.link, f"/proc/self/fd/{fd}", top / label, follow_symlinks=True)
        record(f"{label}: link again", os.link, f"/proc/self/fd/{fd}", top / label, follow_symlinks=True)
        record(
            f"{label}: link to another",
            os.link,
            f"/proc/self/fd/{fd}",
            top / f"{label}2",
            follow_symlinks=True,
        )
        record.note(f"{label}: links then", os.fstat(fd).st_nlink)
        record.note(f"{label}: mode", os.fstat(fd).st_mode)
        os.close(fd)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT):
        _closing(record, f"O_TMPFILE with {flags}", top, os.O_TMPFILE | flags)
    _closing(record, "O_TMPFILE on a file", top / "plain", os.O_TMPFILE | os.O_RDWR)
    gone = _open(top / "gone")
    (top / "gone").unlink()
    record("link of what was removed", os.link, f"/proc/self/fd/{gone}", top / "back", follow_symlinks=True)
    os.close(gone)
    record.note("contents", [(p.name, p.read_bytes()) for p in sorted(top.iterdir())])


def space(top: Path, record: Record) -> None:
    os.mkfifo(top / "p")
    others = {"directory": os.open(top, os.O_RDONLY), "fifo": os.open(top / "p", os.O_RDWR)}
    (top / "r").write_text("r")
    others["reader"] = os.open(top / "r", os.O_RDONLY)
    for label, other in others.items():
        record(f"fallocate of a {label}", _libc, "fallocate", other, 0, 0, BLOCK)
        record(f"ftruncate of a {label}", os.ftruncate, other, 1)
        os.close(other)
    modes = (0, 1, 2, 3, 8, 9, 16, 17, 32, 64, 65, 128, 255)
    for mode, (at, size) in itertools.product(
        modes, ((0, BLOCK), (BLOCK, 100), (1 << 20, BLOCK), (-1, 1), (0, 0), (0, -1))
    ):
        path = top / f"{mode}-{at}-{size}"
        path.write_bytes(b"x" * 3 * BLOCK)
        fd = _open(path)
        record(f"fallocate mode {mode} at {at} of {size}", _libc, "fallocate", fd, mode, at, size)
        record.note(f"fallocate mode {mode} at {at} of {size}: size", os.fstat(fd).st_size)
        os.close(fd)
        record.note(f"fallocate mode {mode} at {at} of {size}: data", hash(path.read_bytes()[: 4 * BLOCK]))
    sparse = _open(top / "sparse")
    for block in (0, 32, 33, 64):
        os.pwrite(sparse, b"d" * BLOCK, block * BLOCK)
    os.ftruncate(sparse, 100 * BLOCK)
    os.fsync(sparse)
    for whence in (os.SEEK_DATA, os.SEEK_HOLE, 5, 9):
        for at in (0, 1, BLOCK, 33 * BLOCK, 34 * BLOCK, 65 * BLOCK, 100 * BLOCK, 1 << 40, -1):
            record(f"lseek {whence} from {at}", os.lseek, sparse, at, whence)
    for at, whence in ((-1, 0), (1 << 62, 0), (-1000000, 1), (-1, 2), (5, 2)):
        record(f"lseek {at}, {whence}", os.lseek, sparse, at, whence)
    os.close(sparse)


def copies(top: Path, record: Record) -> None:
    data = bytes(range(256)) * 256
    (top / "from").write_bytes(data)
    one, two = _open(top / "from"), _open(top / "to")
    appending = _open(top / "append", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    directory, reader = os.open(top, os.O_RDONLY), os.open(top / "from", os.O_RDONLY)
    for label, args in {
        "copy": (one, two, len(data), 0, 0),
        "copy inside": (one, two, 5000, 100, 7),
        "copy past the end": (one, two, 5000, 1 << 20, 0),
        "copy of nothing": (one, two, 0, 0, 0),
        "copy onto itself": (one, one, 5000, 0, 100),
        "copy within": (one, one, 5000, 0, 20000),
        "copy to a reader": (two, reader, 100, 0, 0),
        "copy to an appender": (one, appending, 100, 0, 0),
        "copy of a directory": (directory, two, 100, 0, 0),
    }.items():
        record(label, os.copy_file_range, *args)
    record("sendfile", os.sendfile, two, one, 10, 100)
    record("FICLONE", fcntl.ioctl, two, FICLONE, one)
    record("FICLONERANGE", fcntl.ioctl, two, FICLONERANGE, struct.pack("<qQQQ", one, 0, BLOCK, 0))
    record("FICLONE of a directory", fcntl.ioctl, directory, FICLONE, one)
    for fd in (one, two, appending, directory, reader):
        os.close(fd)
    record.note("sizes", [(p.name, p.stat().st_size) for p in sorted(top.iterdir())])


def reads_and_writes(top: Path, record: Record) -> None:
    (top / "f").write_bytes(b"0123456789" * 1000)
    fd, reader, directory = _open(top / "f"), _open(top / "f", os.O_RDONLY), _open(top, os.O_RDONLY)
    record("read of a directory", os.read, directory, 10)
    record("write to a directory", os.write, directory, b"x")
    _closing(record, "open of a directory to write", top, os.O_WRONLY)
    record("write to a reader", os.write, reader, b"x")
    record("pread at -1", os.pread, fd, 10, -1)
    record("pwrite at the last byte", os.pwrite, fd, b"x", 2**63 - 1)
    record("pwrite past the last", os.pwrite, fd, b"x" * 100, 2**63 - 50)
    record("readv", os.readv, fd, [bytearray(5), bytearray(20)])
    record("preadv past the end", os.preadv, fd, [bytearray(5)], 1 << 30)
    record("pwritev", os.pwritev, fd, [b"ab", b"", b"c"], 10)
    for name in ("RWF_DSYNC", "RWF_SYNC", "RWF_HIPRI", "RWF_APPEND"):
        record(f"pwritev {name}", os.pwritev, fd, [b"flag"], 0, getattr(os, name))
    record.note("size then", os.fstat(fd).st_size)
    direct = _open(top / "f", os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as aligned:
        record("direct read", os.preadv, direct, [aligned], 0)
        record("direct write", os.pwritev, direct, [aligned], 0)
        record("direct write of 10 bytes", os.pwrite, direct, b"0123456789", 3)
    for fd_ in (direct, reader, directory):
        os.close(fd_)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        record("write up to the limit", os.pwrite, fd, b"x" * 100, 19_950)
        record("write past the limit", os.pwrite, fd, b"x", 30_000)
        record("truncate past the limit", os.ftruncate, fd, 30_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    os.close(fd)
    record("write to a closed descriptor", os.write, fd, b"x")
    record.note("data", (top / "f").read_bytes()[:40])


def maps(top: Path, record: Record) -> None:
    (top / "f").write_bytes(b"m" * 3 * BLOCK)
    fd, reader, directory = _open(top / "f"), _open(top / "f", os.O_RDONLY), _open(top, os.O_RDONLY)
    shared, private = (mmap.mmap(fd, 2 * BLOCK, flags=flags) for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE))
    shared[5:10], private[5:10] = b"share", b"alone"
    record.note("read of what was mapped", os.pread(reader, 12, 0))
    record("msync", shared.flush)
    os.pwrite(fd, b"written", BLOCK)
    record.note("mapped of what was written", shared[BLOCK : BLOCK + 8])
    os.ftruncate(fd, BLOCK)
    os.ftruncate(fd, 2 * BLOCK)
    record.note("mapped after truncation", shared[BLOCK : BLOCK + 8])
    shared.close()
    private.close()
    record("map a reader to write", mmap.mmap, reader, BLOCK, flags=mmap.MAP_SHARED)
    record("map a directory", mmap.mmap, directory, BLOCK, prot=mmap.PROT_READ)
    record("map with PROT_EXEC", mmap.mmap, reader, BLOCK, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    for number in (fd, reader, directory):
        os.close(number)
    record.note("data", (top / "f").read_bytes()[:20])


def syncs_and_polls(top: Path, record: Record) -> None:
    fd, directory, path = _open(top / "f"), _open(top, os.O_RDONLY), _open(top, os.O_PATH)
    for label, number in (("file", fd), ("directory", directory), ("O_PATH", path)):
        for call in (os.fsync, os.fdatasync):
            record(f"{call.__name__} of a {label}", call, number)
        record(f"syncfs of a {label}", _libc, "syncfs", number)
        record(f"sync_file_range of a {label}", _libc, "sync_file_range", number, 0, 0, 7)
        record(f"posix_fadvise of a {label}", os.posix_fadvise, number, 0, 0, os.POSIX_FADV_DONTNEED)
    for label, number in (("file", fd), ("directory", directory)):
        poll = select.poll()
        poll.register(number, select.POLLIN | select.POLLOUT)
        record.note(f"poll of a {label}", [events for _, events in poll.poll(0)])
        with select.epoll() as epoll:
            record(f"epoll of a {label}", epoll.register, number, select.EPOLLIN)
    for number in (fd, directory, path):
        os.close(number)


def _child(function: Callable[[], Any]) -> str:
    """What a call gives in another process."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.write(writer, str(outcome(function)).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def _interrupted(function: Callable[[], Any]) -> str:
    """How a call that waits ends when a signal comes."""

    def stop(*_: Any) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        function()
    except InterruptedError:
        return "interrupted"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "went on"


def locks(top: Path, record: Record) -> None:
    (top / "f").write_bytes(b"x" * 100)
    path = top / "f"
    own, directory, reader = _open(path), _open(top, os.O_RDONLY), _open(path, os.O_RDONLY)
    now = fcntl.LOCK_NB

    def other(how: int, call: Any = fcntl.lockf, *args: Any) -> str:
        def go() -> Any:
            return call(_open(path), how | now, *args)

        return _child(go)

    record("lock all", fcntl.lockf, own, fcntl.LOCK_EX | now)
    record.note("another locks all", other(fcntl.LOCK_EX))
    record.note("another locks to read", other(fcntl.LOCK_SH))
    record("unlock a part", fcntl.lockf, own, fcntl.LOCK_UN, 20, 40)
    record.note("another locks the part", other(fcntl.LOCK_EX, fcntl.lockf, 20, 40))
    record.note("another locks more than the part", other(fcntl.LOCK_EX, fcntl.lockf, 20, 50))
    query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    record.note(
        "another asks",
        _child(lambda: struct.unpack("hhqqi4x", fcntl.fcntl(_open(path), fcntl.F_GETLK, query))[:4]),
    )
    record.note(
        "another waits", _child(lambda: _interrupted(lambda: fcntl.lockf(_open(path), fcntl.LOCK_EX)))
    )
    os.close(_open(path))
    record.note("another locks after a close", other(fcntl.LOCK_EX))
    record("write lock on a reader", fcntl.lockf, reader, fcntl.LOCK_EX | now)
    record("read lock of a directory", fcntl.lockf, directory, fcntl.LOCK_SH | now)
    ofd = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 50, 10, 0)
    for label, fd in (("first", _open(path)), ("second", _open(path))):
        record(f"open file description lock, {label}", fcntl.fcntl, fd, 37, ofd)
    record("flock", fcntl.flock, own, fcntl.LOCK_EX | now)
    record.note("another flocks", other(fcntl.LOCK_SH, fcntl.flock))
    record.note(
        "another waits for flock",
        _child(lambda: _interrupted(lambda: fcntl.flock(_open(path), fcntl.LOCK_EX))),
    )
    record("flock of a directory", fcntl.flock, directory, fcntl.LOCK_EX | now)
    record.note(
        "another flocks the directory",
        _child(lambda: fcntl.flock(_open(top, os.O_RDONLY), fcntl.LOCK_SH | now)),
    )
    record("flock down", fcntl.flock, own, fcntl.LOCK_SH)
    record.note("another shares", other(fcntl.LOCK_SH, fcntl.flock))
    record("lease", fcntl.fcntl, reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    for fd in (own, directory, reader):
        os.close(fd)


CASES = (
    names_and_paths,
    rename_flags,
    unnamed_files,
    space,
    copies,
    reads_and_writes,
    maps,
    syncs_and_polls,
    locks,
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_posix_calls_do_what_they_do_natively(work: Work, case: Callable[[Path, Record], None]) -> None:
    found = []
    for place in (work.real / "native", work.here / "tree"):
        place.mkdir()
        record = Record()
        case(place, record)
        found.append(record.found)
    native, tree = found
    assert list(native) == list(tree)
    wrong = {
        label: (value, tree[label])
        for label, value in native.items()
        if tree[label] != (DIFFERENCES[label][0] if label in DIFFERENCES else value)
    }
    assert wrong == {}, "native and tree"
