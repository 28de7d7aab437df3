"""Removal that can be undone, on a real btrfs store, beside podman and through crashes."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import closing
from dataclasses import replace

import pytest

from store.config import StoreOptions
from store.errors import (
    DuplicateID,
    DuplicateName,
    ImageUsedByContainer,
    InUse,
    LayerHasChildren,
    LayerUsedByImage,
    ParentUnknown,
    Pinned,
    TrashUnknown,
)
from store.fill import fill
from store.history import History
from store.oci import import_rootfs
from store.store import Store
from store.trash import Trash, TrashPolicy

DAY = 24 * 3600 * 10**9


@pytest.fixture
def web(store):
    container = store.create_container(names=["web"], metadata="mine")
    (rootfs(store, "web") / "file").write_text("one")
    store.set_container_big_data(container.id, "notes", b"kept")
    (store.container_directory(container.id) / "private").write_text("also")
    return store.container("web")


def rootfs(store, container):
    return store.driver.path_of(store.container(container).layer)


def everything(store):
    """All records, and what is in the store's directories."""
    kinds = ("layers", "images", "containers")
    names = {
        str(p) for kind in kinds for p in store.table_directory(kind).rglob("*") if ".json" not in p.name
    }
    catalog = store.catalog()
    return catalog.layers, catalog.images, catalog.containers, names, sorted(store.driver.layer_ids())


def test_a_removed_container_comes_back_whole(store, trash, web) -> None:
    trash.history.take("web", "before")
    before = everything(store)
    entry = trash.remove_container("web")
    assert store.containers() == store.layers() == []
    assert list(store.driver.layer_ids()) == []
    assert not (store.table_directory("containers") / web.id).exists()
    assert trash.list() == (entry,)
    assert (entry.kind, entry.names, entry.object_id) == ("containers", ("web",), web.id)
    assert entry.id.startswith("web@")
    assert (trash.path(entry.id) / "file").read_text() == "one"
    assert trash.expires_ns(entry) == entry.removed_ns + DAY
    assert trash.restore(entry.id) == web
    assert everything(store) == before
    assert (rootfs(store, "web") / "file").read_text() == "one"
    assert store.container_big_data("web", "notes") == b"kept"
    assert [s.name for s in trash.history.list("web")] == ["before"]
    assert trash.list() == ()
    assert list(trash.entries.root.iterdir()) == []


def test_it_may_come_back_under_another_name(store, trash, web) -> None:
    entry = trash.remove_container("web")
    store.create_container(names=["web"])
    with pytest.raises(DuplicateName):
        trash.restore(entry.id)
    assert trash.restore(entry.id, name="old").names == ("old",)
    assert store.container("old").id == web.id
    assert store.container("web").id != web.id


def test_entries_of_one_name_in_one_second_differ(store, trash) -> None:
    entries = []
    for _ in range(3):
        store.create_container(names=["a%/b"])
        entries.append(trash.remove_container("a%/b"))
    assert len({entry.id for entry in entries}) == 3
    assert all(entry.id.startswith("a%25%2Fb@") for entry in entries)
    assert trash.list() == tuple(entries)


@pytest.mark.parametrize("name", ["x" * 300, "..", ".hidden", "ä" * 200])
def test_any_name_makes_an_entry(store, trash, name) -> None:
    store.create_container(names=[name])
    entry = trash.remove_container(name)
    assert len(entry.id.encode()) <= 255
    trash.restore(entry.id)
    assert store.container(name).names == (name,)


def test_an_image_goes_with_its_own_layers_only_and_comes_back(store, trash, rootfs_tar) -> None:
    with rootfs_tar.open("rb") as archive:
        first = import_rootfs(store, archive, "localhost/first:1")
    top = store.create_layer(parent=first.layer)
    image = store.create_image(names=["localhost/second:1"], layer=top.id)
    store.set_image_big_data(image.id, "notes", b"kept")
    before = everything(store)
    entry = trash.remove_image("localhost/second:1")
    assert [layer.id for layer in entry.layers] == [top.id]
    assert [layer.id for layer in store.layers()] == [first.layer]
    other = trash.remove_image("localhost/first:1")
    assert store.layers() == []
    with pytest.raises(ParentUnknown, match=other.id):
        trash.restore(entry.id)
    trash.restore(other.id)
    trash.restore(entry.id)
    assert everything(store) == before
    assert store.image_big_data("localhost/second:1", "notes") == b"kept"
    assert store.check() == []


def test_a_tag_may_be_chosen_for_an_image_that_comes_back(store, trash) -> None:
    layer = store.create_layer()
    store.create_image(names=["localhost/a:1"], layer=layer.id)
    entry = trash.remove_image("localhost/a:1")
    assert trash.restore(entry.id, name="b:2").names == ("localhost/b:2",)


def test_an_image_without_own_layers_has_no_tree_in_the_trash(store, trash) -> None:
    layer = store.create_layer()
    store.create_image(names=["localhost/a:1"], layer=layer.id)
    store.create_image(names=["localhost/b:1"], layer=layer.id)
    entry = trash.remove_image("localhost/a:1")
    assert entry.layers == ()
    with pytest.raises(TrashUnknown, match="in use"):
        trash.path(entry.id)
    trash.restore(entry.id)
    assert {image.names for image in store.images()} == {("localhost/a:1",), ("localhost/b:1",)}


def test_a_layer_comes_back_with_data_and_the_images_that_named_it(store, trash, rootfs_tar) -> None:
    with rootfs_tar.open("rb") as archive:
        layer, _ = store.put_layer(archive, names=["base"])
    store.set_layer_big_data(layer.id, "notes", b"kept")
    main = store.create_layer()
    image = store.create_image(layer=main.id)
    with store.transaction(images="w") as tx:
        tx.images.put(replace(tx.images.get(image.id), mapped_layers=(layer.id,)))
    before = everything(store)
    entry = trash.remove_layer("base")
    assert store.image(image.id).mapped_layers == ()
    assert not store.tar_split_path(layer.id).exists()
    trash.restore(entry.id)
    assert everything(store)[1:] == before[1:]
    assert store.image(image.id).mapped_layers == (layer.id,)
    with store.diff(layer.id) as stream:
        assert stream.read() == rootfs_tar.read_bytes()


def test_what_is_needed_is_refused_and_nothing_changes(store, trash, web) -> None:
    base = store.create_layer()
    child = store.create_layer(parent=base.id)
    image = store.create_image(names=["localhost/a:1"], layer=child.id)
    store.create_container(names=["c"], image=image.id)
    trash.history.pin("web", trash.history.take("web", "s").name)
    with pytest.raises(LayerHasChildren):
        trash.remove_layer(base.id)
    alone = store.create_image(layer=store.create_layer().id)
    before = everything(store)
    with pytest.raises(LayerUsedByImage):
        trash.remove_layer(alone.layer)
    with pytest.raises(ImageUsedByContainer):
        trash.remove_image(image.id)
    with pytest.raises(Pinned):
        trash.remove_container("web")
    trash.pins.pin("containers", store.container("c").id)
    with pytest.raises(Pinned):
        trash.remove_container("c")
    assert everything(store) == before
    assert trash.list() == ()


def test_what_is_mounted_or_worked_in_is_refused(store, trash, web) -> None:
    store.mount("web")
    with pytest.raises(InUse, match="mount"):
        trash.remove_container("web")
    store.unmount("web")
    with subprocess.Popen(["sleep", "60"], cwd=rootfs(store, "web")) as process:
        try:
            with pytest.raises(InUse, match=str(process.pid)):
                trash.remove_container("web")
        finally:
            process.kill()
    layer = store.create_layer()
    image = store.create_image(layer=layer.id)
    store.mount(layer.id)
    for remove, key in ((trash.remove_layer, layer.id), (trash.remove_image, image.id)):
        with pytest.raises((InUse, LayerUsedByImage)):
            remove(key)
    assert trash.list() == ()
    store.unmount(layer.id)
    assert trash.remove_image(image.id) is not None


def test_a_container_survives_the_loss_of_its_image(store, trash, rootfs_tar) -> None:
    with rootfs_tar.open("rb") as archive:
        image = import_rootfs(store, archive, "localhost/a:1")
    store.create_container(names=["web"])
    fill(store, "web", "localhost/a:1")
    entry = trash.remove_container("web")
    store.delete_image(image.id)
    restored = trash.restore(entry.id)
    assert restored.image == ""
    assert store.layer(restored.layer).parent == ""
    assert (rootfs(store, "web") / "bin/sh").exists()
    assert store.check() == []


def test_an_image_that_was_made_again_gets_its_names_back(store, trash, rootfs_tar) -> None:
    for tag in ("1", "2"):
        with rootfs_tar.open("rb") as archive:
            layer, _ = store.put_layer(archive, id="ab" * 32)
        store.create_image(id="cd" * 32, names=[f"localhost/a:{tag}"], layer=layer.id)
        if tag == "1":
            entry = trash.remove_image("localhost/a:1")
    assert trash.restore(entry.id).names == ("localhost/a:2", "localhost/a:1")
    assert trash.list() == ()
    assert store.image("localhost/a:1").id == store.image("localhost/a:2").id
    assert store.check() == []


def test_another_object_of_the_same_id_is_not_replaced(store, trash) -> None:
    for _ in range(2):
        store.create_image(id="cd" * 32, layer=store.create_layer().id)
        entry = trash.list()[0] if trash.list() else trash.remove_image("cd" * 32)
    with pytest.raises(DuplicateID, match="purge"):
        trash.restore(entry.id)
    store.delete_image("cd" * 32)
    assert trash.restore(entry.id).id == "cd" * 32
    assert store.check() == []


def test_a_layer_that_exists_again_is_used(store, trash, rootfs_tar) -> None:
    with rootfs_tar.open("rb") as archive:
        store.put_layer(archive, id="ab" * 32)
    store.create_image(id="cd" * 32, layer="ab" * 32)
    entry = trash.remove_image("cd" * 32)
    with rootfs_tar.open("rb") as archive:
        again, _ = store.put_layer(archive, id="ab" * 32)
    trash.restore(entry.id)
    assert store.layer("ab" * 32) == again
    assert list(store.driver.aside().keys()) == []
    assert store.check() == []


def test_purging_deletes_content_and_snapshots(store, trash, web) -> None:
    trash.history.take("web", "a")
    entry = trash.remove_container("web")
    trash.pins.pin("trash", entry.id)
    assert trash.expires_ns(entry) is None
    with pytest.raises(Pinned):
        trash.purge(entry.id)
    trash.pins.unpin("trash", entry.id)
    trash.purge(entry.id)
    assert trash.list() == ()
    assert trash.history.state.snapshots() == []
    assert list(store.driver.aside().keys()) == list(store.driver.snapshots().keys()) == []
    for call in (trash.purge, trash.restore, trash.get, trash.path):
        with pytest.raises(TrashUnknown):
            call(entry.id)


def test_a_pinned_snapshot_outlives_its_container(store, trash, web) -> None:
    trash.history.take("web", "a")
    entry = trash.remove_container("web")
    trash.history.pin(web.id, "a")
    trash.purge(entry.id)
    assert [o.container_id for o in trash.history.list_orphans()] == [web.id]


@pytest.mark.parametrize("bad", ["", "..", "a/b", "no", "\0"])
def test_an_unknown_entry_is_said_so(trash, bad) -> None:
    with pytest.raises(TrashUnknown):
        trash.restore(bad)


def test_entries_expire_after_their_time(store, trash) -> None:
    for name in ("a", "b"):
        store.create_container(names=[name])
    old, pinned = trash.remove_container("a"), trash.remove_container("b")
    trash.pins.pin("trash", pinned.id)
    assert trash.expire(old.removed_ns + DAY - 1) == ()
    assert trash.expire(old.removed_ns + DAY) == (old,)
    assert trash.list() == (pinned,)


def test_a_short_disk_empties_the_trash_and_is_not_kept_waiting(store, trash, web, monkeypatch) -> None:
    store.create_container(names=["other"])
    entry = trash.remove_container("web")
    monkeypatch.setattr(trash.history, "free_space", lambda: 0.19)
    assert trash.expired() == ()
    assert trash.expired(entry.removed_ns + 3600 * 10**9) == (entry,)
    monkeypatch.setattr(trash.history, "free_space", lambda: 0.09)
    assert trash.remove_container("other") is None
    assert trash.expire() == (entry,)
    assert trash.list() == ()


def test_switched_off_means_gone(store, trash, web) -> None:
    off = Trash(trash.history, TrashPolicy(lifetime=0.0))
    image = store.create_image(layer=store.create_layer().id)
    assert off.remove_container("web") is None
    assert off.remove_image(image.id) is None
    assert off.remove_layer(store.create_layer().id) is None
    assert store.layers() == []
    assert off.list() == ()


@pytest.mark.parametrize("driver", ["vfs"])
def test_a_driver_that_sets_nothing_aside_removes_at_once(btrfs_dir, driver) -> None:
    options = StoreOptions(graphroot=str(btrfs_dir / "vg"), runroot=str(btrfs_dir / "vr"), driver=driver)
    with Store(options) as store:
        history = History(store)
        with closing(history.state):
            trash = Trash(history)
            assert not trash.supported
            store.create_container(names=["web"])
            assert trash.remove_container("web") is None
            assert store.layers() == []
            assert trash.expire() == trash.list() == ()


def test_a_limit_comes_back_with_the_container(store, trash, web) -> None:
    store.driver.set_limit(web.layer, 64 << 20)
    entry = trash.remove_container("web")
    assert list((store.graphroot / "btrfs/quotas").iterdir()) == []
    trash.restore(entry.id)
    assert store.driver.limit(web.layer) == 64 << 20
    try:
        with pytest.raises(OSError, match="quota"):
            write_durably(rootfs(store, "web") / "big", 128)
    finally:
        store.driver.quotas.disable()  # the filesystem is not this test's alone


def write_durably(path, mebibytes) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(mebibytes):
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())


def test_removal_is_fast_whatever_the_size(store, trash, web) -> None:
    for n in range(2000):
        (rootfs(store, "web") / f"f{n}").touch()
    os.sync()
    start = time.monotonic()
    entry = trash.remove_container("web")
    removed = time.monotonic()
    trash.restore(entry.id)
    assert removed - start < 2
    assert time.monotonic() - removed < 2


def test_a_damaged_entry_hides_no_other(store, trash, web) -> None:
    store.create_container(names=["other"])
    bad, good = trash.remove_container("web"), trash.remove_container("other")
    (trash.entries.root / bad.id / "entry.json").write_text("{")
    assert [entry.id for entry in trash.list()] == [good.id]
    assert trash.restore(good.id).names == ("other",)


def test_the_trash_needs_no_state(store, trash, web) -> None:
    entry = trash.remove_container("web")
    trash.history.state.close()
    for path in store.graphroot.glob("fsd/state.db*"):
        path.unlink()
    history = History(store)
    with closing(history.state):
        assert Trash(history).restore(entry.id) == web


# -- other tools -----------------------------------------------------------------------------------


def test_podman_starts_a_container_that_came_back(
    store, trash, podman, rootfs_tar, containers_storage
) -> None:
    podman("import", rootfs_tar, "localhost/base:1")
    podman("create", "--name", "web", "localhost/base:1", "sh", "-c", "cat /kept")
    (rootfs(store, "web") / "kept").write_text("still here\n")
    entry = trash.remove_container("web")
    image = trash.remove_image("localhost/base:1")
    assert "base" not in podman("images").stdout
    assert containers_storage("layers").stdout.split() == []
    podman("import", rootfs_tar, "localhost/meanwhile:1")
    podman("run", "--rm", "localhost/meanwhile:1", "true")
    trash.restore(image.id)
    trash.restore(entry.id)
    assert podman("start", "--attach", "web").stdout == "still here\n"
    assert podman("run", "--rm", "localhost/base:1", "echo", "ok").stdout == "ok\n"
    podman("rm", "web")
    podman("rmi", "localhost/base:1", "localhost/meanwhile:1")
    assert store.layers() == []


def test_podman_pulls_an_image_again_that_is_in_the_trash(
    store, trash, podman, btrfs_dir, rootfs_tar
) -> None:
    podman("import", rootfs_tar, "localhost/base:1")
    podman("save", "-o", btrfs_dir / "base.tar", "localhost/base:1")
    entry = trash.remove_image("localhost/base:1")
    podman("load", "-i", btrfs_dir / "base.tar")
    assert podman("run", "--rm", "localhost/base:1", "echo", "ok").stdout == "ok\n"
    trash.purge(entry.id)
    assert podman("run", "--rm", "localhost/base:1", "echo", "ok").stdout == "ok\n"
    assert store.check() == []


def test_collectors_of_garbage_leave_the_trash_alone(store, trash, web) -> None:
    entry = trash.remove_container("web")
    assert store.garbage_collect() == []
    assert store.check() == []
    trash.restore(entry.id)
    assert (rootfs(store, "web") / "file").read_text() == "one"
