"""Conformance: every case does the same natively and through the tree, and both must agree.

A case is a function of an empty directory; what it returns (values, errno names, resulting trees) is
compared between the real filesystem and a view of it, so the real filesystem is the specification.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import random
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import rootfs_served, syscalls
from tests.support.rootfs_samples import GROUP, USER, run
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.support.rootfs_served import Work

served = rootfs_served.served_each_way
work = rootfs_served.work

LIBC = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
FSX_OPERATIONS = int(os.environ.get("FSD_FSX_OPERATIONS", "3000"))


def outcome(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        result = function(*args, **more)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return result if isinstance(result, int | bytes | str | list | None) else type(result).__name__


def opened(path: Path, flags: int, mode: int = 0o644) -> str:
    """Open and close; the errno's name or ``ok``."""
    result = outcome(os.open, path, flags, mode)
    if isinstance(result, int):
        os.close(result)
        return "ok"
    return str(result)


def sample(top: Path) -> None:
    """One of everything a call can be wrong about."""
    (top / "f").write_text("content")
    (top / "empty").mkdir()
    (top / "full").mkdir()
    (top / "full/x").touch()
    os.symlink("f", top / "s")
    os.symlink("loop", top / "loop")
    os.symlink("nowhere", top / "dangling")
    os.mkfifo(top / "p")


TARGETS = (
    "f",
    "empty",
    "full",
    "s",
    "loop",
    "dangling",
    "p",
    "none",
    "none/x",
    "f/x",
    "n" * 255,
    "n" * 256,
    "loop/x",
)


def names_cases(top: Path) -> list[Any]:
    sample(top)
    found: list[Any] = []
    for name in TARGETS:
        path = top / name
        calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (os.mkdir, (path,)),
            (os.rmdir, (path,)),
            (os.unlink, (path,)),
            (os.symlink, ("x", path)),
            (os.mkfifo, (path,)),
            (os.readlink, (path,)),
            (os.listdir, (path,)),
            (os.truncate, (path, 3)),
            (os.chmod, (path, 0o600)),
            (os.link, (path, top / "linked")),
        ]
        for call, args in calls:
            found.append((call.__name__, name[:9], outcome(call, *args)))
    return [*found, sorted(snapshot_tree(top))]


def rename_cases(top: Path) -> list[Any]:
    found: list[Any] = []
    directory = os.open(top, os.O_RDONLY)
    try:
        for number, (old, new, flags) in enumerate(
            itertools.product(TARGETS[:10], TARGETS[:10], (0, NOREPLACE, EXCHANGE, WHITEOUT))
        ):
            place = top / str(number)
            place.mkdir()
            sample(place)
            args = (
                directory,
                os.fsencode(f"{number}/{old}"),
                directory,
                os.fsencode(f"{number}/{new}"),
                flags,
            )
            found.append((old, new, flags, outcome(syscalls.rename, *args), sorted(os.listdir(place))))
    finally:
        os.close(directory)
    found.append(outcome(os.rename, top / "0", top / "0/f"))
    found.append(outcome(os.rename, top / "0", top / "0/empty/y"))
    return found


def open_cases(top: Path) -> list[Any]:
    sample(top)
    flags = {
        "r": os.O_RDONLY,
        "w": os.O_WRONLY,
        "rw": os.O_RDWR,
        "trunc": os.O_WRONLY | os.O_TRUNC,
        "creat": os.O_WRONLY | os.O_CREAT,
        "excl": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
        "dir": os.O_RDONLY | os.O_DIRECTORY,
        "nofollow": os.O_RDONLY | os.O_NOFOLLOW,
        "path": os.O_PATH | os.O_NOFOLLOW,
        "tmp": os.O_TMPFILE | os.O_RDWR,
        "direct": os.O_RDONLY | os.O_DIRECT,
    }
    names = [name for name in TARGETS if name != "p"]
    return [(name[:9], how, opened(top / name, flag)) for name in names for how, flag in flags.items()]


def file_cases(top: Path) -> list[Any]:
    path = top / "f"
    path.write_bytes(bytes(range(256)) * 64)
    found: list[Any] = []
    fd = os.open(path, os.O_RDWR)
    reader = os.open(path, os.O_RDONLY)
    try:
        for call, args in (
            (os.pread, (fd, 10, 5)),
            (os.pread, (fd, 10, 1 << 40)),
            (os.pwrite, (fd, b"abc", 20000)),
            (os.pwrite, (reader, b"abc", 0)),
            (os.ftruncate, (fd, 100)),
            (os.ftruncate, (reader, 1)),
            (os.ftruncate, (fd, -1)),
            (os.ftruncate, (fd, 1 << 20)),
            (os.lseek, (fd, 0, os.SEEK_HOLE)),
            (os.lseek, (fd, 1 << 19, os.SEEK_DATA)),
            (os.lseek, (fd, 1 << 30, os.SEEK_HOLE)),
            (os.posix_fallocate, (fd, 0, 8192)),
            (os.posix_fallocate, (reader, 0, 8192)),
            (os.fsync, (fd,)),
            (os.fdatasync, (reader,)),
            (os.copy_file_range, (reader, fd, 100, 0, 5000)),
            (os.pread, (fd, 100, 5000)),
            (os.sendfile, (fd, reader, 0, 10)),
        ):
            found.append((call.__name__, outcome(call, *args)))
        for mode in (1, 3, 16, 8, 32, 64, 255):
            code = LIBC.fallocate(fd, mode, ctypes.c_long(4096), ctypes.c_long(4096))
            found.append((mode, code and errno.errorcode[ctypes.get_errno()], os.fstat(fd).st_size))
        with mmap.mmap(fd, 4096) as memory:
            memory[:4] = b"mmap"
            memory.flush()
            found.append(os.pread(reader, 8, 0))
        found.append(path.read_bytes())
    finally:
        os.close(fd)
        os.close(reader)
    return found


def lock_cases(top: Path) -> list[Any]:
    path = top / "f"
    path.write_text("x" * 100)
    found: list[Any] = []
    one, two = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        found.append(outcome(fcntl.flock, one, fcntl.LOCK_EX))
        found.append(outcome(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB))
        found.append(outcome(fcntl.flock, one, fcntl.LOCK_UN))
        found.append(outcome(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB))
        found.append(outcome(fcntl.lockf, one, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0))
        if not (child := os.fork()):
            answer = outcome(fcntl.lockf, two, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
            os._exit(0 if answer in ("EAGAIN", "EACCES") else 1)
        found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    finally:
        os.close(one)
        os.close(two)
    return found


def attribute_cases(top: Path) -> list[Any]:
    sample(top)
    found: list[Any] = []
    for name in ("f", "empty", "s", "p", "none", "dangling"):
        path = top / name
        for follow in (True, False):
            for call, args in (
                (os.setxattr, (path, "user.a", b"1")),
                (os.setxattr, (path, "user.a", b"2", os.XATTR_CREATE)),
                (os.setxattr, (path, "trusted.b", b"")),
                (os.setxattr, (path, "user." + "n" * 251, b"")),
                (os.setxattr, (path, "user.big", bytes(65537))),
                (os.getxattr, (path, "user.a")),
                (os.getxattr, (path, "user.none")),
                (os.getxattr, (path, "other.a")),
                (os.listxattr, (path,)),
                (os.removexattr, (path, "user.a")),
                (os.removexattr, (path, "user.a")),
            ):
                result = outcome(call, *args, follow_symlinks=follow)
                found.append(
                    (call.__name__, name, follow, sorted(result) if isinstance(result, list) else result)
                )
            found.append(outcome(os.chown, path, 12, 34, follow_symlinks=follow))
            found.append(outcome(os.utime, path, ns=(5, 6), follow_symlinks=follow))
    for mode in (0, 0o7777, 0o4755, 0o2755, 0o1777):
        os.chmod(top / "f", mode)
        found.append(stat.S_IMODE((top / "f").stat().st_mode))
    return found


def _as_user_in(top: Path, code: str, groups: Sequence[int] = ()) -> str:
    """Run code as another user in a directory that this user may not be able to get to."""
    prologue = f"import os\nos.setgroups({list(groups)})\nos.umask(0o022)\n"
    prologue += f"os.setresgid({GROUP}, {GROUP}, {GROUP})\nos.setresuid({USER}, {USER}, {USER})\n"
    return run(sys.executable, "-S", "-c", prologue + code, cwd=top).stdout


def user_cases(top: Path) -> list[Any]:
    sample(top)
    os.chmod(top, 0o777)
    (top / "sticky").mkdir()
    os.chmod(top / "sticky", 0o1777)
    (top / "sticky/theirs").touch()
    (top / "group").mkdir()
    os.chown(top / "group", 0, 777)
    os.chmod(top / "group", 0o2770)
    (top / "closed").mkdir(mode=0o700)
    code = """
import errno, stat
def t(f, *x):
    try: f(*x); print('ok')
    except OSError as e: print(errno.errorcode[e.errno])
t(os.unlink, 'sticky/theirs'); t(os.rename, 'sticky/theirs', 'sticky/mine'); t(os.unlink, 'f')
t(os.mkdir, 'group/d'); t(os.listdir, 'closed'); t(os.chmod, 'empty', 0o777); t(os.chown, 'empty', 1, 1)
t(os.mknod, 'dev', 0o20600, 259); t(os.utime, 'p'); t(os.utime, 'p', (1, 1)); t(os.truncate, 'full/x', 0)
t(os.setxattr, 'empty', 'user.x', b''); t(os.setxattr, 'empty', 'trusted.x', b'')
open('own', 'w').close(); os.chmod('own', 0o2755); print(oct(os.stat('own').st_mode))
t(os.chown, 'own', -1, 777); t(os.chown, 'own', 5, -1); t(os.link, 'own', 'again'); t(os.rmdir, 'empty')
"""
    found = [_as_user_in(top, code), _as_user_in(top, code.replace("'own'", "'own2'"), groups=[777])]
    return [*found, {key: str(value) for key, value in snapshot_tree(top, times=False).items()}]


CASES = (names_cases, rename_cases, open_cases, file_cases, lock_cases, attribute_cases, user_cases)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_posix_results_are_those_of_the_real_filesystem(
    work: Work, case: Callable[[Path], list[Any]]
) -> None:
    (work.real / "native").mkdir()
    (work.real / "tree").mkdir()
    wanted = case(work.real / "native")
    found = case(work.here / "tree")
    assert [pair for pair in itertools.zip_longest(found, wanted) if pair[0] != pair[1]] == []


def test_posix_fsx_operations_equal_a_model(work: Work) -> None:
    """Random reads, writes, maps, truncates, holes and appends on one file from several descriptors."""
    chance, model, size = random.Random(11), bytearray(), 200_000
    path = work.here / "fsx"
    fds = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(3)]
    try:
        for _ in range(FSX_OPERATIONS):
            fd, at, length = chance.choice(fds), chance.randrange(size), chance.randrange(1, 20_000)
            what = chance.randrange(8)
            if what < 3:
                data = chance.randbytes(length)
                os.pwrite(fd, data, at)
                model.extend(bytes(max(0, at + length - len(model))))
                model[at : at + length] = data
            elif what == 3:
                os.ftruncate(fd, at)
                del model[at:]
                model.extend(bytes(at - len(model)))
            elif what == 4 and at < len(model):
                code = LIBC.fallocate(fd, 3, ctypes.c_long(at), ctypes.c_long(length))
                assert code == 0
                model[at : at + length] = bytes(len(model[at : at + length]))
            elif what == 5 and model:
                with mmap.mmap(fd, len(model)) as memory:
                    assert memory[:] == bytes(model)
                    end = min(at + length, len(model))
                    if at < end:
                        data = chance.randbytes(end - at)
                        memory[at:end] = data
                        model[at:end] = data
            elif what == 6:
                side = os.open(path, os.O_WRONLY | os.O_APPEND)
                os.write(side, b"appended")
                os.close(side)
                model += b"appended"
            else:
                assert os.pread(fd, length, at) == bytes(model[at : at + length])
            assert os.fstat(fd).st_size == len(model)
        assert (work.real / "fsx").read_bytes() == bytes(model)
    finally:
        for fd in fds:
            os.close(fd)
