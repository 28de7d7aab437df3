"""Real trees through the mount: ordinary programs, and the data they write."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support import features, loops, rootfs_served
from tests.support.features import lacking
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import make_sample, run
from tests.support.rootfs_served import Served, Work, count, errno_of
from tests.support.trees import snapshot_tree

MIB = 1 << 20

served = rootfs_served.served
work = rootfs_served.work


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
        lacking("vim is not installed")
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


def birth(path: Path) -> str:
    """As statx(2) tells it; "0.000000000" where it is unknown."""
    return run("stat", "-c", "%.9W", path).stdout


def test_rootfs_birth_is_shown_also_after_a_node_without_one_was_asked(served: Served, work: Work) -> None:
    assert birth(served.mount.path) == "0.000000000\n"
    (work.real / "file").write_text("x")
    (work.real / "link").symlink_to("file")
    (work.real / "dir").mkdir()
    for name in ("file", "link", "dir"):
        assert birth(work.here / name) == birth(work.real / name) != "0.000000000\n"
    before = served.mount.operations()["52"]
    assert birth(work.here / "file") == birth(work.real / "file")
    assert served.mount.operations()["52"] >= before > 0


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
            _write_when_freed(disk, mount.path / "c/small")
            assert (disk / "d/small").read_text() == "fits"


def _write_when_freed(disk: Path, path: Path) -> None:
    """The kernel tells of a closed file later, and btrfs frees what it held later still."""
    for left in reversed(range(100)):
        run("sync", "-f", disk)
        try:
            path.write_text("fits")
            return
        except OSError as exc:
            if exc.errno != errno.ENOSPC or not left:
                raise
            time.sleep(0.1)


def _write_much(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())
