"""Stores whose images and their layers are in a directory of their own: ``imagestore``."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from store import fill
from store.config import StoreOptions
from store.errors import NotAnImage, StoreReadOnly
from store.store import Store
from tests.support.tools import StoreDirs, ToolBox

BASE_TAR = Path(__file__).parent / "data" / "tables" / "base.tar"


@pytest.fixture(params=["btrfs", "vfs", "overlay"])
def split(request, btrfs_dir):
    """Options of a store whose one image is in a split image store."""
    options = StoreOptions(
        graphroot=str(btrfs_dir / "i"),
        runroot=str(btrfs_dir / "unused"),
        driver=request.param,
        lock_timeout=10,
    )
    with Store(options) as images:
        layer, _ = images.put_layer(io.BytesIO(BASE_TAR.read_bytes()))
        images.create_image(names=["img"], layer=layer.id)
        images.shutdown(force=True)
    return replace(
        options, graphroot=str(btrfs_dir / "g"), runroot=str(btrfs_dir / "r"), image_store=options.graphroot
    )


@pytest.fixture
def opened(split):
    store = Store(split)
    try:
        yield store
    finally:
        store.wipe()
        store.shutdown(force=True)


def test_container_is_in_the_graphroot_and_its_image_in_the_image_store(opened, split):
    image_store = Path(split.image_store)
    assert opened.image_store == image_store
    before = {path: path.read_bytes() for path in image_store.glob("*/*.json")}
    image = opened.image("img")
    container = opened.create_container(names=["web"], image="img")
    assert opened.layer(container.layer).parent == image.layer
    tree = opened.mount("web")
    assert {path.name for path in tree.iterdir()} >= {"etc"}
    (tree / "new").write_text("x")
    opened.unmount("web")
    assert [change.path for change in opened.changes("web")] == [b"/new"]
    assert opened.check() == []
    records = json.loads(opened.table_directory("layers").joinpath("layers.json").read_bytes())
    assert [record["id"] for record in records] == [container.layer]
    assert {path: path.read_bytes() for path in image_store.glob("*/*.json")} == before


def test_empty_container_is_filled_from_the_image_store(opened):
    opened.create_container(names=["web"])
    filled = fill.fill(opened, "web", "img")
    assert filled.image == opened.image("img").id
    with opened.driver.mounted(filled.layer) as tree:
        assert (tree / "etc").is_dir()
    assert opened.check() == []


def test_images_of_the_image_store_are_read_and_new_ones_are_in_the_graphroot(opened, split):
    with pytest.raises(StoreReadOnly):
        opened.set_names("img", ["other"])
    with pytest.raises(NotAnImage):
        opened.delete_image("img")
    layer = opened.create_layer(parent=opened.image("img").layer)
    opened.create_image(names=["own"], layer=layer.id)
    assert {image.names: image.read_only for image in opened.images()} == {("img",): True, ("own",): False}
    assert opened.tables.images.peek().by_name("own") is not None


def test_additional_stores_come_after_the_image_store(opened, split, btrfs_dir):
    more = replace(split, graphroot=str(btrfs_dir / "more"), image_store="")
    with Store(more) as store:
        store.create_image(names=["img"], layer=store.create_layer().id)
        store.create_image(names=["img2"], layer=store.create_layer().id)
        store.shutdown(force=True)
    given = f"{split.driver}.imagestore={more.graphroot}"
    with Store(replace(split, driver_options=(given,))) as store:
        assert store.image("img").id == opened.image("img").id
        store.create_container(names=["over"], image="img2")
        store.create_container(names=["web"], image="img")
        assert store.check() == []


def test_image_store_that_is_the_graphroot_or_does_not_exist_yet(split, btrfs_dir):
    with Store(replace(split, graphroot=split.image_store)) as store:
        assert store.image_store is None
        assert not store.image("img").read_only
    with Store(replace(split, image_store=str(btrfs_dir / "none"))) as store:
        assert store.images() == []
        store.create_container(names=["empty"])
        store.shutdown(force=True)


@pytest.mark.parametrize(
    "split", ["vfs", "overlay"], indirect=True
)  # on btrfs the original has no such option
def test_original_sees_the_container_over_the_image_store(opened, split, require, btrfs_dir):
    require("containers-storage")
    opened.create_container(names=["web"], image="img")
    (opened.mount("web") / "new").write_text("x")
    opened.unmount("web")
    dirs = StoreDirs(Path(split.graphroot), Path(split.runroot))
    option = f"{split.driver}.imagestore={split.image_store}"
    plain = ToolBox(dirs, split.driver, btrfs_dir / "conf").containers_storage()
    tool = replace(plain, prefix=(*plain.prefix, "--storage-opt", option))
    assert opened.image("img").id in tool("images").stdout
    merged = Path(tool("mount", "web").stdout.strip())
    try:
        assert (merged / "new").read_text() == "x"
        assert (merged / "etc").is_dir()
    finally:
        tool("unmount", "web")
    tool("delete-container", "web")
    assert opened.containers() == []
