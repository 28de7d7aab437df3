"""Real trees in the mounted store: what happens to a view when the object behind it changes.

Each test has a filesystem of its own: nobody else's deleted subvolumes keep its cleaner busy.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from drivers.idmap import IDMap
from store.options import ContainerOptions
from tests.support.filled import BASE, CONTAINER, TOP, errno_of, eventually, write
from tests.support.mounted import mounted

if TYPE_CHECKING:
    from pathlib import Path


def test_rollback_shows_the_restored_tree_as_soon_as_it_returns(tree):
    container = tree.path / "containers" / CONTAINER
    (container / "snapshots/good").mkdir()
    for number in range(25):
        (container / f"rootfs/bad{number}").mkdir()
        write(container / "rollback", "good")
        assert not any(name.startswith("bad") for name in os.listdir(container / "rootfs")), number


def test_first_writers_at_once_wait_for_one_snapshot_of_the_state_before_them(tree):
    container = tree.path / "containers" / CONTAINER
    together = threading.Barrier(64)

    def add(number: int) -> None:
        together.wait()
        write(container / f"rootfs/file{number}", str(number))

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(add, range(64)))
    (snapshot,) = os.listdir(container / "snapshots")
    assert list((container / "snapshots" / snapshot / "rootfs").glob("file*")) == []
    assert all((container / f"rootfs/file{n}").read_text() == str(n) for n in range(64))


def deleted_subvolumes(filesystem: Path) -> str:
    """Subvolumes that were deleted and still take space; the cleaner is woken to go on."""
    subprocess.run(["btrfs", "filesystem", "sync", filesystem], check=True, timeout=60)
    listed = ["btrfs", "subvolume", "list", "-d", filesystem]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout


def test_view_of_what_podman_removed_is_let_go_with_its_space(tree, podman, btrfs_dir):
    podman("create", "--name", "short-lived", BASE, "true")
    rootfs = tree.path / "containers/short-lived/rootfs"
    directory = os.open(rootfs / "etc", os.O_PATH)
    marked = os.open(rootfs / "etc/hostname", os.O_PATH)
    opened = os.open(rootfs / "etc/passwd", os.O_RDONLY)
    try:
        (rootfs / "gone").mkdir()
        assert os.listdir(rootfs / "etc")
        for name in os.listdir(tree.path / "containers/short-lived/snapshots"):
            (tree.path / "containers/short-lived/snapshots" / name).rmdir()
        podman("rm", "short-lived")
        assert eventually(lambda: _is_stale(directory) and _is_stale(marked))
        assert os.pread(opened, 4, 0) == b"root"
    finally:
        os.close(opened)
        assert eventually(lambda: deleted_subvolumes(btrfs_dir) == "", 60)
        os.close(marked)
        os.close(directory)
    assert not rootfs.exists()


def _is_missing(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory)
    except OSError as exc:
        return exc.errno in (errno.ESTALE, errno.ENOENT)
    return False


def _is_stale(descriptor: int) -> bool:
    try:
        os.stat(f"/proc/self/fd/{descriptor}")
    except OSError as exc:
        return exc.errno == errno.ESTALE
    return False


def test_view_of_an_image_podman_removed_is_stale_although_the_kernel_kept_its_names(tree, podman, btrfs_dir):
    (tree.path / "containers" / CONTAINER).rmdir()
    for entry in (tree.path / "trash").iterdir():
        entry.rmdir()
    rootfs = tree.path / "images" / TOP / "rootfs"
    directory = os.open(rootfs / "etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.stat("hostname", dir_fd=directory)
        podman("rmi", TOP)
        assert eventually(lambda: not rootfs.exists())
        assert eventually(lambda: _is_missing("hostname", directory))
        assert eventually(lambda: deleted_subvolumes(btrfs_dir) == "", 60)
    finally:
        os.close(directory)


def owners(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def test_owners_are_a_containers_own_where_it_has_id_mappings(filled, store, btrfs_dir, require):
    require("fuse")
    mapping = (IDMap(0, 300_000, 65_536),)
    made = store.create_container(
        names=["mapped"], image=BASE, options=ContainerOptions(uidmap=mapping, gidmap=mapping)
    )
    real = store.driver.path_of(made.layer)
    with mounted(filled, btrfs_dir / "mnt") as tree:
        container = tree.path / "containers/mapped"
        rootfs = container / "rootfs"
        assert owners(real / "srv/owned") == (300_033, 300_033)
        assert owners(rootfs / "srv/owned") == (33, 33)
        assert owners(rootfs) == (0, 0)
        (rootfs / "new").write_text("new")
        os.chown(rootfs / "srv/empty", 7, 8)
        assert owners(rootfs / "new") == (0, 0)
        assert owners(real / "new") == (300_000, 300_000)
        assert owners(real / "srv/empty") == (300_007, 300_008)
        assert errno_of(os.chown, rootfs / "new", 100_000, 0) in (errno.EOVERFLOW, errno.EINVAL)
        (snapshot,) = (container / "snapshots").iterdir()
        assert owners(snapshot / "rootfs/srv/empty") == (0, 0)
        layer = tree.path / "layers" / made.layer / "rootfs"
        assert owners(layer / "srv/owned") == (33, 33)
        (rootfs / "data").write_bytes(b"x" * 2_000_000)
        assert (real / "data").read_bytes() == (rootfs / "data").read_bytes()
        plain = tree.path / "containers" / CONTAINER / "rootfs"
        assert owners(plain / "srv/owned") == (33, 33)
    assert owners(real / "srv/owned") == (300_033, 300_033)
