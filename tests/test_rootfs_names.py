"""Real trees through the mount: names, links and listings; owners, modes and attributes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
import subprocess
import sys

import pytest

from tests.support import rootfs_served, syscalls
from tests.support.rootfs_samples import GROUP, LONG, ODD, USER, as_user, run
from tests.support.rootfs_served import Served, Work, count, errno_of

NOREPLACE, EXCHANGE = 1, 2

served = rootfs_served.served
work = rootfs_served.work


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
        assert errno_of(syscalls.rename, directory, b"a", directory, b"d", NOREPLACE) == errno.EEXIST
        assert errno_of(os.rename, work.here / "a", work.here / "d") == errno.EISDIR
        syscalls.rename(directory, b"a", directory, b"d", EXCHANGE)
        assert (work.here / "d").read_text() == "a"
        assert os.listdir(work.here / "a") == ["in"] == os.listdir(work.real / "a")
        syscalls.rename(directory, b"d", directory, b"new", NOREPLACE)
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
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(work.here / "s"))
        server.listen()
        client.connect(str(work.here / "s"))
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


@pytest.mark.parametrize(("groups", "kept"), [((), False), ((777,), True)])
def test_rootfs_access_list_by_no_member_takes_set_group_id_away(
    work: Work, groups: tuple[int, ...], kept: bool
) -> None:
    (work.real / "f").touch()
    os.chown(work.real / "f", USER, 777)
    os.chmod(work.real / "f", 0o2755)
    acl = "bytes.fromhex('02000000' '01000700ffffffff' '04000500ffffffff' '20000500ffffffff')"
    code = f"os.setxattr(a[0], 'system.posix_acl_access', {acl})"
    as_user(code, work.here / "f", groups=groups)
    assert bool((work.real / "f").stat().st_mode & stat.S_ISGID) is kept
