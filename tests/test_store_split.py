"""Stores whose images and their layers are in a directory of their own: ``imagestore``."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.errors import NotSupported
from drivers.idmap import IDMap
from store import fill
from store import table as store_table
from store.check import Kind
from store.config import StoreOptions
from store.errors import DuplicateName, ImageUsedByContainer, NotAnImage, StoreReadOnly
from store.history import History
from store.store import ContainerOptions, Store
from store.trash import Trash
from tests.support.mounted import mounted
from tests.support.tools import StoreDirs, ToolBox

BASE_TAR = Path(__file__).parent / "data" / "tables" / "base.tar"
MAP = (IDMap(0, 300000, 65536),)
DRIVERS = ["btrfs", "vfs", "overlay"]


@pytest.fixture(params=DRIVERS)
def split(request, btrfs_dir):
    """Options of a store with a split image store, neither of which exists yet."""
    return StoreOptions(
        graphroot=str(btrfs_dir / "g"),
        runroot=str(btrfs_dir / "r"),
        image_store=str(btrfs_dir / "i"),
        driver=request.param,
        lock_timeout=10,
    )


@pytest.fixture
def opened(split):
    store = Store(split)
    try:
        yield store
    finally:
        Store(split).wipe()
        store.shutdown(force=True)


def put_image(store, name):
    layer, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()))
    return store.create_image(names=[name], layer=layer.id)


@pytest.fixture
def image(opened):
    return put_image(opened, "img")


@pytest.fixture
def old(split):
    """An image that was made before there was an image store."""
    with Store(replace(split, image_store="")) as store:
        return put_image(store, "old")


def homes(store, kind):
    """IDs of the records in the graphroot, and in the image store."""
    files = [home / f"{kind}.json" for home in store.table_directories(kind)]
    return [[record["id"] for record in json.loads(f.read_bytes())] if f.exists() else [] for f in files]


def trees(store):
    """IDs of the layers whose trees are in the graphroot, and in the image store."""
    ids = list(store.driver.layer_ids())
    return [{i for i in ids if store.driver.path_of(i).is_relative_to(home)} for home in store.driver.homes]


# -- where things go -------------------------------------------------------------------------------


def test_images_go_to_the_image_store_and_containers_to_the_graphroot(opened, image, split):
    assert opened.image_store == opened.split == Path(split.image_store)
    child = opened.create_layer(parent=image.layer)
    opened.set_image_big_data(image.id, "notes", b"text")
    container = opened.create_container(names=["web"], image="img")
    assert homes(opened, "images") == [[], [image.id]]
    assert homes(opened, "layers") == [[container.layer], [image.layer, child.id]]
    assert trees(opened) == [{container.layer}, {image.layer, child.id}]
    assert (opened.split / f"{split.driver}-images" / image.id / "notes").read_bytes() == b"text"
    assert opened.tar_split_path(image.layer).is_relative_to(split.graphroot), "the original looks there"
    with opened.diff(image.layer) as archive:
        assert archive.read() == BASE_TAR.read_bytes()
    tree = opened.mount("web")
    assert (tree / "etc").is_dir()
    (tree / "new").write_text("x")
    opened.unmount("web")
    assert [change.path for change in opened.changes("web")] == [b"/new"]
    assert opened.check() == []


def test_writable_layer_is_made_in_the_graphroot(opened):
    plain = opened.create_layer(writeable=True)
    filled, _ = opened.put_layer(io.BytesIO(BASE_TAR.read_bytes()), writeable=True)
    assert homes(opened, "layers") == [[plain.id, filled.id], []]
    assert trees(opened) == [{plain.id, filled.id}, set()]


def test_empty_container_is_filled_from_the_image_store(opened, image):
    opened.create_container(names=["web"])
    filled = fill.fill(opened, "web", "img")
    assert filled.image == image.id
    assert trees(opened)[0] == {filled.layer}
    with opened.driver.mounted(filled.layer) as tree:
        assert (tree / "etc").is_dir()
    assert opened.check() == []


def test_mapped_copy_of_a_top_layer_is_beside_it(opened, image):
    options = ContainerOptions(uidmap=MAP, gidmap=MAP)
    containers = [opened.create_container(image="img", options=options) for _ in range(2)]
    [mapped] = opened.image("img").mapped_layers
    assert {opened.layer(container.layer).parent for container in containers} == {mapped}
    assert trees(opened)[1] == {image.layer, mapped}
    with opened.driver.mounted(mapped) as tree:
        assert (tree / "etc").stat().st_uid == 300000
    assert opened.check() == []
    for container in containers:
        opened.delete_container(container.id)
    assert set(opened.delete_image("img")) == {image.layer, mapped}
    assert list(opened.driver.layer_ids()) == []


def test_layers_of_an_image_store_across_filesystems(btrfs_dir, ext4_dir, split):
    """A snapshot cannot leave its filesystem; other drivers do not mind."""
    options = replace(split, image_store=str(ext4_dir / "i"))
    if split.driver == "btrfs":
        with pytest.raises(NotSupported, match=r"image store .* is on another filesystem than the graphroot"):
            Store(options)
        assert os.listdir(ext4_dir / "i") == []
        return
    with Store(options) as store:
        put_image(store, "img")
        store.create_container(names=["web"], image="img")
        (store.mount("web") / "new").write_text("x")
        store.unmount("web")
        assert [change.path for change in store.changes("web")] == [b"/new"]
        assert store.check() == []
        store.wipe()
        assert trees(store) == [set(), set()]
        store.shutdown(force=True)


# -- images in both --------------------------------------------------------------------------------


def test_images_of_both_are_one_set_with_unique_names(old, opened, image):
    assert {found.id for found in opened.images()} == {image.id, old.id}
    with pytest.raises(DuplicateName):
        opened.create_image(names=["old"])
    opened.set_image_big_data(old.id, "notes", b"in the graphroot")
    opened.set_metadata("old", "changed")
    opened.add_names(image.id, ["old", "new"])
    opened.add_names(old.id, ["img"])
    assert (opened.image(image.id).names, opened.image(old.id).names) == (("old", "new"), ("img",))
    assert homes(opened, "images") == [[old.id], [image.id]]
    assert opened.image_big_data(old.id, "notes") == b"in the graphroot"
    assert opened.images_by_top_layer(old.layer)[0].metadata == "changed"
    same = opened.layers_by_uncompressed_digest(opened.layer(old.layer).diff_digest)
    assert {layer.id for layer in same} == {image.layer, old.layer}
    opened.remove_names(image.id, ["old"])
    assert opened.check() == []


def test_an_image_of_either_goes_with_its_layers(old, opened, image, split):
    opened.set_image_big_data(image.id, "notes", b"x")
    opened.image_directory(old.id)
    for name, found in (("img", image), ("old", old)):
        opened.create_container(names=["web"], image=name)
        with pytest.raises(ImageUsedByContainer):
            opened.delete_image(name)
        opened.delete_container("web")
        assert opened.delete_image(name) == [found.layer]
    with pytest.raises(NotAnImage):
        opened.delete_image("img")
    for kind in ("layers", "images"):
        assert homes(opened, kind) == [[], []]
        for home in opened.table_directories(kind):
            assert [path.name for path in home.iterdir() if path.suffix not in (".json", ".lock")] == []
    assert trees(opened) == [set(), set()]


def test_layer_over_one_of_the_graphroot(old, opened):
    """An image that was made before there was an image store can be built upon."""
    layer = opened.create_layer(parent=old.layer)
    opened.create_image(names=["more"], layer=layer.id)
    opened.create_container(names=["web"], image="more")
    assert trees(opened)[1] == {layer.id}
    assert (opened.mount("web") / "etc").is_dir()
    opened.unmount("web")
    assert opened.delete_image("old") == [], "its layer is below another"
    opened.delete_container("web")
    assert opened.delete_image("more") == [layer.id, old.layer]


def test_copy_that_another_tool_made_to_rename_an_image(old, opened, split):
    """containers/storage copies the record of an image of the graphroot to the image store for that."""
    source, target = (home / "images.json" for home in opened.table_directories("images"))
    [record] = json.loads(source.read_bytes())
    target.write_text(json.dumps([record | {"names": ["renamed"]}]))
    assert [(found.id, found.names) for found in opened.images()] == [(old.id, ("renamed",))]
    assert opened.catalog().broken == ()
    opened.add_names("renamed", ["again"])
    assert json.loads(source.read_bytes()) == [record], "the copy alone counts"
    assert Store(split).image("again").id == old.id
    opened.delete_image("again")
    assert homes(opened, "images") == [[], []]


def test_name_that_images_of_both_claim_belongs_to_the_image_store(old, opened, image, split):
    target = opened.table_directories("images")[1] / "images.json"
    [record] = json.loads(target.read_bytes())
    target.write_text(json.dumps([record | {"names": ["old"]}]))
    for store in (opened, Store(split)):
        assert store.image("old").id == image.id
        assert store.image(old.id).names == ()


@pytest.mark.parametrize("winner", ["img", "old"])
def test_a_crash_between_two_files_leaves_a_name_with_one_owner(
    old, opened, image, split, winner, monkeypatch
):
    real, calls = store_table.replace_file, []

    def dying(made):
        if calls:
            raise KeyboardInterrupt
        calls.append(made.path)
        real(made)

    opened.add_names("img" if winner == "old" else "old", ["wanted"])
    monkeypatch.setattr(store_table, "replace_file", dying)
    with pytest.raises(KeyboardInterrupt):
        opened.add_names(winner, ["wanted"])
    monkeypatch.undo()
    owners = [found.id for found in Store(split).images() if "wanted" in found.names]
    assert owners == [image.id], "it is the new owner, or still the old one"
    opened.add_names(winner, ["wanted"])
    assert Store(split).image("wanted").id == (image if winner == "img" else old).id


# -- looking after both ----------------------------------------------------------------------------


def test_check_and_garbage_collection_look_at_both(opened, image, split):
    stray = "ab" * 32
    made = opened.driver.path_of(image.layer).with_name(stray)
    made.mkdir()
    (made / "link").write_text("A" * 26)
    left = [home / stray for kind in ("layers", "images") for home in opened.table_directories(kind)]
    for path in left:
        path.mkdir()
    found = {(problem.kind, problem.id) for problem in opened.check()}
    assert found == {(Kind.UNACCOUNTED_LAYER, stray)} | {(Kind.LEFTOVER, str(path)) for path in left}
    assert set(opened.garbage_collect()) == {stray, *map(str, left)}
    assert opened.check() == []


def test_repair_removes_an_image_whose_layer_lost_its_tree(opened, image):
    opened.driver.remove(image.layer)
    problems = opened.check()
    assert Kind.LAYER_WITHOUT_DATA in {problem.kind for problem in problems}
    assert opened.repair(problems) == []
    assert homes(opened, "images") == homes(opened, "layers") == [[], []]


def test_layer_of_the_image_store_that_was_never_finished_is_removed(opened, image, split):
    opened.delete_image("img")
    layer = opened.create_layer(names=["half"])
    file = opened.table_directories("layers")[1] / "layers.json"
    [record] = json.loads(file.read_bytes())
    file.write_text(json.dumps([record | {"flags": {"incomplete": True}}]))
    assert Store(split).layers() == []
    assert trees(opened) == [set(), set()]
    assert not opened.driver.exists(layer.id)


@pytest.mark.parametrize("split", ["btrfs"], indirect=True)  # only it has a trash
def test_removed_image_comes_back_to_the_image_store(opened, image):
    opened.set_image_big_data(image.id, "notes", b"kept")
    image = opened.image("img")
    history = History(opened)
    trash = Trash(history)
    entry = trash.remove_image("img")
    assert opened.check() == []
    assert trash.path(entry.id).is_relative_to(opened.split)
    assert trash.restore(entry.id) == image == Store(opened.options).image("img")
    assert opened.image_big_data("img", "notes") == b"kept"
    assert trees(opened) == [set(), {image.layer}]
    assert (homes(opened, "images"), homes(opened, "layers")) == ([[], [image.id]], [[], [image.layer]])
    with opened.diff(image.layer) as archive:
        assert archive.read() == BASE_TAR.read_bytes()
    trash.purge(trash.remove_image("img").id)
    assert trees(opened) == [set(), set()]
    assert list(opened.driver.aside().keys()) == []
    history.state.close()


def test_two_stores_at_work_at_once(opened, split):
    """Another graphroot may share the image store."""
    other = replace(split, graphroot=f"{split.graphroot}2", runroot=f"{split.runroot}2")
    failed = []

    def work(options, number):
        try:
            with Store(options) as store:
                for turn in range(4):
                    name = f"{number}-{turn}"
                    put_image(store, name)
                    store.create_container(names=[name], image=name)
                    store.add_names(name, [f"{name}-more"])
                    if turn % 2:
                        store.delete_container(name)
                        store.delete_image(f"{name}-more")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(o, n)) for n, o in enumerate((split, split, other, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {name for found in opened.images() for name in found.names} == {
        f"{number}-{turn}{more}" for number in range(4) for turn in (0, 2) for more in ("", "-more")
    }
    for options in (split, other):
        with Store(options) as store:
            assert len(store.containers()) == 4
            assert store.check() == []
    with Store(other) as store:
        for container in store.containers():
            store.delete_container(container.id)
        store.shutdown(force=True)


# -- what else an image store may be ---------------------------------------------------------------


def test_store_of_its_own_becomes_an_image_store(split):
    """Tar-split and big data of its layers stay where they are."""
    with Store(replace(split, graphroot=split.image_store, image_store="")) as plain:
        image = put_image(plain, "img")
        plain.set_layer_big_data(image.layer, "notes", b"x")
        plain.shutdown(force=True)
    with Store(split) as store:
        assert store.layer_big_data(image.layer, "notes") == b"x"
        with store.diff(image.layer) as archive:
            assert archive.read() == BASE_TAR.read_bytes()
        assert store.check() == []
        store.delete_image("img")
        assert store.check() == []
        assert not any(path.name.startswith(image.layer) for path in store.split.glob("*-layers/*"))
        store.shutdown(force=True)


def test_additional_stores_come_after_the_image_store(opened, image, split, btrfs_dir):
    more = replace(split, graphroot=str(btrfs_dir / "more"), image_store="")
    with Store(more) as store:
        store.create_image(names=["img"], layer=store.create_layer().id)
        store.create_image(names=["img2"], layer=store.create_layer().id)
        store.shutdown(force=True)
    given = f"{split.driver}.imagestore={more.graphroot},{split.image_store}"
    with Store(replace(split, driver_options=(given,))) as store:
        assert len(store.additional) == 1
        assert store.image("img").id == image.id
        store.create_container(names=["over"], image="img2")
        store.create_container(names=["web"], image="img")
        assert store.check() == []


def test_image_store_that_is_the_graphroot(split):
    with Store(replace(split, image_store=split.graphroot)) as store:
        assert store.image_store is store.split is None
        assert not put_image(store, "img").in_image_store
        store.shutdown(force=True)


def test_image_store_that_cannot_be_written_is_read(split):
    with Store(split) as store:
        image = put_image(store, "img")
        store.shutdown(force=True)
    place = split.image_store
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        with Store(split) as store:
            assert (store.split, store.image("img").read_only) == (None, True)
            with pytest.raises(StoreReadOnly):
                store.set_names("img", ["other"])
            store.create_container(names=["web"], image="img")
            layer = store.create_layer(parent=image.layer)
            store.create_image(names=["own"], layer=layer.id)
            assert not store.image("own").in_image_store
            assert store.check() == []
            store.wipe()
            store.shutdown(force=True)
    finally:
        subprocess.run(["umount", place], check=True)


def test_transient_containers_over_the_image_store(split):
    with Store(replace(split, transient_store=True)) as store:
        put_image(store, "img")
        store.create_container(names=["web"], image="img")
        assert homes(store, "layers")[0] == []
        assert store.check() == []
        store.shutdown(force=True)


# -- other programs --------------------------------------------------------------------------------


def test_original_reads_the_image_store_as_a_store(opened, image, split, require, btrfs_dir):
    """It does not know ``imagestore`` yet; each of the two is a store to it."""
    require("containers-storage")
    dirs = StoreDirs(Path(split.image_store), btrfs_dir / "r2")
    tool = ToolBox(dirs, split.driver, btrfs_dir / "conf").containers_storage()
    [seen] = json.loads(tool("images", "--json").stdout)
    assert (seen["id"], seen["names"]) == (image.id, ["img"])
    path = Path(tool("mount", image.layer).stdout.strip())
    try:
        assert (path / "etc").is_dir()
    finally:
        tool("unmount", image.layer)
    tool("add-names", "--name", "theirs", image.id)
    assert set(opened.image("theirs").names) == {"img", "theirs"}
    tool("delete-image", image.id)
    assert (opened.images(), opened.layers(), trees(opened)) == ([], [], [set(), set()])


@pytest.mark.parametrize(
    "split", ["vfs", "overlay"], indirect=True
)  # on btrfs the original has no such option
def test_original_sees_the_container_over_the_image_store(opened, image, split, require, btrfs_dir):
    require("containers-storage")
    opened.create_container(names=["web"], image="img")
    (opened.mount("web") / "new").write_text("x")
    opened.unmount("web")
    dirs = StoreDirs(Path(split.graphroot), Path(split.runroot))
    option = f"{split.driver}.imagestore={split.image_store}"
    plain = ToolBox(dirs, split.driver, btrfs_dir / "conf").containers_storage()
    tool = replace(plain, prefix=(*plain.prefix, "--storage-opt", option))
    assert image.id in tool("images").stdout
    merged = Path(tool("mount", "web").stdout.strip())
    try:
        assert (merged / "new").read_text() == "x"
        assert (merged / "etc").is_dir()
    finally:
        tool("unmount", "web")
    tool("delete-container", "web")
    assert opened.containers() == []


@pytest.mark.parametrize("split", ["btrfs", "overlay"], indirect=True)
def test_mounted_tree_shows_both(old, opened, image, split, require, btrfs_dir):
    require("fuse")
    dirs = StoreDirs(Path(split.graphroot), Path(split.runroot))
    flags = ("--driver", split.driver, "--imagestore", split.image_store)
    with mounted(dirs, btrfs_dir / "mnt", *flags) as serving:
        images = serving.path / "images"
        assert {"img", "old"} <= set(os.listdir(images))
        for found in (image, old):
            assert (images / found.names[0] / "rootfs/etc").is_dir()
            assert (serving.path / "layers" / found.layer / "rootfs/etc").is_dir()
        web = serving.path / "containers" / "web"
        web.mkdir()
        (web / "from").write_text("img")
        (web / "rootfs/new").write_text("x")
        opened.add_names("img", ["seen"])
        assert (images / "seen/rootfs/etc").is_dir()
        assert f"# image store: {split.image_store}" in (serving.path / "control/config").read_text()
    assert trees(opened)[0] == {old.layer, opened.container("web").layer}
