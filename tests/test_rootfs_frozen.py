"""Files nobody changes any more: the kernel is given their data once, and asks for nothing afterwards."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.rootfs_mount import RootfsMount

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (0, 1, 4095, 4096, 4097, 70_000, 128 << 10, (128 << 10) + 1, 256 << 10, (256 << 10) + 1)


def drop_caches() -> None:
    """Every clean page and unused inode of the kernel."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def content(number: int, size: int) -> bytes:
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


def sample(directory: Path) -> dict[str, bytes]:
    """Files of many sizes, and what is in them."""
    directory.mkdir()
    files = {f"{n}-{size}": content(n, size) for n, size in enumerate(SIZES * 5, 1)}
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return files


def mounted(tmp_path: Path, real: Path, *, frozen: bool) -> RootfsMount:
    views = {"v": (real, frozen)}
    return RootfsMount(
        tmp_path / "mnt", views, tmp_path / "scratch", frozen=("v",) if frozen else (), gated=False
    )


def test_readers_at_once_see_what_is_there(
    btrfs_dir: Path, tmp_path: Path, require: Callable[[str], None]
) -> None:
    require("fuse")
    files = sample(btrfs_dir / "t")
    with mounted(tmp_path, btrfs_dir / "t", frozen=True) as mount:
        for _ in range(3):
            drop_caches()
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda name: (mount.path / "v" / name).read_bytes(), list(files) * 4))
            assert found == list(files.values()) * 4


def test_what_the_kernel_has_is_asked_for_no_more(
    btrfs_dir: Path, tmp_path: Path, require: Callable[[str], None]
) -> None:
    require("fuse")
    files = sample(btrfs_dir / "t")
    with mounted(tmp_path, btrfs_dir / "t", frozen=True) as mount:
        small = [name for name, data in files.items() if len(data) <= 128 << 10]
        for _ in range(2):
            for name in small:
                assert (mount.path / "v" / name).read_bytes() == files[name]
                os.stat(mount.path / "v" / name)
        asked = mount.operations()
        assert asked["open"] >= len(small)
        assert not asked["read"]
        assert asked["getattr"] < len(small)


def test_a_file_opened_without_its_data_reads_it_late(
    btrfs_dir: Path, tmp_path: Path, require: Callable[[str], None]
) -> None:
    require("fuse")
    files = sample(btrfs_dir / "t")
    name = "6-70000"
    with mounted(tmp_path, btrfs_dir / "t", frozen=True) as mount:
        path = mount.path / "v" / name
        with open(path, "rb", buffering=0), open(path, "rb", buffering=0) as again:
            os.posix_fadvise(again.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.lseek(again.fileno(), 0, os.SEEK_DATA) == 0
            assert os.fstat(again.fileno()).st_size == 70_000
            os.lseek(again.fileno(), 0, os.SEEK_SET)
            drop_caches()
            assert again.read(80_000) == files[name]


def test_files_that_may_change_are_not_kept(
    btrfs_dir: Path, tmp_path: Path, require: Callable[[str], None]
) -> None:
    require("fuse")
    files = sample(btrfs_dir / "t")
    with mounted(tmp_path, btrfs_dir / "t", frozen=False) as mount:
        for name in files:
            assert (mount.path / "v" / name).read_bytes() == files[name]
        for name, data in files.items():
            changed = bytes(len(data))
            with open(btrfs_dir / "t" / name, "r+b") as file:
                file.write(changed)
            assert (mount.path / "v" / name).read_bytes() == changed


def test_a_request_held_up_does_not_hold_up_others(
    btrfs_dir: Path, tmp_path: Path, require: Callable[[str], None]
) -> None:
    """More clients than threads, all answered while each thread sleeps in turn."""
    require("fuse")
    files = sample(btrfs_dir / "t")

    def write(number: int) -> int:
        with open(mount.path / "v" / f"new{number}", "wb") as file:
            for _ in range(3):
                file.write(b"x" * 5000)
                file.flush()
                os.fsync(file.fileno())  # sleeps in the plane until the disk has it
        return len(list((mount.path / "v").iterdir()))

    with mounted(tmp_path, btrfs_dir / "t", frozen=False) as mount:
        with ThreadPoolExecutor(12) as pool:
            assert all(count > len(files) for count in pool.map(write, range(12)))
        assert len(list((btrfs_dir / "t").iterdir())) == len(files) + 12
