"""The store's own rules: creation, removal, names, big data, and what survives a crash."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest

from drivers.base import ChangeKind
from drivers.errors import DriverError
from store.config import StoreOptions
from store.errors import (
    BadID,
    BadValue,
    ContainerUnknown,
    DuplicateID,
    DuplicateName,
    ImageUnknown,
    ImageUsedByContainer,
    IncompleteOptions,
    LayerHasChildren,
    LayerUnknown,
    LayerUsedByContainer,
    LayerUsedByImage,
    NotAContainer,
    NotALayer,
    NotAnID,
    NotAnImage,
    ParentIsContainer,
    ParentUnknown,
)
from store.store import BigData, ContainerOptions, ImageOptions, LayerOptions, Store
from tests.support.tables import edit, on_disk, subvolumes, table

BASE_TAR = Path(__file__).parent / "data" / "tables" / "base.tar"
UNUSED_ID = "ab" * 32


# -- opening -------------------------------------------------------------------------------------


def test_open_makes_private_directories_and_empty_locks(store):
    for path in (store.graphroot, store.runroot, *(table(store, n).parent for n in ("layers", "images"))):
        assert path.stat().st_mode & 0o777 == 0o700
    for name in ("storage.lock", "userns.lock", "btrfs-layers/layers.lock", "btrfs-images/images.lock"):
        assert (store.graphroot / name).read_bytes() == b""
    assert not table(store, "layers").exists()
    assert (store.layers(), store.images(), store.containers()) == ([], [], [])


def test_status_is_the_drivers_and_version_says_nothing(store):
    assert store.status() == store.driver.status()
    assert ("Library Version" in dict(store.status())) or store.status()
    assert store.version() == []


def test_lazy_store_reads_without_opening_the_driver(store, options):
    layer = store.create_layer(names=["x1"])
    with Store(options, lazy=True) as other:
        assert other.layer("x1") == layer
        assert other._driver is None
        assert other.driver.exists(layer.id)


def test_open_without_graphroot_is_refused():
    with pytest.raises(IncompleteOptions):
        Store(StoreOptions(runroot="/run/nowhere"))


def test_two_stores_in_one_process_see_each_other(store, options):
    with Store(options) as other:
        layer = store.create_layer(names=["a"])
        assert other.layer("a") == layer
        other.delete_layer("a")
        assert store.layers() == []


def test_runroot_that_vanished_is_made_again(store):
    store.create_layer(names=["a"])
    mounts = store.runroot / "btrfs-layers"
    for file in mounts.iterdir():
        file.unlink()
    mounts.rmdir()
    store.create_layer(names=["b"])
    assert store.mounted("a") == 0
    assert len(store.layers()) == 2


# -- layers --------------------------------------------------------------------------------------


def test_create_layer_records_only_what_is_known(store):
    layer = store.create_layer(names=["a", "a", "b"])
    assert on_disk(store, "layers") == [
        {"id": layer.id, "names": ["a", "b"], "created": layer.created},
    ]
    assert table(store, "layers").stat().st_mode & 0o777 == 0o600
    assert (store.runroot / "btrfs-layers" / "mountpoints.json").read_bytes() == b"[]"
    assert subvolumes(store) == {layer.id}


def test_child_starts_as_copy_of_parent(store):
    base = store.create_layer()
    (store.layer_path(base.id) / "file").write_text("x")
    child = store.create_layer(parent=base.id[:8])
    assert child.parent == base.id
    assert (store.layer_path(child.id) / "file").read_text() == "x"


@pytest.mark.parametrize("bad", ["short", "AB" * 32, "a/b", "ab" * 33, "..", "ab" * 31 + "g0"])
def test_create_with_id_tools_cannot_use_changes_nothing(store, bad):
    for make in (store.create_layer, store.create_image, store.create_container):
        with pytest.raises(BadID):
            make(id=bad)
    assert subvolumes(store) == set()
    assert not table(store, "layers").exists()


def test_create_with_taken_id_or_name_is_refused(store):
    layer = store.create_layer(names=["a"])
    with pytest.raises(DuplicateID):
        store.create_layer(id=layer.id)
    with pytest.raises(DuplicateName):
        store.create_layer(names=["b", "a"])
    image = store.create_image(names=["a"])
    with pytest.raises(DuplicateID):
        store.create_image(id=image.id)
    with pytest.raises(DuplicateName):
        store.create_image(names=["a"])
    container = store.create_container(names=["a"])
    with pytest.raises(DuplicateID):
        store.create_container(id=container.id)
    with pytest.raises(DuplicateName):
        store.create_container(names=["a"])
    assert subvolumes(store) == {layer.id, container.layer}


def test_create_layer_with_unknown_or_container_parent_is_refused(store):
    with pytest.raises(ParentUnknown):
        store.create_layer(parent="nobody")
    container = store.create_container()
    with pytest.raises(ParentIsContainer):
        store.create_layer(parent=container.layer)


def test_put_layer_records_digests_and_gives_the_archive_back(store):
    data = BASE_TAR.read_bytes()
    layer, size = store.put_layer(io.BytesIO(data))
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    assert (layer.diff_digest, layer.compressed_digest) == (digest, digest)
    assert (layer.diff_size, layer.compressed_size) == (len(data), len(data))
    assert 0 < size < len(data)
    assert store.layers_by_uncompressed_digest(digest) == [layer]
    assert store.layers_by_compressed_digest(digest) == [layer]
    assert store.tar_split_path(layer.id).stat().st_mode & 0o777 == 0o600
    with store.diff(layer.id) as stream:
        assert stream.read() == data
    sample = json.loads((Path(__file__).parent / "data" / "tables" / "layers.json").read_bytes())
    theirs = next(record for record in sample if record.get("names") == ["base"])
    ours = on_disk(store, "layers")[0]
    assert {k: v for k, v in ours.items() if k not in ("id", "created", "names")} == {
        k: v for k, v in theirs.items() if k not in ("id", "created", "names")
    }


def test_put_layer_from_damaged_archive_leaves_nothing(store):
    with pytest.raises(DriverError):
        store.put_layer(io.BytesIO(b"this is no tar archive" * 100))
    with pytest.raises(BadValue):
        store.put_layer(io.BytesIO(BASE_TAR.read_bytes()), options=LayerOptions(original_digest="sha256:00"))
    assert (store.layers(), subvolumes(store)) == ([], set())
    assert [p.name for p in table(store, "layers").parent.iterdir()] == ["layers.lock"]


def test_put_layer_takes_over_tree_of_killed_creation(store):
    store.driver.create(UNUSED_ID)
    (store.driver.get(UNUSED_ID) / "junk").write_text("x")
    layer, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()), id=UNUSED_ID)
    assert not (store.layer_path(layer.id) / "junk").exists()


def test_apply_diff_on_existing_layer_replaces_digests(store):
    layer = store.create_layer()
    store.apply_diff(layer.id, io.BytesIO(BASE_TAR.read_bytes()))
    assert store.layer(layer.id).diff_size == BASE_TAR.stat().st_size
    with pytest.raises(LayerUnknown):
        store.apply_diff("nobody", io.BytesIO(b""))


def test_changes_and_fresh_diff_of_edited_child(store):
    base, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()))
    child = store.create_layer(parent=base.id)
    (store.layer_path(child.id) / "new").write_text("hello")
    assert [(c.path, c.kind) for c in store.changes(child.id)] == [(b"/new", ChangeKind.ADDED)]
    assert store.diff_size(child.id) == 5
    with store.diff(child.id) as stream:
        assert b"hello" in stream.read()
    assert store.diff_size(base.id) == BASE_TAR.stat().st_size


def test_template_layer_copies_content_digests_and_tar_split(store):
    base, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()), names=["base"])
    copy = store.create_layer(options=LayerOptions(template="base"))
    assert (copy.diff_digest, copy.parent, copy.names) == (base.diff_digest, "", ())
    with store.diff(copy.id) as stream:
        assert stream.read() == BASE_TAR.read_bytes()


# -- lookups -------------------------------------------------------------------------------------


def test_lookup_order_is_id_name_layer_prefix(store):
    image = store.create_image(names=["web"])
    container = store.create_container(names=["web"], image=image.id)
    assert store.container("web") == store.container(container.id[:5]) == store.container(container.layer)
    assert store.image("web") == image
    assert store.lookup("web") == image.id
    assert store.container_by_layer(container.layer) == container
    assert store.exists(container.id[:12])
    layer = store.create_layer(id="ab" * 32)
    assert store.lookup("ab") == layer.id
    named = store.create_container(names=["ab"])
    assert store.lookup("ab") == named.id
    assert not store.exists("nobody")


def test_ambiguous_prefix_is_unknown(store):
    store.create_layer(id="aa" + "0" * 62)
    store.create_layer(id="aa" + "1" * 62)
    with pytest.raises(LayerUnknown):
        store.layer("aa")
    assert store.layer("aa1").id == "aa" + "1" * 62


def test_unknown_things_raise_their_own_error(store):
    for method, error in [
        (store.layer, LayerUnknown),
        (store.image, ImageUnknown),
        (store.container, ContainerUnknown),
        (store.lookup, LayerUnknown),
        (store.names, NotAnID),
        (store.metadata, NotAnID),
        (store.delete, LayerUnknown),
        (store.delete_layer, NotALayer),
        (store.delete_image, NotAnImage),
        (store.delete_container, NotAContainer),
        (store.mount, LayerUnknown),
        (store.unmount, LayerUnknown),
        (store.mounted, LayerUnknown),
        (store.layers_by_compressed_digest, LayerUnknown),
        (store.image_size, ImageUnknown),
        (store.container_size, ContainerUnknown),
    ]:
        with pytest.raises(error):
            method("nobody")
    assert store.images_by_digest("sha256:00") == []


# -- removal -------------------------------------------------------------------------------------


def test_delete_layer_in_use_is_refused_by_id_and_by_name(store):
    base = store.create_layer(names=["base"])
    top = store.create_layer(parent="base", names=["top"])
    image = store.create_image(layer="top")
    for key in (base.id, "base", base.id[:10]):
        with pytest.raises(LayerHasChildren, match=top.id):
            store.delete_layer(key)
    for key in (top.id, "top"):
        with pytest.raises(LayerUsedByImage):
            store.delete_layer(key)
    container = store.create_container(image=image.id)
    with pytest.raises(LayerUsedByContainer):
        store.delete_layer(container.layer)
    assert len(store.layers()) == 3


def test_delete_image_takes_only_layers_nothing_else_needs(store):
    base = store.create_layer()
    left = store.create_layer(parent=base.id)
    right = store.create_layer(parent=base.id)
    first = store.create_image(names=["first"], layer=left.id)
    store.create_image(names=["second"], layer=right.id)
    assert store.delete_image("first", commit=False) == [left.id]
    assert store.image("first") == first
    assert store.delete_image("first") == [left.id]
    assert store.delete_image("second") == [right.id, base.id]
    assert subvolumes(store) == set()


def test_delete_image_on_the_layer_of_a_container_leaves_the_container(store):
    container = store.create_container(names=["web"])
    store.create_image(names=["of-web"], layer=container.layer)
    assert store.delete_image("of-web") == []
    assert store.layer(container.layer).id == container.layer
    assert store.check() == []


def test_delete_image_of_a_container_is_refused(store):
    image = store.create_image(layer=store.create_layer().id)
    container = store.create_container(image=image.id)
    with pytest.raises(ImageUsedByContainer):
        store.delete_image(image.id)
    store.delete_container(container.id)
    store.delete_image(image.id)
    assert subvolumes(store) == set()


def test_delete_container_takes_layer_and_directories(store):
    container = store.create_container(names=["web"], options=ContainerOptions(big_data=[BigData("k", b"v")]))
    store.container_directory("web").joinpath("state").write_text("x")
    run = store.container_run_directory("web")
    store.mount("web")
    store.delete_container("web")
    assert subvolumes(store) == set()
    assert not run.parent.exists()
    assert [p.name for p in table(store, "containers").parent.iterdir() if p.is_dir()] == []
    assert on_disk(store, "containers") == []
    mounts = json.loads((store.runroot / "btrfs-layers" / "mountpoints.json").read_bytes())
    assert mounts == []
    assert container.id not in {c.id for c in store.containers()}


def test_delete_without_checks_and_wipe(store):
    base = store.create_layer(names=["base"])
    store.create_layer(parent="base")
    store.create_image(names=["img"], layer="base")
    store.create_container(names=["web"], image="img")
    store.delete("img")
    assert store.images() == []
    store.delete("base")
    assert base.id not in subvolumes(store)
    store.wipe()
    assert (store.layers(), store.containers(), subvolumes(store)) == ([], [], set())


def test_delete_removes_nested_subvolumes(store):
    container = store.create_container()
    nested = store.layer_path(container.layer) / "nested"
    store.driver.create("ee" * 32)
    (store.graphroot / "btrfs" / "subvolumes" / ("ee" * 32)).rename(nested)
    store.delete_container(container.id)
    assert subvolumes(store) == set()


# -- containers ----------------------------------------------------------------------------------


def test_container_record_has_the_flags_tools_expect(store):
    image = store.create_image(layer=store.create_layer().id)
    container = store.create_container(image=image.id, options=ContainerOptions(volatile=True))
    assert on_disk(store, "containers") == [
        {
            "id": container.id,
            "image": image.id,
            "layer": container.layer,
            "created": container.created,
            "flags": {"MountLabel": "", "ProcessLabel": "", "Volatile": True},
        }
    ]
    assert store.layer(container.layer).parent == image.layer


def test_container_from_unknown_image_changes_nothing(store):
    with pytest.raises(ImageUnknown):
        store.create_container(image="nobody")
    image = store.create_image(layer=store.create_layer().id)
    edit(store, "layers", list.clear)
    with pytest.raises(LayerUnknown):
        store.create_container(image=image.id)
    assert store.containers() == []


# -- mounting ------------------------------------------------------------------------------------


def test_mount_counts_are_shared_and_forgotten_at_zero(store, options):
    container = store.create_container(names=["web"])
    path = store.mount("web")
    assert path == store.graphroot / "btrfs" / "subvolumes" / container.layer
    with Store(options) as other:
        assert other.mount("web") == path
        assert store.mounted("web") == 2
        mounts = json.loads((store.runroot / "btrfs-layers" / "mountpoints.json").read_bytes())
        assert mounts == [{"id": container.layer, "path": str(path), "count": 2}]
        assert other.unmount(str(path)) is True
    assert store.unmount("web") is False
    assert store.unmount("web") is False
    assert store.mounted("web") == 0


def test_shutdown_with_mounts_needs_force_and_ends(store):
    layer = store.create_layer()
    store.mount(layer.id)
    store.mount(layer.id)
    with pytest.raises(LayerUsedByContainer, match=layer.id):
        store.shutdown()
    assert store.shutdown(force=True) == [layer.id]
    assert store.mounted(layer.id) == 0
    assert len(store.storage_lock.token()) == 64


def test_mount_image_read_write_is_refused(store):
    image = store.create_image(layer=store.create_layer().id)
    with pytest.raises(BadValue):
        store.mount_image(image.id, ("rw",))
    store.mount_image(image.id)
    assert store.unmount_image(image.id) is False


def test_sizes(store):
    layer, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()))
    image = store.create_image(layer=layer.id, options=ImageOptions(big_data=[("k", b"12345")]))
    assert store.layer_size(layer.id) == BASE_TAR.stat().st_size
    assert store.image_size(image.id) == BASE_TAR.stat().st_size + 5
    container = store.create_container(image=image.id)
    store.set_container_directory_file(container.id, "f", b"x" * 1000)
    with_file = store.container_size(container.id)
    assert store.computed_diff_size(container.id) == store.driver.diff_size(
        container.layer, store.layer(container.layer).parent
    )
    store.set_container_directory_file(container.id, "f", b"x")
    assert with_file - store.container_size(container.id) == 999
