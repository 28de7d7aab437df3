"""Additional read-only image stores, and stores on media that cannot be written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from drivers.errors import NotSupported
from store.config import StoreOptions
from store.errors import ImageUnknown, LockTimeout, NotALayer, NotAnImage, StoreReadOnly
from store.store import ImageOptions, Store
from tests.support import loops

BASE_TAR = Path(__file__).parent / "data" / "tables" / "base.tar"


@pytest.fixture(params=["btrfs", "vfs", "overlay"])
def two(request, btrfs_dir):
    """A store filled with one image, and a second store that has it as an additional one."""
    first = StoreOptions(
        graphroot=str(btrfs_dir / "first"),
        runroot=str(btrfs_dir / "r1"),
        driver=request.param,
        lock_timeout=10,
    )
    with Store(first) as store:
        layer, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()), names=["base"])
        data = ImageOptions(big_data=[("manifest", b"{}")])
        store.create_image(names=["img"], layer=layer.id, options=data)
        store.shutdown(force=True)
    second = replace(
        first,
        graphroot=str(btrfs_dir / "second"),
        runroot=str(btrfs_dir / "r2"),
        additional_image_stores=(first.graphroot,),
        driver_options=(f"{request.param}.imagestore={first.graphroot}",),
    )
    opened = Store(second)
    try:
        yield store, opened
    finally:
        opened.wipe()
        opened.shutdown(force=True)


def test_images_of_the_additional_store_are_listed_and_read(two):
    first, store = two
    image = store.image("img")
    assert image.read_only
    assert [i.id for i in store.images()] == [first.image("img").id]
    assert store.layer("base").read_only
    assert store.image_big_data("img", "manifest") == b"{}"
    assert store.images_by_digest(image.digest) == [image]
    assert store.layers_by_uncompressed_digest(store.layer("base").diff_digest)[0].id == image.layer
    assert store.layers_by_compressed_digest(store.layer("base").compressed_digest)[0].id == image.layer
    assert store.image_size("img") == first.image_size("img")


def test_nothing_of_the_additional_store_can_be_changed(two):
    _, store = two
    with pytest.raises(StoreReadOnly):
        store.set_names("img", ["other"])
    with pytest.raises(StoreReadOnly):
        store.set_metadata("base", "x")
    with pytest.raises(StoreReadOnly):
        store.set_image_big_data("img", "key", b"x")
    with pytest.raises(NotAnImage):
        store.delete_image("img")
    with pytest.raises(NotALayer):
        store.delete_layer("base")
    for mount in (lambda: store.mount("base"), lambda: store.mount_image("img")):
        with pytest.raises(StoreReadOnly, match="additional store"):
            mount()


def test_image_made_over_an_additional_one_takes_over_what_it_has(two):
    first, store = two
    other = first.image("img")
    options = ImageOptions(big_data=[("more", b"data")])
    made = store.create_image(id=other.id, names=["new"], layer=other.layer, options=options)
    assert (made.names, made.names_history) == (("img", "new"), ("new", "img"))
    assert (made.digest, made.created, made.layer) == (other.digest, other.created, other.layer)
    assert not store.image("new").read_only
    assert [i.id for i in store.images()] == [other.id]
    assert store.image_big_data("new", "manifest") == b"{}"
    assert store.image_big_data("new", "more") == b"data"
    store.set_names("new", ["only"])
    assert store.image(other.id).names == ("only",)
    store.delete_image("only")
    assert store.image(other.id).names == ("img",)
    assert store.check() == []


def test_container_over_an_additional_image(two):
    first, store = two
    container = store.create_container(names=["web"], image="img")
    path = store.mount("web")
    expected = {p.name for p in first.driver.get(first.layer("base").id).iterdir()}
    first.driver.put(first.layer("base").id)
    assert {p.name for p in path.iterdir()} == expected
    (path / "new").write_text("x")
    assert store.unmount("web") is False
    assert [c.path for c in store.changes("web")] == [b"/new"]
    store.delete_container(container.id)
    assert store.layers()[0].read_only
    assert first.check() == []


def test_primary_image_hides_an_additional_one_of_the_same_name(two):
    _, store = two
    own = store.create_image(names=["img"])
    assert store.image("img") == own


def test_store_on_read_only_media_can_be_read_only(btrfs_dir):
    options = StoreOptions(graphroot=str(btrfs_dir / "g"), runroot=str(btrfs_dir / "r"), driver="vfs")
    with Store(options) as store:
        layer, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()), names=["base"])
        store.create_image(names=["img"], layer=layer.id)
    graphroot = btrfs_dir / "g"
    subprocess.run(["mount", "--bind", graphroot, graphroot], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", graphroot], check=True)
        with Store(options, lazy=True) as store:
            assert store.read_only
            assert store.image("img").layer == layer.id
            with pytest.raises(ImageUnknown):
                store.image("nobody")
            for change in (store.create_layer, store.wipe, lambda: store.set_names("img", [])):
                with pytest.raises(StoreReadOnly):
                    change()
    finally:
        subprocess.run(["umount", graphroot], check=True)
    assert os.access(graphroot, os.W_OK)


def test_btrfs_store_on_another_filesystem_is_listed_but_not_built_upon(btrfs_dir, run_dir):
    with loops.loop_mount(run_dir, "elsewhere", mkfs=("mkfs.btrfs", "-q"), size=256 << 20) as point:
        first = StoreOptions(graphroot=str(point / "g"), runroot=str(point / "r"), driver="btrfs")
        with Store(first) as store:
            layer = store.create_layer(names=["base"])
            store.create_image(names=["img"], layer=layer.id)
            store.shutdown(force=True)
        second = StoreOptions(
            graphroot=str(btrfs_dir / "g"),
            runroot=str(btrfs_dir / "r"),
            driver="btrfs",
            driver_options=(f"btrfs.imagestore={first.graphroot}",),
        )
        with Store(second) as store:
            assert store.image("img").read_only
            with pytest.raises(NotSupported, match="another filesystem"):
                store.create_container(names=["web"], image="img")
            assert store.containers() == []
            assert store.check() == []
            store.shutdown(force=True)


def test_additional_store_locked_by_another_process_is_waited_for_with_a_bound(two):
    first, store = two
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    lock = first.tables.layers.lock.path
    with subprocess.Popen(
        [sys.executable, "-c", script, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert store.image("img").read_only, "reading needs no lock"
        reading = store.additional[0].layers.reading(0.1)
        with pytest.raises(LockTimeout, match=rf"process {holder.pid} \("), reading:
            pass
        holder.stdin.close()
        holder.wait()
    with store.additional[0].layers.reading(10) as layers:
        assert layers.view.by_name("base") is not None
