"""A store whose directories are not what they were: moved elsewhere, or emptied by a reboot."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from store.check import CheckOptions
from store.config import StoreOptions
from store.store import Store
from tests.conftest import StoreDirs
from tests.support.tools import ToolBox

BASE_TAR = Path(__file__).parent / "data" / "tables" / "base.tar"


@pytest.fixture
def options(store_dirs):
    """A store with an image and a container of it; closed, with nothing mounted."""
    options = StoreOptions(
        graphroot=str(store_dirs.graphroot), runroot=str(store_dirs.runroot), driver="btrfs", lock_timeout=10
    )
    with Store(options) as store:
        layer, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()), names=["base"])
        store.create_image(names=["img"], layer=layer.id)
        store.create_container(names=["web"], image="img")
        store.shutdown(force=True)
    return options


def test_moved_graphroot_is_the_same_store(options, store_dirs, btrfs_dir, require):
    require("containers-storage")
    moved = StoreDirs(btrfs_dir / "moved", store_dirs.runroot)
    os.rename(options.graphroot, moved.graphroot)
    with Store(replace(options, graphroot=str(moved.graphroot))) as store:
        layer = store.container("web").layer
        assert store.layer_path(layer) == moved.graphroot / "btrfs" / "subvolumes" / layer
        store.create_container(names=["second"], image="img")
        assert store.check(CheckOptions(digests=True)) == []
        theirs = ToolBox(moved, "btrfs", btrfs_dir / "conf").containers_storage()
        assert str(moved.graphroot) in theirs("mount", "second").stdout
        theirs("unmount", "second")
        store.shutdown(force=True)
    assert not Path(options.graphroot).exists()


def test_runroot_lost_with_a_layer_mounted_leaves_nothing_mounted(options, containers_storage):
    with Store(options) as store:
        store.mount("web")
        store.mount("web")
        assert store.mounted("web") == 2
    shutil.rmtree(options.runroot)  # the reboot
    with Store(options) as store:
        assert store.mounted("web") == 0
        assert store.mount("web").is_dir()
        assert store.unmount("web") is False
        store.delete_container("web")
        assert store.check() == []
        store.shutdown()
    assert containers_storage("containers").returncode == 0
