"""Identical files of different layers come to share their blocks, and nothing else changes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from drivers.errors import NotSupported
from store.config import StoreOptions
from store.errors import BadValue
from store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 300_000
CONTENT = os.urandom(SIZE)


def opened(home: Path, driver: str) -> Store:
    """A store with the same file in two layers, one of that size that differs, and a copy that shares."""
    store = Store(StoreOptions(graphroot=str(home / "g"), runroot=str(home / "r"), driver=driver))
    for name, content in (("one", CONTENT), ("two", CONTENT), ("three", CONTENT[:-1] + b"?")):
        layer = store.create_layer(names=[name])
        with store.driver.mounted(layer.id) as root:
            (root / "file").write_bytes(content)
            (root / "link").symlink_to("/etc/passwd")
            (root / "small").write_bytes(b"small")
    store.create_layer(names=["copy"], parent="one")
    return store


def read(store: Store, name: str) -> bytes:
    with store.driver.mounted(store.layer(name).id) as root:
        return (root / "file").read_bytes()


@pytest.mark.parametrize("driver", ["btrfs", "vfs"])
@pytest.mark.parametrize("policy", ["size", "crc", "sha256"])
def test_identical_files_share_blocks_once(btrfs_dir: Path, driver: str, policy: str) -> None:
    store = opened(btrfs_dir, driver)
    try:
        counted = store.dedup(hash=policy, dry_run=True)
        assert (counted.files, counted.bytes) == (1, SIZE)
        done = store.dedup(hash=policy)
        assert (done.files, done.bytes) == (1, SIZE)
        assert store.dedup(hash=policy).bytes == 0, "it shares already"
        assert [read(store, name) == CONTENT for name in ("one", "two", "copy", "three")] == [True] * 3 + [
            False
        ]
    finally:
        store.shutdown(force=True)


def test_shared_files_are_still_independent(btrfs_dir: Path) -> None:
    store = opened(btrfs_dir, "btrfs")
    assert store.dedup().files == 1
    with store.driver.mounted(store.layer("two").id) as root, open(root / "file", "r+b") as file:
        file.write(b"changed")
    assert read(store, "one") == CONTENT
    assert read(store, "two").startswith(b"changed")
    store.shutdown(force=True)


def test_filesystem_without_shared_blocks_says_so(ext4_dir: Path) -> None:
    store = opened(ext4_dir, "vfs")
    with pytest.raises(NotSupported, match="share blocks"):
        store.dedup()
    with pytest.raises(BadValue, match="hash must be one of"):
        store.dedup(hash="md5")
