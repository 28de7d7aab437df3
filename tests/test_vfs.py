"""The vfs driver and the tree copy under it, on real filesystems and against the real tools."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers import syscalls
from drivers.base import Creation, MountOptions
from drivers.copytree import copy_tree, remove_tree
from drivers.errors import BadLayerID, BadOption, LayerExists, LayerMounted, LayerUnknown
from drivers.idmap import IDMap, IDMappings
from drivers.staging import Staging
from drivers.vfs import VfsDriver
from tests.support.tools import StoreDirs, ToolBox
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable

FILESYSTEMS = ("btrfs_dir", "ext4_dir", "xfs_dir")
DEEP = 600
SHIFTED = IDMappings((IDMap(0, 200000, 65536),), (IDMap(0, 300000, 65536),))


@pytest.fixture(params=FILESYSTEMS)
def place(request: pytest.FixtureRequest) -> Path:
    directory: Path = request.getfixturevalue(request.param)
    return directory


@pytest.fixture
def driver(place: Path) -> VfsDriver:
    return VfsDriver(place / "vfs")


def build_menagerie(root: Path) -> None:
    """One of everything a copy can lose."""
    root.mkdir()
    (root / "dir").mkdir()
    (root / "file").write_bytes(b"content" * 5000)
    (root / "small").write_bytes(b"x")
    (root / "unreadable").write_text("root reads it")
    (root / "unreadable").chmod(0)
    os.link(root / "file", root / "dir" / "hard")
    os.link(root / "file", root / "hard")
    os.symlink("/no/such", root / "link")
    os.setxattr(root / "link", "trusted.fsd", b"on a link", follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o640)
    os.link(root / "fifo", root / "fifo2")
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(str(root / "socket"))
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    os.mknod(root / "whiteout", stat.S_IFCHR, 0)
    (root / ("n" * 255)).touch()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe\n")).write_text("not UTF-8")
    _attributes(root)
    _times(root)


def _attributes(root: Path) -> None:
    for name in ("setuid", "capable", "listed", "tagged"):
        (root / name).write_text(name)
    os.chown(root / "setuid", 33, 34)
    (root / "setuid").chmod(0o6755)
    os.setxattr(
        root / "capable", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    )
    os.setxattr(root / "tagged", "user.many", b"v" * 2000)
    subprocess.run(["setfacl", "-m", "u:33:rwx,g:34:r", root / "listed"], check=True)
    (root / "inherits").mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:33:rwx", root / "inherits"], check=True)
    (root / "inherits" / "below").mkdir(mode=0o700)
    (root / "inherits" / "file").touch(mode=0o600)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o3771)


def _times(root: Path) -> None:
    os.utime(root / "dir", ns=(10**18 + 1, 10**18 + 2))
    os.utime(root / "link", ns=(3, 4), follow_symlinks=False)
    os.utime(root / "file", ns=(-5 * 10**9, -7 * 10**9))
    os.chown(root, 7, 8)
    root.chmod(0o751)
    os.utime(root, ns=(5, 6))


def make_deep(root: Path, depth: int) -> None:
    """A chain of directories whose path is far beyond PATH_MAX, with a hard link across its length."""
    fd = os.open(root, os.O_RDONLY)
    top = os.dup(fd)
    (root / "shallow").write_text("deep")
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=fd)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.link("shallow", "deep", src_dir_fd=top, dst_dir_fd=fd)
    os.link("shallow", "deep2", src_dir_fd=top, dst_dir_fd=fd)
    os.close(top)
    os.close(fd)


def deep_inode(root: Path, depth: int, name: str) -> int:
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    try:
        return os.stat(name, dir_fd=fd).st_ino
    finally:
        os.close(fd)


# -- copies ------------------------------------------------------------------------------------


def test_copy_keeps_everything(place: Path) -> None:
    build_menagerie(place / "a")
    (place / "b").mkdir()
    copied = copy_tree(place / "a", place / "b")
    original = snapshot_tree(place / "a")
    assert snapshot_tree(place / "b") == original
    assert os.stat(place / "b").st_atime_ns == 5
    assert copied.directories == sum(entry.kind == "directory" for entry in original.values())
    assert copied.hard_links == 3
    names = copied.files + copied.hard_links + copied.directories
    assert names == len(original)


def test_copy_keeps_holes(place: Path) -> None:
    (place / "a").mkdir()
    (place / "b").mkdir()
    with open(place / "a" / "sparse", "wb") as file:
        file.seek(20 << 20)
        file.write(b"island")
        file.truncate(50 << 20)
    copy_tree(place / "a", place / "b")
    status = os.stat(place / "b" / "sparse")
    assert status.st_size == 50 << 20
    assert status.st_blocks * 512 < 1 << 20
    with open(place / "b" / "sparse", "rb") as file:
        file.seek((20 << 20) - 1)
        assert file.read(8) == b"\0island\0"


@pytest.mark.parametrize("name", ["btrfs_dir", "xfs_dir"])
def test_copy_shares_blocks_where_it_can(request: pytest.FixtureRequest, name: str) -> None:
    place: Path = request.getfixturevalue(name)
    (place / "a").mkdir()
    (place / "b").mkdir()
    (place / "a" / "big").write_bytes(os.urandom(1 << 20))
    copy_tree(place / "a", place / "b")
    fd = os.open(place / "b" / "big", os.O_RDONLY)
    try:
        assert all(extent.shared for extent in syscalls.extents(fd))
    finally:
        os.close(fd)


def test_copy_between_filesystems_is_whole(btrfs_dir: Path, ext4_dir: Path) -> None:
    build_menagerie(btrfs_dir / "a")
    (ext4_dir / "b").mkdir()
    copy_tree(btrfs_dir / "a", ext4_dir / "b")
    assert snapshot_tree(ext4_dir / "b") == snapshot_tree(btrfs_dir / "a")


def test_copy_of_deep_tree_needs_no_descriptors(btrfs_dir: Path) -> None:
    (btrfs_dir / "a").mkdir()
    (btrfs_dir / "b").mkdir()
    make_deep(btrfs_dir / "a", DEEP)
    copied = copy_tree(btrfs_dir / "a", btrfs_dir / "b")
    try:
        assert copied.directories == DEEP + 1
        assert copied.hard_links == 2
        inode = (btrfs_dir / "b" / "shallow").stat().st_ino
        assert deep_inode(btrfs_dir / "b", DEEP, "deep") == inode
        assert deep_inode(btrfs_dir / "b", DEEP, "deep2") == inode
    finally:
        remove_tree(btrfs_dir / "a")
        remove_tree(btrfs_dir / "b")
    assert not os.listdir(btrfs_dir)


def test_copy_into_occupied_directory_names_the_path(btrfs_dir: Path) -> None:
    for name in ("a", "b"):
        (btrfs_dir / name / "sub").mkdir(parents=True)
        (btrfs_dir / name / "sub" / "taken").touch()
    (btrfs_dir / "b" / "sub").rename(btrfs_dir / "b" / "other")
    (btrfs_dir / "b" / "sub").symlink_to("other")
    with pytest.raises(FileExistsError) as caught:
        copy_tree(btrfs_dir / "a", btrfs_dir / "b")
    assert caught.value.filename == str(btrfs_dir / "a" / "sub")
    assert (btrfs_dir / "b" / "other" / "taken").exists()


def test_copy_of_missing_source_raises(btrfs_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        copy_tree(btrfs_dir / "none", btrfs_dir)


def test_remove_tree_does_not_follow_links(btrfs_dir: Path) -> None:
    (btrfs_dir / "kept").mkdir()
    (btrfs_dir / "kept" / "file").touch()
    (btrfs_dir / "gone").mkdir()
    (btrfs_dir / "gone" / "link").symlink_to(btrfs_dir / "kept")
    remove_tree(btrfs_dir / "gone")
    assert os.listdir(btrfs_dir) == ["kept"]
    assert os.listdir(btrfs_dir / "kept") == ["file"]
    with pytest.raises(NotADirectoryError):
        remove_tree(btrfs_dir / "kept" / "file")


def test_remove_tree_of_an_immutable_file_is_not_permitted(btrfs_dir: Path) -> None:
    file = btrfs_dir / "tree" / "sub" / "file"
    file.parent.mkdir(parents=True)
    file.touch()
    subprocess.run(["chattr", "+i", file], check=True)
    try:
        with pytest.raises(PermissionError):
            remove_tree(btrfs_dir / "tree")
    finally:
        subprocess.run(["chattr", "-i", file], check=True)
    remove_tree(btrfs_dir / "tree")
    assert os.listdir(btrfs_dir) == []


# -- staging -----------------------------------------------------------------------------------


def test_staging_sweeps_what_nobody_works_on(btrfs_dir: Path) -> None:
    staging = Staging(btrfs_dir / "work")
    with staging.directory() as used:
        left = staging.root / "left"
        (left / "sub").mkdir(parents=True)
        assert Staging(btrfs_dir / "work").sweep() == 1
        assert used.exists()
        assert not left.exists()
    assert not staging.root.exists()


def test_staging_from_threads_leaves_nothing(btrfs_dir: Path) -> None:
    staging, failures = Staging(btrfs_dir / "work"), []

    def work() -> None:
        try:
            for _ in range(20):
                with staging.directory() as path:
                    (path / "x").touch()
                staging.sweep()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not staging.root.exists()


# -- the driver --------------------------------------------------------------------------------


def test_base_layer_is_empty_with_mode_0555(driver: VfsDriver) -> None:
    driver.create("base")
    tree = driver.get("base")
    assert tree == driver.home / "dir" / "base"
    assert stat.S_IMODE(tree.stat().st_mode) == 0o555
    assert os.listdir(tree) == []
    assert stat.S_IMODE(driver.home.stat().st_mode) == 0o700
    assert sorted(os.listdir(driver.home)) == ["dir"]


def test_child_is_an_independent_copy(driver: VfsDriver) -> None:
    driver.create("base")
    shutil.rmtree(driver.get("base"))
    build_menagerie(driver.layers / "base")
    driver.create_read_write("child", "base")
    assert snapshot_tree(driver.get("child")) == snapshot_tree(driver.get("base"))
    (driver.get("child") / "small").write_text("changed")
    assert (driver.get("base") / "small").read_text() == "x"
    assert [str(change.path) for change in driver.changes("child", "base")] == [str(b"/small")]
    assert sorted(driver.layer_ids()) == ["base", "child"]


def test_create_with_taken_id_leaves_the_layer_alone(driver: VfsDriver) -> None:
    driver.create("base")
    driver.create("child", "base")
    with pytest.raises(LayerExists):
        driver.create("child", "base")
    with pytest.raises(LayerUnknown):
        driver.create("other", "missing")
    assert sorted(driver.layer_ids()) == ["base", "child"]
    assert sorted(os.listdir(driver.home)) == ["dir"]


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "nul\0", "x" * 256])
def test_impossible_id_is_refused_everywhere(btrfs_dir: Path, bad: str) -> None:
    driver = VfsDriver(btrfs_dir / "vfs")
    driver.create("base")
    calls: list[Callable[[], object]] = [
        lambda: driver.create(bad),
        lambda: driver.create("child", bad),
        lambda: driver.remove(bad),
        lambda: driver.get(bad),
    ]
    for call in calls:
        with pytest.raises(BadLayerID):
            call()
    assert not driver.exists(bad)
    assert list(driver.layer_ids()) == ["base"]


def test_remove_deletes_once(driver: VfsDriver) -> None:
    driver.create("base")
    build_menagerie(driver.layers / "base" / "inside")
    driver.remove("base")
    assert not driver.exists("base")
    with pytest.raises(LayerUnknown):
        driver.remove("base")
    assert sorted(os.listdir(driver.home)) == ["dir"]


def test_remove_with_a_mount_on_it_is_refused(btrfs_dir: Path) -> None:
    driver = VfsDriver(btrfs_dir / "vfs")
    driver.create("base")
    syscalls.mount(driver.get("base"), driver.get("base"), flags=syscalls.MS_BIND)
    try:
        with pytest.raises(LayerMounted):
            driver.remove("base")
        assert driver.exists("base")
    finally:
        syscalls.umount(driver.get("base"))


def test_create_without_space_leaves_nothing(ext4_dir: Path) -> None:
    driver = VfsDriver(ext4_dir / "vfs")
    driver.create("base")
    size = os.statvfs(ext4_dir).f_bavail * os.statvfs(ext4_dir).f_frsize
    with open(driver.get("base") / "fill", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size * 2 // 3)
        file.write(b"data" * 16)
        block = bytes(1 << 20)
        for _ in range(size * 2 // 3 >> 20):
            file.write(block)
    with pytest.raises(OSError, match="No space left") as caught:
        driver.create("child", "base")
    assert caught.value.errno == errno.ENOSPC
    assert list(driver.layer_ids()) == ["base"]
    assert sorted(os.listdir(driver.home)) == ["dir"]


def test_open_sweeps_what_a_crash_left(btrfs_dir: Path) -> None:
    driver = VfsDriver(btrfs_dir / "vfs")
    (driver.home / "fsd" / "0123" / "layer").mkdir(parents=True)
    VfsDriver(driver.home)
    assert sorted(os.listdir(driver.home)) == ["dir"]


def test_read_only_filesystem_refuses_create(ext4_dir: Path) -> None:
    driver = VfsDriver(ext4_dir / "vfs")
    driver.create("base")
    syscalls.mount("none", ext4_dir, flags=syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
    with pytest.raises(OSError, match="Read-only") as caught:
        driver.create("child", "base")
    assert caught.value.errno == errno.EROFS
    assert VfsDriver(driver.home).exists("base")


def test_unknown_options_are_named(btrfs_dir: Path) -> None:
    with pytest.raises(BadOption, match=r"vfs\.size"):
        VfsDriver(btrfs_dir / "vfs", {"size": "10g"})
    driver = VfsDriver(btrfs_dir / "vfs")
    with pytest.raises(BadOption, match="size"):
        driver.create("limited", None, Creation(storage_opts={"size": "1g"}))
    driver.create("base")
    assert driver.get("base", MountOptions(options=("ro",))) == driver.get("base")
    with pytest.raises(BadOption, match="noexec"):
        driver.get("base", MountOptions(options=("noexec",)))


def test_template_with_other_mappings_is_shifted(driver: VfsDriver) -> None:
    driver.create("base")
    tree = driver.get("base")
    (tree / "file").touch()
    os.chown(tree / "file", 33, 34)
    driver.create_from_template("mapped", "base", None, Creation(mappings=SHIFTED), IDMappings())
    status = os.lstat(driver.get("mapped") / "file")
    assert (status.st_uid, status.st_gid) == (200033, 300034)
    root = os.stat(driver.get("mapped"))
    assert (root.st_uid, root.st_gid) == (200000, 300000)
    driver.update_id_map("mapped", SHIFTED, IDMappings())
    assert snapshot_tree(driver.get("mapped")) == snapshot_tree(tree)
    driver.create("empty", None, Creation(mappings=SHIFTED))
    assert os.stat(driver.get("empty")).st_uid == 200000


def test_usage_counts_hard_links_once(driver: VfsDriver) -> None:
    driver.create("base")
    tree = driver.get("base")
    (tree / "a").write_bytes(bytes(1000))
    os.link(tree / "a", tree / "b")
    (tree / "d").mkdir()
    make_deep(tree / "d", 300)
    usage = driver.read_write_disk_usage("base")
    assert (usage.size, usage.inodes) == (1004, 304)
    remove_tree(tree / "d")


def test_additional_store_serves_layers_and_parents(btrfs_dir: Path) -> None:
    other = VfsDriver(btrfs_dir / "shared" / "vfs")
    other.create("base")
    (other.get("base") / "file").write_text("shared")
    driver = VfsDriver(btrfs_dir / "own" / "vfs", {"imagestore": str(btrfs_dir / "shared")})
    assert driver.additional_image_stores() == (btrfs_dir / "shared",)
    assert driver.exists("base")
    assert list(driver.layer_ids()) == []
    driver.create("child", "base")
    assert (driver.get("child") / "file").read_text() == "shared"
    with pytest.raises(LayerUnknown):
        driver.remove("base")
    assert other.exists("base")


# -- the real tools ----------------------------------------------------------------------------


@pytest.fixture
def vfs_tools(btrfs_dir: Path) -> ToolBox:
    dirs = StoreDirs(btrfs_dir / "g", btrfs_dir / "r")
    dirs.graphroot.mkdir()
    return ToolBox(dirs, "vfs", btrfs_dir / "conf")


def test_store_made_by_the_original_is_continued_and_used_again(
    vfs_tools: ToolBox, require: Callable[[str], None], rootfs_tar: Path
) -> None:
    require("containers-storage")
    tool = vfs_tools.containers_storage()
    tool("import-layer", "-i", "a" * 64, "-f", rootfs_tar)
    tool("create-layer", "-i", "b" * 64, "a" * 64)
    driver = VfsDriver(vfs_tools.dirs.graphroot / "vfs")
    assert sorted(driver.layer_ids()) == ["a" * 64, "b" * 64]
    with driver.mounted("b" * 64) as tree:
        assert (tree / "etc" / "hostname").read_text() == "fsd-test\n"
        (tree / "etc" / "hostname").write_text("changed by us\n")
        (tree / "srv" / "empty").unlink()
    expected = [
        f"{change.kind.value} {os.fsdecode(change.path)}" for change in driver.changes("b" * 64, "a" * 64)
    ]
    theirs = tool("changes", "b" * 64).stdout.split("\n")
    assert sorted(line.replace('"', "") for line in theirs if line) == sorted(
        _as_the_original_prints(line) for line in expected
    )


def _as_the_original_prints(line: str) -> str:
    kind, _, path = line.partition(" ")
    return {"C": "Modify", "A": "Add", "D": "Delete"}[kind] + f" {path}"


def test_podman_runs_what_we_extended(
    vfs_tools: ToolBox, require: Callable[[str], None], rootfs_tar: Path
) -> None:
    require("podman")
    podman = vfs_tools.podman()
    podman("import", rootfs_tar, "localhost/base:1")
    driver = VfsDriver(vfs_tools.dirs.graphroot / "vfs")
    images = set(driver.layer_ids())
    podman("create", "--name", "extended", "localhost/base:1", "/bin/cat", "/etc/added")
    [container] = set(driver.layer_ids()) - images
    with driver.mounted(container) as tree:
        (tree / "etc" / "added").write_text("from the driver\n")
    assert podman("start", "--attach", "extended").stdout == "from the driver\n"
    assert "A /etc/added" in podman("diff", "extended").stdout
    podman("rm", "extended")
    assert not driver.exists(container)
