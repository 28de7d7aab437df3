"""Listings of trees nobody changes, which are read from btrfs in bulk: they show what lstat(2) shows."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.rootfs_mount import RootfsMount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIELDS = (
    "st_mode",
    "st_nlink",
    "st_uid",
    "st_gid",
    "st_size",
    "st_blocks",
    "st_blksize",
    "st_rdev",
    "st_atime_ns",
    "st_mtime_ns",
    "st_ctime_ns",
)
WARM = 500
SECONDS = 10


class Maker:
    """Fills a directory with entries of every kind, at random but the same for the same seed."""

    def __init__(self, top: Path, seed: int) -> None:
        self.pick = random.Random(seed)
        self.top = top
        self.directories, self.files = [top], list[Path]()

    def name(self, directory: Path) -> Path:
        length = self.pick.choice((1, 8, 20, 255))
        raw = bytes(self.pick.choice(b"abcXYZ .-_%\xff\xc3\n\\") for _ in range(length))
        path = directory / os.fsdecode(b"~" + raw[:-1] if raw[:1] == b"." or length > 1 else b"x")
        return path if not os.path.lexists(path) else self.name(directory)

    def make(self, entries: int) -> None:
        """Make so many entries, then give some of them odd attributes."""
        kinds = (self.directory, self.file, self.file, self.link, self.symlink, self.special, self.sparse)
        for _ in range(entries):
            self.pick.choice(kinds)(self.name(self.pick.choice(self.directories)))
        for path in self.files + self.directories[1:]:
            self.adorn(path)

    def directory(self, path: Path) -> None:
        path.mkdir()
        self.directories.append(path)

    def file(self, path: Path) -> None:
        path.write_bytes(self.pick.randbytes(self.pick.choice((0, 1, 100, 2000, 2100, 5000, 70_000))))
        self.files.append(path)

    def link(self, path: Path) -> None:
        if self.files:
            os.link(self.pick.choice(self.files), path)

    def symlink(self, path: Path) -> None:
        path.symlink_to("t" * self.pick.choice((1, 60, 3000)))

    def special(self, path: Path) -> None:
        kind = self.pick.choice((stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK))
        os.mknod(path, kind | 0o640, os.makedev(self.pick.randrange(1 << 12), self.pick.randrange(1 << 20)))

    def sparse(self, path: Path) -> None:
        with path.open("wb") as file:
            if self.pick.random() < 0.5:
                subprocess.run(["btrfs", "property", "set", path, "compression", "zstd"], check=True)
            file.truncate(self.pick.randrange(1 << 40))
            file.seek(self.pick.randrange(1 << 20))
            file.write(bytes(self.pick.randrange(1 << 17)))
            if self.pick.random() < 0.5:
                os.posix_fallocate(file.fileno(), 1 << 20, 1 << 16)
        self.files.append(path)

    def adorn(self, path: Path) -> None:
        if self.pick.random() < 0.3:
            os.setxattr(path, "user.x", self.pick.randbytes(self.pick.choice((0, 10, 3000))))
        if self.pick.random() < 0.2:
            subprocess.run(["setfacl", "-m", "u:1234:rwx", path], check=True)
        if self.pick.random() < 0.3:
            os.chown(path, self.pick.randrange(1 << 31), self.pick.randrange(1 << 31))
        if self.pick.random() < 0.5:
            path.chmod(self.pick.randrange(0o10000))
        if self.pick.random() < 0.3:
            when = self.pick.randrange(-(1 << 60), 1 << 61)
            os.utime(path, ns=(when, when + 1))


def shown(path: Path) -> dict[str, object]:
    """What is to be the same of an entry: attributes, target, extended attributes."""
    found = os.lstat(path)
    return {
        **{field: getattr(found, field) for field in FIELDS},
        "target": os.readlink(path) if stat.S_ISLNK(found.st_mode) else "",
        "xattrs": {name: os.getxattr(path, name, follow_symlinks=False) for name in xattrs(path)},
    }


def xattrs(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def walk(top: Path) -> Iterator[str]:
    """Every path below, directories in the order of their listings."""
    for entry in os.scandir(top):
        yield entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from (f"{entry.name}/{name}" for name in walk(top / entry.name))


def serve(tmp_path: Path, real: Path, **more: object) -> RootfsMount:
    return RootfsMount(
        tmp_path / "mnt", {"v": (real, True)}, tmp_path / "scratch", frozen=("v",), gated=False, **more
    )


def read_in_bulk(mount: RootfsMount) -> bool:
    """List one directory after another until the plane reads them in bulk."""
    end = time.monotonic() + SECONDS
    for number in range(WARM):
        os.listdir(mount.path / f"v/warm/{number}")
        if mount.stats()["searches"] or time.monotonic() > end:
            break
    return bool(mount.stats()["searches"])


@pytest.fixture
def real(btrfs_dir: Path, require: Callable[[str], None]) -> Path:
    """A subvolume with directories to list until it is read in bulk."""
    require("fuse")
    subprocess.run(["btrfs", "-q", "subvolume", "create", btrfs_dir / "t"], check=True)
    for number in range(WARM):
        (btrfs_dir / f"t/warm/{number}").mkdir(parents=True)
    return btrfs_dir / "t"


@pytest.mark.parametrize("seed", range(2))
def test_an_odd_tree_shows_as_it_is(real: Path, tmp_path: Path, seed: int) -> None:
    Maker(real, seed).make(300)
    with serve(tmp_path, real) as mount:
        assert read_in_bulk(mount)
        view = mount.path / "v"
        names = list(walk(view))
        assert sorted(names) == sorted(walk(real))
        wrong = {name for name in names if shown(view / name) != shown(real / name)}
        assert not wrong
        numbers = {name: ((view / name).lstat().st_ino, (real / name).lstat().st_ino) for name in names}
        assert len({ours for ours, _ in numbers.values()}) == len({theirs for _, theirs in numbers.values()})
        assert len(set(numbers.values())) == len({ours for ours, _ in numbers.values()})


def test_nested_subvolumes_and_what_a_snapshot_left_of_them(real: Path, tmp_path: Path) -> None:
    for name in ("a", "m", "z"):
        subprocess.run(["btrfs", "-q", "subvolume", "create", real / name], check=True)
        (real / name / "inside").write_text(name)
        (real / f"{name}file").write_text(name)
    subprocess.run(["btrfs", "-q", "subvolume", "snapshot", real, real / "copy"], check=True)
    with serve(tmp_path, real) as mount:
        assert read_in_bulk(mount)
        view = mount.path / "v"
        assert sorted(walk(view)) == sorted(walk(real))
        assert not {name for name in walk(real) if shown(view / name) != shown(real / name)}
        assert (view / "m/inside").read_text() == "m"


def test_a_directory_of_many_entries_is_listed_whole_and_from_anywhere(real: Path, tmp_path: Path) -> None:
    (real / "many").mkdir()
    for number in range(6000):
        (real / f"many/{number:0200}").touch()
    for number in range(0, 6000, 3):
        (real / f"many/{number:0200}").unlink()
    with serve(tmp_path, real) as mount:
        assert read_in_bulk(mount)
        names = os.listdir(mount.path / "v/many")
        assert names == os.listdir(real / "many")
        assert len(names) == 4000
        (real / "many").rename(real / "gone")  # frozen: listings that are kept do not notice
        assert os.listdir(mount.path / "v/many") == names


def test_what_was_just_written_is_on_the_disk_before_it_is_read(real: Path, tmp_path: Path) -> None:
    for number in range(WARM):
        (real / f"warm/{number}/f").write_bytes(bytes(100_000))
    with serve(tmp_path, real) as mount:
        assert read_in_bulk(mount)
        for number in range(WARM):
            (entry,) = os.scandir(mount.path / f"v/warm/{number}")
            found, native = entry.stat(), (real / f"warm/{number}/f").stat()
            assert (found.st_size, found.st_blocks) == (native.st_size, native.st_blocks)


def test_without_the_right_to_search_trees_listings_are_the_same(real: Path, tmp_path: Path) -> None:
    Maker(real, 7).make(100)
    with serve(tmp_path, real, administrator=False) as mount:
        assert not read_in_bulk(mount)
        view = mount.path / "v"
        assert sorted(walk(view)) == sorted(walk(real))
        assert not {name for name in walk(real) if shown(view / name) != shown(real / name)}
