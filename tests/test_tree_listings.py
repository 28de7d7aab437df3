"""Listings of synthetic directories: what the kernel may keep of them, and for how long."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.mounted import Mounted, mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.tools import StoreDirs


@pytest.fixture
def tree(store_dirs: StoreDirs, btrfs_dir: Path, require: Callable[[str], None]) -> Iterator[Mounted]:
    require("fuse")
    with mounted(store_dirs, btrfs_dir / "mnt") as serving:
        yield serving


def test_kept_listing_changes_with_every_command(tree):
    containers = tree.path / "containers"
    for number in range(3):
        name = f"c{number}"
        assert name not in os.listdir(containers)
        (containers / name).mkdir()
        assert name in os.listdir(containers)
    (containers / "c1").rmdir()
    (containers / "c2").rename(containers / "d")
    assert sorted(os.listdir(containers)) == ["c0", "d"]


def test_listing_gives_every_entry_once_however_little_is_read_at_a_time(tree):
    for number in range(40):
        (tree.path / f"layers/n{number}").mkdir()
    listed = os.listdir(tree.path / "layers")
    assert sorted(listed) == sorted(f"n{number}" for number in range(40))
    with os.scandir(tree.path / "layers") as entries:
        assert [entry.name for entry in entries] == listed


def test_size_in_a_listing_is_not_kept_for_what_people_write_to(tree):
    """``changes`` has its true size right after a listing and a write."""
    (tree.path / "layers/base").mkdir()
    container = tree.path / "containers/c"
    container.mkdir()
    (container / "from").write_text("layers/base")
    for number in range(5):
        os.listdir(container)
        (container / f"rootfs/new{number}").write_text("x")
        os.sync()
        assert (container / "changes").stat().st_size == len((container / "changes").read_bytes())


def test_real_trees_of_a_listing_are_opened_when_they_are_looked_up(tree):
    container = tree.path / "containers/c"
    container.mkdir()
    with os.scandir(container) as entries:
        (rootfs,) = (entry for entry in entries if entry.name == "rootfs")
        assert rootfs.is_dir(follow_symlinks=False)
    (container / "rootfs/file").write_text("x")
    assert os.listdir(container / "rootfs") == ["file"]


def test_attributes_nobody_has_are_answered_and_the_error_text_still_shows(tree):
    container = tree.path / "containers/c"
    container.mkdir()
    for name, number in (("security.selinux", errno.EOPNOTSUPP), ("user.other", errno.ENODATA)):
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            os.getxattr(container / "id", name)
        assert caught.value.errno == number
    with pytest.raises(OSError, match="No such file"):
        (container / "from").write_text("no-such-source")
    assert b"no-such-source" in os.getxattr(container / "from", "user.fsd.error")
