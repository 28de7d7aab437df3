"""Real trees through the mount: ordinary programs, and what they rely on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fsd import rootfs_calls
from tests.support import features, loops
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import GROUP, LONG, ODD, USER, as_user, make_sample, run
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
NOREPLACE, EXCHANGE = 1, 2


@dataclass(frozen=True)
class Served:
    """A writable view ``c`` and two read-only ones of the subvolume ``real``."""

    mount: RootfsMount
    real: Path

    def view(self, name: str) -> Path:
        return self.mount.path / name


@dataclass(frozen=True)
class Work:
    """One directory, on the real path and through the mount."""

    real: Path
    here: Path


@pytest.fixture(scope="module")
def served(btrfs_root: Path) -> Iterator[Served]:
    features.require("fuse")
    home = btrfs_root / "rootfs-tests"
    home.mkdir()
    with tempfile.TemporaryDirectory(prefix="fsd-rootfs-") as place:
        os.chmod(place, 0o755)  # other users look in
        real = home / "c"
        run("btrfs", "subvolume", "create", real)
        views = {"c": (real, False), "layer": (real, True), "image": (real, True)}
        try:
            with RootfsMount(Path(place) / "mnt", views, Path(place) / "scratch") as mount:
                yield Served(mount, real)
        finally:
            loops.delete_tree(btrfs_root, home)


_numbers = itertools.count(1)


@pytest.fixture
def work(served: Served) -> Work:
    name = f"w{next(_numbers)}"
    (served.real / name).mkdir()
    return Work(served.real / name, served.view("c") / name)


def count(path: Path) -> int:
    """How many entries find meets; it stops early, without an error, where directories look wrong."""
    return run("find", path, "-printf", "x").stdout.count("x")


def errno_of(function: object, *args: object, **more: object) -> int | None:
    try:
        function(*args, **more)  # type: ignore[operator]
    except OSError as exc:
        return exc.errno
    return None


# -- programs --------------------------------------------------------------------------------------


def test_rootfs_shows_every_entry_as_it_is(work: Work) -> None:
    make_sample(work.real)
    assert count(work.here) == count(work.real)
    assert snapshot_tree(work.here) == snapshot_tree(work.real)


def test_rootfs_cp_and_diff_agree_in_both_directions(work: Work, tmp_path: Path) -> None:
    (work.real / "src").mkdir()
    make_sample(work.real / "src")
    run("cp", "-a", work.here / "src", tmp_path / "out")
    wanted = snapshot_tree(work.real / "src")
    assert snapshot_tree(tmp_path / "out") == wanted
    run("cp", "-a", tmp_path / "out", work.here / "copy")
    assert snapshot_tree(work.real / "copy") == wanted
    for path in (work.here / "copy", work.real / "src"):
        for name in ("fifo", "socket", "null", "disk", "whiteout"):  # diff never calls those equal
            (path / name).unlink()
    run("diff", "-r", "--no-dereference", work.here / "copy", work.real / "src")


def test_rootfs_tar_out_and_in_keeps_links_and_holes(work: Work, tmp_path: Path) -> None:
    make_sample(work.real)
    flags = ("--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner")
    run("tar", *flags, "--exclude=./socket", "-C", work.here, "-cf", tmp_path / "t.tar", ".")
    (work.here / "new").mkdir()
    run("tar", *flags, "-C", work.here / "new", "-xpf", tmp_path / "t.tar")
    got, wanted = snapshot_tree(work.real / "new"), snapshot_tree(work.real)
    wanted = {k: v for k, v in wanted.items() if not k.startswith("new") and k not in (".", "socket")}
    assert {k: v for k, v in got.items() if k != "."} == wanted
    assert (work.real / "new/sparse").stat().st_blocks < 1000


def test_rootfs_sed_and_vim_edit_in_place(work: Work) -> None:
    (work.here / "f").write_text("one\n")
    run("sed", "-i", "s/one/two/", work.here / "f")
    assert (work.real / "f").read_text() == "two\n"
    if not os.path.exists("/usr/bin/vim"):
        pytest.skip("vim is not installed")
    for backupcopy in ("yes", "no"):
        script = f"set backup backupcopy={backupcopy} | %s/$/ three/ | wq"
        run("vim", "-N", "-u", "NONE", "-es", "-c", script, work.here / "f")
    assert (work.real / "f").read_text() == "two three three\n"


def test_rootfs_git_repository_works_and_stays_clean(work: Work) -> None:
    def git(*args: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "safe.directory=*")
        return run("git", *identity, *args, cwd=work.here).stdout

    git("init", "-q")
    for number in range(50):
        (work.here / f"f{number}").write_text(str(number))
    git("add", ".")
    git("commit", "-qm", "one")
    git("checkout", "-qb", "side")
    (work.here / "f7").unlink()
    git("commit", "-qam", "two")
    git("gc", "-q")
    assert git("status", "--porcelain") == ""
    assert git("fsck", "--strict") == ""
    git("checkout", "-q", "-")
    assert (work.real / "f7").read_text() == "7"


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_rootfs_sqlite_with_two_writers_loses_nothing(work: Work, journal: str) -> None:
    path = work.here / "db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute(f"pragma journal_mode={journal}").fetchone()[0] == journal
        db.execute("create table t (n)")
        db.commit()
    code = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level='immediate')\n"
        "for n in range(40):\n    db.execute('insert into t values (?)', [n]); db.commit()\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    with contextlib.closing(sqlite3.connect(work.real / "db")) as db:
        assert db.execute("select count(*), sum(n) from t").fetchone() == (80, 2 * 780)
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


def test_rootfs_programs_run_from_it(work: Work) -> None:
    run("cp", "/bin/busybox" if os.path.exists("/bin/busybox") else "/bin/true", work.here / "true")
    run(work.here / "true", *(["true"] if os.path.exists("/bin/busybox") else []))


# -- data ------------------------------------------------------------------------------------------


def test_rootfs_mmap_writes_reach_the_real_file(work: Work) -> None:
    (work.real / "f").write_bytes(bytes(3 * 4096 + 10))
    with (work.here / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[4090:4100] = b"0123456789"
        memory[-3:] = b"end"
        memory.flush()
        assert (work.real / "f").read_bytes()[4090:4100] == b"0123456789"
    assert (work.real / "f").read_bytes()[-3:] == b"end"
    assert (work.real / "f").stat().st_size == 3 * 4096 + 10


def test_rootfs_random_writes_and_truncates_equal_a_model(work: Work) -> None:
    import random

    rng, model = random.Random(7), bytearray()
    with (work.here / "f").open("w+b", buffering=0) as file:
        for _ in range(200):
            if rng.random() < 0.2:
                size = rng.randrange(300_000)
                file.truncate(size)
                model = model[:size] + bytes(max(0, size - len(model)))
            else:
                start, data = rng.randrange(300_000), rng.randbytes(rng.randrange(1, 40_000))
                os.pwrite(file.fileno(), data, start)
                model += bytes(max(0, start + len(data) - len(model)))
                model[start : start + len(data)] = data
            at = rng.randrange(300_000)
            assert os.pread(file.fileno(), 50_000, at) == bytes(model[at : at + 50_000])
    assert (work.real / "f").read_bytes() == model


def test_rootfs_truncate_by_path_descriptor_and_open(work: Work) -> None:
    path = work.here / "f"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 5000)
    assert path.stat().st_size == (work.real / "f").stat().st_size == 5000
    with path.open("r+b") as file:
        file.truncate(7000)
        assert os.fstat(file.fileno()).st_size == 7000
    assert path.read_bytes() == b"x" * 5000 + bytes(2000)
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.read_bytes() == b"" == (work.real / "f").read_bytes()


def test_rootfs_holes_stay_holes(work: Work) -> None:
    with (work.here / "f").open("wb") as file:
        file.seek(256 * MIB)
        file.write(b"x")
    os.truncate(work.here / "f", 512 * MIB)
    info = (work.here / "f").stat()
    assert info.st_size == 512 * MIB
    assert info.st_blocks < 100


def test_rootfs_appenders_on_both_sides_lose_no_line(work: Work) -> None:
    code = "import os, sys\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
    code += "for n in range(300): os.write(fd, f'{sys.argv[2]} {n}\\n'.encode())\n"
    sides = [(work.here, "a"), (work.here, "b"), (work.real, "c")]
    writers = [subprocess.Popen([sys.executable, "-c", code, side / "log", name]) for side, name in sides]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    lines = (work.real / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {n}" for name in "abc" for n in range(300))
    time.sleep(1.1)
    assert (work.here / "log").read_text().splitlines() == lines


def test_rootfs_append_of_a_mapped_file_keeps_both(work: Work) -> None:
    (work.here / "f").write_bytes(b"0" * 8192)
    with (work.here / "f").open("a+b", buffering=0) as file, mmap.mmap(file.fileno(), 8192) as memory:
        memory[:4] = b"abcd"
        file.write(b"tail")
        memory.flush()
    assert (work.real / "f").read_bytes() == b"abcd" + b"0" * 8188 + b"tail"


def test_rootfs_concurrent_writers_of_one_file(work: Work) -> None:
    (work.here / "f").touch()
    piece = 256 * 1024

    def write(number: int) -> None:
        with (work.here / "f").open("r+b", buffering=0) as file:
            for part in range(8):
                os.pwrite(file.fileno(), bytes([number]) * (piece // 8), number * piece + part * piece // 8)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (work.real / "f").read_bytes() == b"".join(bytes([number]) * piece for number in range(8))


def test_rootfs_direct_and_synchronous_io(work: Work) -> None:
    page = mmap.mmap(-1, 8192)
    page.write(b"d" * 8192)
    fd = os.open(work.here / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_SYNC)
    try:
        assert os.pwrite(fd, page, 4096) == 8192
        assert os.preadv(fd, [page], 4096) == 8192
        os.fdatasync(fd)
        os.fsync(fd)
    finally:
        os.close(fd)
    assert (work.real / "f").read_bytes() == bytes(4096) + b"d" * 8192
    directory = os.open(work.here, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def test_rootfs_changes_on_the_real_path_show(work: Work) -> None:
    (work.here / "f").write_bytes(b"old" * 2000)
    assert (work.here / "f").read_bytes()[:3] == b"old"
    (work.real / "f").write_bytes(b"new" * 2000)  # the same size
    assert (work.here / "f").read_bytes() == b"new" * 2000
    (work.real / "g").write_text("g")
    assert (work.here / "g").read_text() == "g"
    os.rename(work.real / "g", work.real / "h")
    time.sleep(1.1)
    assert sorted(os.listdir(work.here)) == ["f", "h"]
    assert not (work.here / "g").exists()


def test_rootfs_removed_but_open_goes_on(work: Work) -> None:
    (work.here / "f").write_text("first")
    with (work.here / "f").open("r+") as file:
        (work.here / "f").unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0, os.SEEK_END)
        file.write(" second")
        file.flush()
        os.fchmod(file.fileno(), 0o600)
        file.truncate(9)
        assert os.pread(file.fileno(), 100, 0) == b"first sec"
    (work.here / "a").write_text("a")
    (work.here / "b").write_text("b")
    with (work.here / "b").open() as file:
        os.rename(work.here / "a", work.here / "b")
        assert file.read() == "b"
    assert (work.here / "b").read_text() == "a"
    assert os.listdir(work.real) == ["b"]


def test_rootfs_removed_directory_of_a_process_still_answers(work: Work) -> None:
    (work.here / "d").mkdir()
    fd = os.open(work.here / "d", os.O_RDONLY)
    try:
        (work.here / "d").rmdir()
        time.sleep(1.1)
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
        assert os.listdir(fd) == []
        assert errno_of(os.mkdir, "x", dir_fd=fd) == errno.ENOENT
    finally:
        os.close(fd)


def test_rootfs_full_disk_is_enospc_and_passes(run_dir: Path, tmp_path: Path) -> None:
    features.require("fuse")
    with loops.loop_mount(run_dir, "full", mkfs=("mkfs.btrfs", "-q", "-M"), size=128 * MIB) as disk:
        (disk / "d").mkdir()
        with RootfsMount(tmp_path / "mnt", {"c": (disk / "d", False)}, tmp_path / "s") as mount:
            path = mount.path / "c/f"
            assert errno_of(_write_much, path) == errno.ENOSPC
            path.unlink()
            run("sync", "-f", disk)
            (mount.path / "c/small").write_text("fits")
            assert (disk / "d/small").read_text() == "fits"


def _write_much(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())


# -- names -----------------------------------------------------------------------------------------


def test_rootfs_hard_links_share_one_inode(work: Work) -> None:
    (work.here / "a").write_text("x")
    os.link(work.here / "a", work.here / "b")
    os.symlink("a", work.here / "s")
    os.link(work.here / "s", work.here / "t", follow_symlinks=False)
    a, b = (work.here / "a").stat(), (work.here / "b").stat()
    assert (a.st_ino, a.st_nlink) == (b.st_ino, 2) == (b.st_ino, b.st_nlink)
    assert os.readlink(work.real / "t") == "a"
    assert (work.here / "s").lstat().st_ino == (work.here / "t").lstat().st_ino
    (work.here / "b").write_text("through b")
    assert (work.here / "a").read_text() == "through b"
    (work.here / "a").unlink()
    assert (work.here / "b").stat().st_nlink == 1


def test_rootfs_rename_flags(work: Work) -> None:
    directory = os.open(work.here, os.O_RDONLY)
    try:
        (work.here / "a").write_text("a")
        (work.here / "d").mkdir()
        (work.here / "d/in").touch()
        assert errno_of(rootfs_calls.rename, directory, b"a", directory, b"d", NOREPLACE) == errno.EEXIST
        assert errno_of(os.rename, work.here / "a", work.here / "d") == errno.EISDIR
        rootfs_calls.rename(directory, b"a", directory, b"d", EXCHANGE)
        assert (work.here / "d").read_text() == "a"
        assert os.listdir(work.here / "a") == ["in"] == os.listdir(work.real / "a")
        rootfs_calls.rename(directory, b"d", directory, b"new", NOREPLACE)
        assert sorted(os.listdir(work.real)) == ["a", "new"]
        assert errno_of(os.rename, work.here / "a", work.here / "a/sub") == errno.EINVAL
    finally:
        os.close(directory)


def test_rootfs_names_of_any_bytes_up_to_255(work: Work) -> None:
    here = os.fsencode(work.here)
    for name in (LONG, ODD, b"\x01", b"...", b"\xe2\x82"):
        os.mkdir(os.path.join(here, name))
    assert (
        set(os.listdir(here))
        == {LONG, ODD, b"\x01", b"...", b"\xe2\x82"}
        == set(os.listdir(os.fsencode(work.real)))
    )
    assert errno_of(os.mkdir, os.path.join(here, b"n" * 256)) == errno.ENAMETOOLONG
    assert errno_of(os.stat, os.path.join(here, b"n" * 256)) == errno.ENAMETOOLONG
    assert errno_of(os.rmdir, work.here / "nothing") == errno.ENOENT


def test_rootfs_deep_tree_is_walked_and_removed(work: Work) -> None:
    code = "import os\nfor n in range(700): os.mkdir('d'); os.chdir('d')\nopen('bottom', 'w').close()\n"
    run(sys.executable, "-c", code, cwd=work.here)
    assert count(work.here) == count(work.real) == 702
    run("rm", "-r", work.here / "d")
    assert os.listdir(work.real) == []


def test_rootfs_symlinks_are_followed_by_the_caller_only(work: Work, served: Served) -> None:
    (work.real / "target").write_text("inside")
    os.symlink("../" * 20 + "etc/hostname", work.here / "up")
    os.symlink(f"../{work.here.name}/target", work.here / "side")
    assert (work.here / "side").read_text() == "inside"
    assert (work.here / "up").lstat().st_size == len("../" * 20 + "etc/hostname")
    os.symlink("/proc/self/fd", work.here / "dir")
    (work.here / "sub").mkdir()
    os.rename(work.real / "dir", work.real / "sub/dir")
    assert os.path.islink(work.here / "sub/dir")
    assert errno_of(os.open, work.here / "side", os.O_RDONLY | os.O_NOFOLLOW) == errno.ELOOP


def test_rootfs_listing_while_entries_come_and_go(work: Work) -> None:
    for number in range(3000):
        (work.real / f"f{number:04}").touch()
    seen: list[str] = []
    with os.scandir(work.here) as entries:
        for position, entry in enumerate(entries):
            seen.append(entry.name)
            if position == 100:
                for number in range(0, 3000, 2):
                    with contextlib.suppress(FileNotFoundError):
                        (work.here / f"f{number:04}").unlink()
                for number in range(500):
                    (work.here / f"g{number}").touch()
    assert len(seen) == len(set(seen))
    assert {f"f{number:04}" for number in range(1, 3000, 2)} <= set(seen)
    assert len(os.listdir(work.here)) == 2000


def test_rootfs_directory_position_survives_rewinding(work: Work) -> None:
    libc = ctypes.CDLL(None)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    for number in range(500):
        (work.real / f"f{number}").touch()
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(work.here)))

    def name() -> bytes:
        entry = libc.readdir(stream)
        return ctypes.string_at(entry + 19) if entry else b""

    for _ in range(200):
        name()
    place = libc.telldir(stream)
    rest = [name() for _ in range(50)]
    libc.seekdir(stream, ctypes.c_long(place))
    assert [name() for _ in range(50)] == rest
    (work.real / "late").touch()
    libc.rewinddir(stream)
    everything = set(iter(name, b""))
    libc.closedir(stream)
    assert everything - {b".", b".."} == {b"late", *(b"f%d" % number for number in range(500))}


def test_rootfs_sockets_fifos_and_devices(work: Work) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server, contextlib.chdir(work.here):
        server.bind("s")
        server.listen()
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect("s")
    assert stat.S_ISSOCK((work.real / "s").stat().st_mode)
    os.mkfifo(work.here / "p")
    with subprocess.Popen(["cat", work.here / "p"], stdout=subprocess.PIPE) as reader:
        (work.here / "p").write_text("through")
        assert reader.communicate(timeout=20)[0] == b"through"
    os.mknod(work.here / "null", 0o020666, os.makedev(1, 3))
    assert (work.real / "null").stat().st_rdev == os.makedev(1, 3) == (work.here / "null").stat().st_rdev
    assert errno_of(os.open, work.here / "null", os.O_RDONLY) == errno.EACCES  # nodev


# -- rights ----------------------------------------------------------------------------------------


def test_rootfs_mode_owner_and_times_change(work: Work) -> None:
    path, real = work.here / "f", work.real / "f"
    path.touch()
    os.symlink("f", work.here / "s")
    os.chmod(path, 0o4710)
    assert stat.S_IMODE(real.stat().st_mode) == 0o4710
    os.chown(path, USER, -1)
    assert (real.stat().st_uid, real.stat().st_gid) == (USER, 0)
    assert stat.S_IMODE(real.stat().st_mode) == 0o710
    os.lchown(work.here / "s", USER, GROUP)
    os.utime(work.here / "s", ns=(5, 7), follow_symlinks=False)
    os.utime(path, ns=(1_500_000_000_000_000_001, -5_000_000_001))
    assert (real.stat().st_atime_ns, real.stat().st_mtime_ns) == (1_500_000_000_000_000_001, -5_000_000_001)
    link = (work.real / "s").lstat()
    assert (link.st_uid, link.st_gid, link.st_atime_ns, link.st_mtime_ns) == (USER, GROUP, 5, 7)
    run("touch", "-a", "-d", "2001-01-01T00:00:00Z", path)
    assert (real.stat().st_atime, real.stat().st_mtime_ns) == (978307200, -5_000_000_001)


def test_rootfs_new_objects_belong_to_the_caller(work: Work) -> None:
    os.chmod(work.real, 0o777)
    code = (
        "os.chdir(a[0])\n"
        "os.close(os.open('f', os.O_CREAT | os.O_WRONLY, 0o666))\n"
        "os.mkdir('d', 0o777)\nos.symlink('f', 's')\nos.mkfifo('p', 0o666)\nos.mknod('n', 0o100660)\n"
    )
    as_user(code, work.here, umask=0o027)
    found = {name: (work.real / name).lstat() for name in ("f", "d", "s", "p", "n")}
    assert {(info.st_uid, info.st_gid) for info in found.values()} == {(USER, GROUP)}
    modes = {name: stat.S_IMODE(info.st_mode) for name, info in found.items() if name != "s"}
    assert modes == {"f": 0o640, "d": 0o750, "p": 0o640, "n": 0o640}


def test_rootfs_set_group_id_directory_passes_its_group_on(work: Work) -> None:
    os.chown(work.real, 0, 777)
    os.chmod(work.real, 0o2777)
    as_user("os.chdir(a[0])\nopen('f', 'w').close()\nos.mkdir('d')\n", work.here)
    assert ((work.real / "f").stat().st_uid, (work.real / "f").stat().st_gid) == (USER, 777)
    info = (work.real / "d").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (USER, 777, 0o2755)


def test_rootfs_permissions_are_the_kernels(work: Work) -> None:
    (work.real / "closed").write_text("x")
    os.chmod(work.real / "closed", 0o600)
    (work.real / "shared").mkdir()
    os.chown(work.real / "shared", 0, 777)
    os.chmod(work.real / "shared", 0o770)
    code = (
        "for path in (a[0] + '/closed', a[0] + '/new', a[0] + '/shared/new'):\n"
        "    try: os.close(os.open(path, os.O_RDWR | os.O_CREAT)); print('ok')\n"
        "    except PermissionError: print('no')\n"
    )
    assert as_user(code, work.here).split() == ["no", "no", "no"]
    assert as_user(code, work.here, groups=(777,)).split() == ["no", "no", "ok"]
    assert (work.real / "shared/new").stat().st_uid == USER


@pytest.mark.parametrize("flags", ["os.O_WRONLY", "os.O_WRONLY | os.O_APPEND", "os.O_RDWR | os.O_APPEND"])
def test_rootfs_write_by_another_user_takes_set_user_id_away(work: Work, flags: str) -> None:
    path = work.real / "su"
    path.write_text("x")
    os.chmod(path, 0o6777)
    as_user(f"fd = os.open(a[0], {flags})\nos.write(fd, b'evil')\nos.close(fd)\n", work.here / "su")
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    assert "evil" in path.read_text()


def test_rootfs_truncating_open_by_another_user_takes_set_user_id_away(work: Work) -> None:
    path = work.real / "su"
    path.write_text("x")
    os.chmod(path, 0o6777)
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200200000" + "00" * 12))
    as_user("os.close(os.open(a[0], os.O_RDWR | os.O_TRUNC))\n", work.here / "su")
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    assert os.listxattr(path) == []


def test_rootfs_extended_attributes(work: Work) -> None:
    path, real = work.here / "f", work.real / "f"
    path.touch()
    assert os.listxattr(path) == []
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, b"user.\xff", b"\0\xff" * 500)
    os.setxattr(path, "trusted.t", b"t")
    assert sorted(os.listxattr(real)) == sorted(os.listxattr(path)) == ["trusted.t", "user.a", "user.\udcff"]
    assert errno_of(os.setxattr, path, "user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    assert errno_of(os.setxattr, path, "user.b", b"2", os.XATTR_REPLACE) == errno.ENODATA
    assert errno_of(os.getxattr, path, "user.none") == errno.ENODATA
    assert errno_of(os.getxattr, path, "nonsense") == errno.EOPNOTSUPP
    os.removexattr(path, "user.a")
    assert errno_of(os.removexattr, path, "user.a") == errno.ENODATA
    assert os.getxattr(path, b"user.\xff") == b"\0\xff" * 500
    assert as_user("print(os.listxattr(a[0]) == ['user.\\udcff'])", path) == "True"
    os.symlink("f", work.here / "s")
    os.setxattr(work.here / "s", "trusted.l", b"l", follow_symlinks=False)
    assert os.getxattr(work.real / "s", "trusted.l", follow_symlinks=False) == b"l"


def test_rootfs_access_lists_decide_and_are_inherited(work: Work) -> None:
    (work.here / "f").write_text("x")
    os.chmod(work.here / "f", 0o600)
    code = "try: print(open(a[0]).read())\nexcept PermissionError: print('no')\n"
    assert as_user(code, work.here / "f") == "no"
    run("setfacl", "-m", f"u:{USER}:r", work.here / "f")
    assert as_user(code, work.here / "f") == "x"
    assert f"user:{USER}:r--" in run("getfacl", "-cpn", work.real / "f").stdout
    (work.here / "d").mkdir()
    run("setfacl", "-d", "-m", f"u:{USER}:rw", work.here / "d")
    (work.here / "d/f").touch()
    assert f"user:{USER}:rw-" in run("getfacl", "-cpn", work.real / "d/f").stdout
    os.chmod(work.here / "f", 0o600)
    assert as_user(code, work.here / "f") == "no"


def test_rootfs_statfs_is_the_real_filesystem(served: Served) -> None:
    info = os.statvfs(served.view("c"))
    assert info.f_namemax == 255
    assert info.f_blocks > 0
