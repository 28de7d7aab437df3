"""Layers of an additional layer store, served over FUSE, in overlay stores of ours and podman's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers import syscalls
from drivers.base import MountOptions
from drivers.errors import NotSupported
from drivers.overlay_mount import is_mounted
from store.config import StoreOptions
from store.errors import DuplicateName, LayerUnknown
from store.store import Store
from tests.support import layer_store
from tests.support.overlays import opener
from tests.support.tools import StoreDirs, ToolBox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from drivers.overlay import OverlayDriver

A, B = "a" * 64, "b" * 64
PATIENCE = 20


class Served:
    """A running layer store: where it is mounted, and what it was told."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "layers"
        self._log = directory / "log"
        self.path.mkdir()
        self._log.touch()
        argv = [sys.executable, "-m", "tests.support.layer_store", str(self.path), str(self._log)]
        self._process = subprocess.Popen(argv, cwd=Path(__file__).parent.parent)
        deadline = time.monotonic() + PATIENCE
        while not is_mounted(self.path):
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(0.05)

    def told(self) -> list[str]:
        return self._log.read_text().split()

    def stop(self) -> None:
        syscalls.umount(self.path, syscalls.MNT_DETACH)
        self._process.wait(PATIENCE)


@pytest.fixture
def served(ext4_dir: Path, require: Callable[[str], None]) -> Iterator[Served]:
    require("fuse")
    require("overlay")
    store = Served(ext4_dir)
    try:
        yield store
    finally:
        store.stop()


@pytest.fixture
def opened(served: Served) -> Iterator[Callable[..., OverlayDriver]]:
    with opener() as open_driver:
        yield open_driver


@pytest.mark.parametrize("suffix", ["", ":ref"])
def test_layer_is_found_adopted_and_released(
    ext4_dir: Path, served: Served, opened: Callable[..., OverlayDriver], suffix: str
) -> None:
    driver = opened(ext4_dir, additionallayerstore=f"{served.path}{suffix}")
    assert driver.find_additional_layer("sha256:" + "0" * 64, layer_store.REFERENCE) is None
    layer = driver.find_additional_layer(layer_store.DIGEST, layer_store.REFERENCE)
    assert layer is not None
    assert layer.info() == layer_store.INFO
    with layer.blob() as blob:
        assert blob.read() == layer_store.BLOB
    driver.adopt(layer, A)
    assert served.told() == ["use"]
    assert (driver.home / A / "additionallayer").read_text() == str(layer.path)
    assert os.readlink(driver.home / A / "diff") == str(layer.path / "diff")
    driver.create(B, A)
    with driver.mounted(B) as tree:
        assert (tree / "file").read_bytes() == layer_store.CONTENT
        (tree / "file").write_bytes(b"changed")
    assert [change.path for change in driver.changes(B, A)] == [b"/file"]
    with driver.mounted(A) as tree, pytest.raises(OSError, match="Read-only"):
        (tree / "x").touch()
    driver.remove(B)
    driver.remove(A)
    assert served.told() == ["use", "release"]
    assert list(driver.layer_ids()) == []


def test_adopting_a_vanished_layer_leaves_nothing(
    ext4_dir: Path, served: Served, opened: Callable[..., OverlayDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = opened(ext4_dir, additionallayerstore=str(served.path))
    layer = driver.find_additional_layer(layer_store.DIGEST, "")
    assert layer is not None

    def fail(_: object) -> None:
        raise OSError(5, "the store is gone")

    monkeypatch.setattr(type(layer), "use", fail)
    with pytest.raises(OSError, match="gone"):
        driver.adopt(layer, A)
    assert not driver.exists(A)
    assert os.listdir(driver.home / "l") == []


def test_original_uses_a_layer_we_adopted(
    ext4_dir: Path, served: Served, opened: Callable[..., OverlayDriver], require: Callable[[str], None]
) -> None:
    require("containers-storage")
    dirs = StoreDirs(ext4_dir / "g", ext4_dir / "r")
    tool = ToolBox(dirs, "overlay", ext4_dir / "conf").containers_storage()
    tool("create-layer", "-i", A)
    tool("create-layer", "-i", B, A)
    driver = opened(dirs.graphroot, additionallayerstore=str(served.path))
    driver.remove(B)
    driver.remove(A)
    layer = driver.find_additional_layer(layer_store.DIGEST, "")
    assert layer is not None
    driver.adopt(layer, A)
    driver.create(B, A)
    merged = Path(tool("mount", B).stdout.strip())
    try:
        assert (merged / "file").read_bytes() == layer_store.CONTENT
    finally:
        tool("unmount", B)
    with driver.mounted(B, MountOptions(options=("ro",))) as tree:
        assert (tree / "file").read_bytes() == layer_store.CONTENT
    tool("delete-layer", B)
    tool("delete-layer", A)
    assert "release" in served.told()


def test_store_puts_a_looked_up_layer_and_releases_it(ext4_dir: Path, served: Served) -> None:
    options = StoreOptions(
        graphroot=str(ext4_dir / "g"),
        runroot=str(ext4_dir / "r"),
        driver="overlay",
        driver_options=(f"overlay.additionallayerstore={served.path}:ref",),
    )
    store = Store(options)
    try:
        with pytest.raises(LayerUnknown, match="no additional layer store has"):
            store.lookup_additional_layer("sha256:" + "0" * 64, layer_store.REFERENCE)
        found = store.lookup_additional_layer(layer_store.DIGEST, layer_store.REFERENCE)
        assert served.told() == ["use"]
        with found.blob() as blob:
            assert blob.read() == layer_store.BLOB
        layer = found.put_as(id=A, names=["lazy"])
        found.release()
        assert served.told() == ["use", "use", "release"]
        assert (layer.id, layer.compressed_digest, layer.diff_size) == (A, layer_store.DIGEST, 1024)
        assert store.layers_by_compressed_digest(layer_store.DIGEST) == [store.layer("lazy")]
        by_id = store.lookup_additional_layer_by_id(A)
        assert (by_id.digest, by_id.served) == (layer_store.DIGEST, found.served)
        by_id.release()
        above = store.create_layer(parent="lazy")
        with pytest.raises(LayerUnknown, match="is in no additional layer store"):
            store.lookup_additional_layer_by_id(above.id)
        with store.driver.mounted(above.id) as tree:
            assert (tree / "file").read_bytes() == layer_store.CONTENT
        again = store.lookup_additional_layer(layer_store.DIGEST, layer_store.REFERENCE)
        with pytest.raises(DuplicateName):
            again.put_as(names=["lazy"])
        again.release()
        store.delete_layer(above.id)
        store.delete_layer("lazy")
        assert served.told()[-2:] == ["release", "release"]
        assert served.told().count("use") == served.told().count("release")
    finally:
        store.shutdown(force=True)


@pytest.mark.parametrize("driver", ["btrfs", "vfs"])
def test_drivers_without_layer_stores_say_so(btrfs_dir: Path, driver: str) -> None:
    store = Store(StoreOptions(graphroot=str(btrfs_dir / "g"), runroot=str(btrfs_dir / "r"), driver=driver))
    with pytest.raises(NotSupported, match="uses no additional layer stores"):
        store.lookup_additional_layer(layer_store.DIGEST)
    layer = store.create_layer()
    with pytest.raises(NotSupported, match="uses no additional layer stores"):
        store.lookup_additional_layer_by_id(layer.id)
    store.shutdown(force=True)
