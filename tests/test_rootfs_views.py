"""Real trees through the mount: views beside each other, read-only ones, gates, identity and scale."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from fsd.exports import Exports, View
from fsd.handles import identity
from fsd.plane import Mode, Plane
from tests.support import rootfs_served, syscalls
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import make_many, make_sample, run
from tests.support.rootfs_served import Served, Work, count, errno_of
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

served = rootfs_served.served
work = rootfs_served.work


@pytest.fixture
def serve(
    btrfs_dir: Path, tmp_path: Path, require: Callable[[str], None]
) -> Iterator[Callable[..., RootfsMount]]:
    """Mounts of directories below ``btrfs_dir``: ``serve({"c": "c"}, read_only=("r",))``."""
    require("fuse")
    with ExitStack() as stack:

        def start(views: dict[str, str], read_only: tuple[str, ...] = (), **more: Any) -> RootfsMount:
            paths = {name: (btrfs_dir / path, name in read_only) for name, path in views.items()}
            mount = RootfsMount(tmp_path / "mnt", paths, tmp_path / "scratch", **more)
            stack.enter_context(mount)
            return mount

        yield start


def subvolume(path: Path) -> Path:
    run("btrfs", "subvolume", "create", path)
    return path


def numbers(path: Path) -> dict[str, int]:
    """Inode number of every path below ``path``."""
    found = run("find", path, "-printf", r"%i %P\0").stdout.split("\0")[:-1]
    return {name: int(number) for number, _, name in (entry.partition(" ") for entry in found)}


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


# -- read-only -------------------------------------------------------------------------------------

MUTATIONS: dict[str, Callable[[Path], object]] = {
    "open to write": lambda p: os.open(p / "f", os.O_WRONLY),
    "open to append": lambda p: os.open(p / "f", os.O_RDWR | os.O_APPEND),
    "open to truncate": lambda p: os.open(p / "f", os.O_RDONLY | os.O_TRUNC),
    "create": lambda p: os.open(p / "new", os.O_CREAT | os.O_RDONLY),
    "mkdir": lambda p: os.mkdir(p / "new"),
    "mknod": lambda p: os.mknod(p / "new"),
    "mkfifo": lambda p: os.mkfifo(p / "new"),
    "socket": lambda p: bind(p / "new"),
    "symlink": lambda p: os.symlink("f", p / "new"),
    "link": lambda p: os.link(p / "f", p / "new"),
    "unlink": lambda p: os.unlink(p / "f"),
    "rmdir": lambda p: os.rmdir(p / "d"),
    "rename": lambda p: os.rename(p / "f", p / "new"),
    "rename over": lambda p: os.rename(p / "f", p / "g"),
    "chmod": lambda p: os.chmod(p / "f", 0o600),
    "chown": lambda p: os.chown(p / "f", 1, 1),
    "truncate": lambda p: os.truncate(p / "f", 0),
    "utime": lambda p: os.utime(p / "f"),
    "setxattr": lambda p: os.setxattr(p / "f", "user.new", b"1"),
    "removexattr": lambda p: os.removexattr(p / "f", "user.old"),
    "access list": lambda p: os.setxattr(p / "f", "system.posix_acl_access", ACL),
}
ACL = bytes.fromhex("02000000 01000600ffffffff 04000400ffffffff 20000400ffffffff".replace(" ", ""))


@pytest.mark.parametrize("name", MUTATIONS)
def test_view_read_only_refuses_every_mutation(work: Work, served: Served, name: str) -> None:
    (work.real / "f").write_text("f")
    (work.real / "g").write_text("g")
    (work.real / "d").mkdir()
    os.setxattr(work.real / "f", "user.old", b"1")
    before = snapshot_tree(work.real)
    gates = len(served.mount.gates())
    assert errno_of(MUTATIONS[name], served.view("image") / work.here.name) == errno.EROFS
    assert snapshot_tree(work.real) == before
    assert len(served.mount.gates()) == gates


def test_view_read_only_shows_everything(work: Work, served: Served) -> None:
    make_sample(work.real)
    for view in ("layer", "image"):
        assert snapshot_tree(served.view(view) / work.here.name) == snapshot_tree(work.real)


def test_view_boundaries_are_crossed_by_copy_only(work: Work, served: Served) -> None:
    (work.here / "f").write_text("f")
    layer = served.view("layer") / work.here.name
    assert errno_of(os.rename, layer / "f", work.here / "g") == errno.EXDEV
    assert errno_of(os.rename, work.here / "f", layer / "g") == errno.EXDEV
    assert errno_of(os.link, layer / "f", work.here / "g") == errno.EXDEV
    assert errno_of(os.link, work.here / "f", served.mount.path / "g") == errno.EXDEV
    assert errno_of(os.rename, work.here / "f", served.mount.path / "g") == errno.EXDEV
    assert os.listdir(work.real) == ["f"]


# -- identity --------------------------------------------------------------------------------------


def test_view_numbers_are_unique_and_the_same_after_remount(
    btrfs_dir: Path, tmp_path: Path, require: Callable[[str], None]
) -> None:
    require("fuse")
    make_sample(subvolume(btrfs_dir / "c"))
    make_sample(subvolume(btrfs_dir / "c/etc/nested"))
    make_sample(subvolume(btrfs_dir / "other"))
    views = {"a": (btrfs_dir / "c", False), "b": (btrfs_dir / "c", True), "o": (btrfs_dir / "other", False)}
    with RootfsMount(tmp_path / "mnt", views, tmp_path / "scratch") as mount:
        first = numbers(mount.path)
    assert len(first) == count(btrfs_dir / "c") * 2 + count(btrfs_dir / "other") + 1
    links = {name for name in first if name.endswith("etc/alias")}
    assert len(set(first.values())) == len(first) - len(links)
    assert all(first[name] == first[name.replace("alias", "hostname")] for name in links)
    with RootfsMount(tmp_path / "mnt", {"b": views["b"]}, tmp_path / "scratch") as mount:
        again = numbers(mount.path)
    del again[""]
    assert again == {name: first[name] for name in again}
    assert len(again) == count(btrfs_dir / "c")


def test_view_of_a_replaced_subvolume_is_another_tree(
    btrfs_dir: Path, serve: Callable[..., RootfsMount]
) -> None:
    (subvolume(btrfs_dir / "c") / "f").write_text("old")
    mount = serve({"c": "c"})
    before = numbers(mount.path / "c")
    with (mount.path / "c/f").open() as held:
        os.rename(btrfs_dir / "c", btrfs_dir / "kept")
        run("btrfs", "subvolume", "snapshot", btrfs_dir / "kept", btrfs_dir / "c")
        (btrfs_dir / "c/f").write_text("new")
        time.sleep(1.1)
        assert (mount.path / "c/f").read_text() == "new"
        assert not set(before.values()) & set(numbers(mount.path / "c").values())
        assert held.read() == "old"


def test_view_of_ext4_tells_reused_inode_numbers_apart(
    ext4_dir: Path, tmp_path: Path, require: Callable[[str], None]
) -> None:
    require("fuse")
    (ext4_dir / "d").mkdir()
    with RootfsMount(tmp_path / "mnt", {"c": (ext4_dir / "d", False)}, tmp_path / "s") as mount:
        here = mount.path / "c"
        seen = set()
        for number in range(200):
            (here / "f").write_text(str(number))
            seen.add((here / "f").stat().st_ino)
            assert (here / "f").read_text() == str(number)
            if number % 2:
                os.unlink(ext4_dir / "d/f")  # behind the mount's back
            else:
                (here / "f").unlink()
            (ext4_dir / "d/f").mkdir()
            time.sleep(1.1 if number in (100, 101) else 0)
            (ext4_dir / "d/f").rmdir()
        assert len(seen) < 200


def test_view_does_not_enter_mounts_below_it(
    btrfs_dir: Path, serve: Callable[..., RootfsMount], tmp_path: Path
) -> None:
    subvolume(btrfs_dir / "c")
    for name in ("shm", "self"):
        (btrfs_dir / "c" / name).mkdir()
        (btrfs_dir / "c" / name / "below").touch()
    run("mount", "-t", "tmpfs", "none", btrfs_dir / "c/shm")
    try:
        (btrfs_dir / "c/shm/above").touch()
        mount = serve({"c": "c"})
        run("mount", "--bind", mount.path, btrfs_dir / "c/self")  # our own mount, inside itself
        try:
            assert count(mount.path / "c") == 5
            assert os.listdir(mount.path / "c/shm") == os.listdir(mount.path / "c/self") == ["below"]
        finally:
            run("umount", btrfs_dir / "c/self")
    finally:
        run("umount", btrfs_dir / "c/shm")  # nothing of ours keeps it busy


# -- gates -----------------------------------------------------------------------------------------

GATED: dict[str, tuple[Callable[[Path], object], list[str | None]]] = {
    "open to write": (lambda p: os.close(os.open(p / "f", os.O_WRONLY)), ["f"]),
    "open to truncate": (lambda p: os.close(os.open(p / "f", os.O_RDONLY | os.O_TRUNC)), ["f"]),
    "create": (lambda p: os.close(os.open(p / "new", os.O_CREAT | os.O_WRONLY)), ["new"]),
    "mkdir": (lambda p: os.mkdir(p / "new"), ["new"]),
    "mknod": (lambda p: os.mkfifo(p / "new"), ["new"]),
    "symlink": (lambda p: os.symlink("x", p / "new"), ["new"]),
    "link": (lambda p: os.link(p / "f", p / "new"), ["new"]),
    "unlink": (lambda p: os.unlink(p / "f"), ["f"]),
    "rmdir": (lambda p: os.rmdir(p / "d"), ["d"]),
    "rename": (lambda p: os.rename(p / "f", p / "new"), ["f", "new"]),
    "chmod": (lambda p: os.chmod(p / "f", 0o600), ["f"]),
    "truncate": (lambda p: os.truncate(p / "f", 0), ["f"]),
    "setxattr": (lambda p: os.setxattr(p / "f", "user.new", b"1"), ["f"]),
    "removexattr": (lambda p: os.removexattr(p / "f", "user.old"), ["f"]),
    "utime": (lambda p: os.utime(p / "f", ns=(1, 1)), []),
    "read": (lambda p: (p / "f").read_bytes(), []),
    "list": (lambda p: (os.listdir(p), os.stat(p / "f"), os.listxattr(p / "f")), []),
}


@pytest.mark.parametrize("name", GATED)
def test_gate_is_passed_before_mutations_only(work: Work, served: Served, name: str) -> None:
    act, names = GATED[name]
    (work.real / "f").write_text("f")
    (work.real / "d").mkdir()
    os.setxattr(work.real / "f", "user.old", b"1")
    passed = len(served.mount.gates())
    act(work.here)
    assert served.mount.gates()[passed:] == [("c", name) for name in names]


@pytest.mark.parametrize("name", [name for name, (_, names) in GATED.items() if names])
def test_gate_that_refuses_leaves_everything_as_it_was(work: Work, served: Served, name: str) -> None:
    (work.real / "f").write_text("f")
    (work.real / "d").mkdir()
    os.setxattr(work.real / "f", "user.old", b"1")
    before = snapshot_tree(work.real)
    refuse = served.mount.path.parent / "scratch/refuse"
    refuse.touch()
    try:
        assert errno_of(GATED[name][0], work.here) == errno.EDQUOT
    finally:
        refuse.unlink()
    assert snapshot_tree(work.real) == before


def test_gate_knows_a_file_by_its_newest_name(work: Work, served: Served) -> None:
    (work.here / "sedABCDEF").write_text("x")
    os.rename(work.here / "sedABCDEF", work.here / "f")
    passed = len(served.mount.gates())
    os.close(os.open(work.here / "f", os.O_WRONLY))
    assert served.mount.gates()[passed:] == [("c", "f")]


# -- scale and privilege ---------------------------------------------------------------------------


def settled(mount: RootfsMount) -> int:
    """How many descriptors the daemon holds when the kernel has told it of every close."""
    found = mount.descriptors()
    for _ in range(50):
        time.sleep(0.1)
        before, found = found, mount.descriptors()
        if found == before:
            break
    return found


@pytest.mark.parametrize(
    ("filesystem", "use_handles", "mode"),
    [
        ("btrfs_dir", True, Mode.BTRFS_HANDLE),
        ("ext4_dir", True, Mode.HANDLE),
        ("btrfs_dir", False, Mode.NAME),
    ],
)
def test_nodes_are_reopened_by_the_cheapest_way_there_is(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    require: Callable[[str], None],
    filesystem: str,
    use_handles: bool,
    mode: Mode,
) -> None:
    require("fuse")
    top = request.getfixturevalue(filesystem) / "c"
    (top / "d").mkdir(parents=True)
    (top / "d/f").write_text("f")
    views = {"c": (top, False), "r": (top, True)}
    with RootfsMount(tmp_path / "mnt", views, tmp_path / "s", use_handles=use_handles) as mount:
        for view in views:
            assert (mount.path / view / "d/f").read_text() == "f"
    assert mount.stats()["modes"] == dict.fromkeys(views, mode)


def test_without_the_privilege_for_passthrough_data_goes_by_request(
    btrfs_dir: Path, tmp_path: Path, require: Callable[[str], None]
) -> None:
    require("fuse")
    (subvolume(btrfs_dir / "c") / "f").write_bytes(b"f" * 1_000_000)
    views = {"c": (btrfs_dir / "c", False)}
    with RootfsMount(tmp_path / "mnt", views, tmp_path / "s", administrator=False) as mount:
        assert (mount.path / "c/f").read_bytes() == b"f" * 1_000_000
        (mount.path / "c/g").write_bytes(b"g" * 1_000_000)
        assert (btrfs_dir / "c/g").read_bytes() == b"g" * 1_000_000
    stats = mount.stats()
    assert not stats["passthrough"]
    assert {"15", "16"} <= stats["operations"].keys()  # FUSE_READ and FUSE_WRITE


def test_scale_30000_files_need_few_descriptors(btrfs_dir: Path, serve: Callable[..., RootfsMount]) -> None:
    entries = make_many(subvolume(btrfs_dir / "c"), 1500, 20)
    mount = serve({"c": "c", "r": "c"}, read_only=("r",), nofile=1024)
    assert count(mount.path / "c") == count(mount.path / "r") == entries
    assert settled(mount) < 600
    assert run("tar", "-C", mount.path / "r", "-cf", "/dev/null", ".").stderr == ""
    run("rm", "-r", *(str(mount.path / f"c/d{number}") for number in range(100)))
    assert count(btrfs_dir / "c") == entries - 100 * 21


def test_unprivileged_way_serves_the_same_with_few_descriptors(
    btrfs_dir: Path, serve: Callable[..., RootfsMount], tmp_path: Path
) -> None:
    make_sample(subvolume(btrfs_dir / "c"))
    (btrfs_dir / "c/many").mkdir()
    make_many(btrfs_dir / "c/many", 60, 60)
    mount = serve({"c": "c"}, use_handles=False, descriptors=20)
    here = mount.path / "c"
    assert count(here) == count(btrfs_dir / "c")
    assert snapshot_tree(here) == snapshot_tree(btrfs_dir / "c")
    assert settled(mount) < 60
    os.rename(here / "many", here / "moved")
    (here / "moved/d3/f3").write_text("found again")
    assert (btrfs_dir / "c/moved/d3/f3").read_text() == "found again"
    os.rename(btrfs_dir / "c/moved/d4", btrfs_dir / "c/moved/d4x")  # behind the mount's back
    (btrfs_dir / "c/moved/d4").mkdir()
    time.sleep(1.1)
    assert os.listdir(here / "moved/d4") == []
    run("rm", "-r", here / "moved")
    assert not (btrfs_dir / "c/moved").exists()


def test_unprivileged_way_reopens_deep_trees(btrfs_dir: Path, serve: Callable[..., RootfsMount]) -> None:
    subvolume(btrfs_dir / "c")
    code = "import os\nfor n in range(1200): os.mkdir('d'); os.chdir('d')\nopen('bottom', 'w').close()\n"
    run(sys.executable, "-c", code, cwd=btrfs_dir / "c")
    mount = serve({"c": "c"}, use_handles=False, descriptors=16)
    assert count(mount.path / "c") == 1202
    time.sleep(1.1)
    code = "import os\nfor n in range(1200): os.chdir('d')\nos.stat('bottom')\nprint(os.listdir())\n"
    assert run(sys.executable, "-c", code, cwd=mount.path / "c").stdout == "['bottom']\n"


def test_umask_of_the_daemon_does_not_matter(btrfs_dir: Path, serve: Callable[..., RootfsMount]) -> None:
    subvolume(btrfs_dir / "c")
    here = serve({"c": "c"}, umask=0o077).path / "c"
    old = os.umask(0)
    try:
        os.close(os.open(here / "f", os.O_CREAT, 0o4666))
        (here / "d").mkdir(0o1777)
    finally:
        os.umask(old)
    assert (btrfs_dir / "c/f").stat().st_mode & 0o7777 == 0o4666
    assert (btrfs_dir / "c/d").stat().st_mode & 0o7777 == 0o1777


def test_writers_in_parallel_do_not_disturb_each_other(work: Work) -> None:
    script = "for n in $(seq 40); do echo $1 > f$1-$n && mv f$1-$n g$1-$n && cat g$1-$n && rm g$1-$n; done"
    shells = [
        subprocess.Popen(["sh", "-ec", script, "sh", str(number)], cwd=work.here, stdout=subprocess.PIPE)
        for number in range(8)
    ]
    outputs = [shell.communicate(timeout=100)[0] for shell in shells]
    assert outputs == [b"%d\n" % number * 40 for number in range(8)]
    assert os.listdir(work.real) == []


# -- handles ---------------------------------------------------------------------------------------


def test_identity_differs_between_a_subvolume_and_its_snapshot(btrfs_dir: Path) -> None:
    subvolume(btrfs_dir / "a")
    run("btrfs", "subvolume", "snapshot", btrfs_dir / "a", btrfs_dir / "b")
    assert identity(btrfs_dir / "a") != identity(btrfs_dir / "b")
    assert identity(btrfs_dir / "a") == identity(btrfs_dir / "a")
    os.rename(btrfs_dir / "a", btrfs_dir / "c")
    assert identity(btrfs_dir / "c") != identity(btrfs_dir / "b")


def test_acting_as_leaves_the_process_as_it_was(btrfs_dir: Path) -> None:
    def capabilities() -> list[str]:
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        return [line for line in lines if line.startswith(("Uid", "Gid", "Cap"))]

    os.chmod(btrfs_dir, 0o700)
    before = capabilities()
    with syscalls.acting_as(1234, 2345):
        (btrfs_dir / "f").touch()
    assert capabilities() == before
    assert ((btrfs_dir / "f").stat().st_uid, (btrfs_dir / "f").stat().st_gid) == (1234, 2345)
    (btrfs_dir / "g").touch()
    assert (btrfs_dir / "g").stat().st_uid == 0


def test_view_is_forgotten_when_the_kernel_holds_nothing_of_it(
    btrfs_dir: Path, require: Callable[[str], None]
) -> None:
    require("fuse")
    plane = Plane(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    try:
        exports = Exports(plane, lambda key: 1)
        node = exports.export(View(key="k", path=btrfs_dir, read_only=True))
        assert trio.run(exports.sweep) == set()
        exports.unexport("k")
        assert exports.view_of(node) is not None
        assert trio.run(exports.sweep) == {"k"}
        assert exports.view_of(node) is None
    finally:
        plane.stop()
