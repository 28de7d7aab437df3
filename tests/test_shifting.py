"""Rewriting owners: what chown(2) loses is put back, and nothing moves when one owner cannot."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from drivers.conformance_trees import census, difference, plain_files
from drivers.errors import NotSupported
from drivers.idmap import NOBODY, IDMap, IDMappings
from drivers.shifting import update_id_map

SHIFTED = IDMappings((IDMap(0, 100000, 65536),), (IDMap(0, 100000, 65536),))
NARROW = IDMappings((IDMap(0, 100000, 3),), (IDMap(0, 100000, 3),))
CAPS_V3 = struct.Struct("<6I")


def test_update_id_map_from_mappings_that_lack_an_owner_changes_nothing(btrfs_dir: Path) -> None:
    plain_files(btrfs_dir)
    before = census(btrfs_dir)
    with pytest.raises(NotSupported, match="cannot be mapped"):
        update_id_map(btrfs_dir, NARROW, IDMappings())
    assert not difference(census(btrfs_dir), before)


def test_update_id_map_to_mappings_that_lack_an_owner_makes_it_nobodys(btrfs_dir: Path) -> None:
    (btrfs_dir / "file").touch()
    os.chown(btrfs_dir / "file", 0, 70000)
    update_id_map(btrfs_dir, IDMappings(), NARROW)
    status = (btrfs_dir / "file").stat()
    assert (status.st_uid, status.st_gid) == (NARROW.root[0], NOBODY)


def test_update_id_map_takes_roots_files_under_other_mappings_for_the_containers(btrfs_dir: Path) -> None:
    (btrfs_dir / "made").mkdir()
    os.chown(btrfs_dir, 100000, 100000)
    update_id_map(btrfs_dir, IDMappings((IDMap(0, 100000, 9),), (IDMap(0, 100000, 9),)), SHIFTED)
    assert btrfs_dir.stat().st_uid == (btrfs_dir / "made").stat().st_uid == SHIFTED.root[0]


def test_update_id_map_shifts_a_hard_linked_file_once(btrfs_dir: Path) -> None:
    for name in ("a", "b"):
        (btrfs_dir / name).mkdir()
    (btrfs_dir / "a" / "file").touch()
    os.link(btrfs_dir / "a" / "file", btrfs_dir / "b" / "file")
    update_id_map(btrfs_dir, IDMappings(), SHIFTED)
    assert (btrfs_dir / "b" / "file").stat().st_uid == 100000


def test_update_id_map_of_one_kind_of_id_leaves_the_other(btrfs_dir: Path) -> None:
    (btrfs_dir / "file").touch()
    os.chown(btrfs_dir / "file", 1, 2)
    update_id_map(btrfs_dir, IDMappings(), IDMappings(uids=(IDMap(0, 5000, 10),)))
    status = (btrfs_dir / "file").stat()
    assert (status.st_uid, status.st_gid) == (5001, 2)


def test_update_id_map_translates_the_root_of_namespaced_capabilities(btrfs_dir: Path) -> None:
    tool = btrfs_dir / "tool"
    tool.touch()
    value = CAPS_V3.pack(0x03000001, 1 << 10, 0, 0, 0, 1000)
    os.setxattr(tool, "security.capability", value)
    update_id_map(btrfs_dir, IDMappings(), SHIFTED)
    *_, root = CAPS_V3.unpack(os.getxattr(tool, "security.capability"))
    assert root == 101000


def test_update_id_map_does_not_follow_symbolic_links(btrfs_dir: Path) -> None:
    (btrfs_dir / "layer").mkdir()
    (btrfs_dir / "outside").touch()
    (btrfs_dir / "layer" / "link").symlink_to("../outside")
    (btrfs_dir / "layer" / "up").symlink_to("..")
    update_id_map(btrfs_dir / "layer", IDMappings(), SHIFTED)
    assert (btrfs_dir / "outside").stat().st_uid == 0
    assert (btrfs_dir / "layer" / "link").lstat().st_uid == 100000
