"""A transient store keeps its containers' records where a reboot loses them, and its images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from store.config import StoreOptions
from store.store import Store
from tests.support import loops

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def runroot(run_dir: Path) -> Iterator[Path]:
    """A runroot on tmpfs, as it usually is."""
    with loops.memory_mount(run_dir) as point:
        yield point


@pytest.mark.parametrize("driver", ["btrfs", "vfs"])
def test_reboot_empties_a_transient_store_of_containers_only(
    btrfs_dir: Path, runroot: Path, driver: str
) -> None:
    options = StoreOptions(
        graphroot=str(btrfs_dir / "g"), runroot=str(runroot / "r"), driver=driver, transient_store=True
    )
    store = Store(options)
    assert store.transient_store
    base = store.create_layer(names=["base"])
    store.create_image(names=["img"], layer=base.id)
    container = store.create_container(names=["web"], image="img")
    store.set_metadata("web", "about")
    store.create_container(names=["other"], image="img")
    store.delete_container("other")
    home, run = btrfs_dir / "g", runroot / "r"
    for kind, ids in (("layers", [container.layer]), ("containers", [container.id])):
        stable = home / f"{driver}-{kind}/{kind}.json"
        text = stable.read_text() if stable.exists() else ""
        assert [record["id"] for record in json.loads(text or "[]")] == (
            [base.id] if kind == "layers" else []
        )
        volatile = run / f"{driver}-{kind}/volatile-{kind}.json"
        assert [record["id"] for record in json.loads(volatile.read_text())] == ids
    assert (run / f"{driver}-containers/containers.lock").exists()
    assert Store(options).container("web").metadata == "about"
    assert store.check() == []
    store.shutdown(force=True)
    shutil.rmtree(run)  # the reboot
    with Store(options) as after:
        assert after.containers() == []
        assert [layer.id for layer in after.layers()] == [base.id]
        assert after.image("img").layer == base.id
        assert container.layer in after.garbage_collect()
        assert after.check() == []
        after.create_container(names=["web"], image="img")
        after.wipe()
        after.shutdown(force=True)


def test_volatile_files_of_others_are_read_in_any_store(btrfs_dir: Path) -> None:
    options = StoreOptions(graphroot=str(btrfs_dir / "g"), runroot=str(btrfs_dir / "r"), driver="vfs")
    store = Store(options)
    container = store.create_container(names=["web"])
    for kind in ("layers", "containers"):
        path = store.table_directory(kind) / f"{kind}.json"
        path.rename(path.with_name(f"volatile-{kind}.json"))
    assert Store(replace(options)).container("web").id == container.id
    assert not store.transient_store
    store.delete_container("web")
    assert store.multi_list() == ([], [], [])
    store.shutdown(force=True)
