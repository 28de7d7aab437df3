"""One store used by fsd and by the real containers-storage and podman, in turn and at once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from drivers.idmap import IDMap
from store.config import StoreOptions
from store.errors import LayerHasChildren
from store.records import INCOMPLETE
from store.store import ContainerOptions, ImageOptions, LayerOptions, Store

TABLES = Path(__file__).parent / "data" / "tables"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def store(store_dirs):
    options = StoreOptions(
        graphroot=str(store_dirs.graphroot), runroot=str(store_dirs.runroot), driver="btrfs", lock_timeout=30
    )
    with Store(options) as store:
        yield store


def listed(tool, command: str) -> list[dict[str, object]]:
    return json.loads(tool(command, "--json").stdout or "null") or []


def put_base(store: Store, **options):
    with open(TABLES / "base.tar", "rb") as archive:
        return store.put_layer(archive, **options)[0]


def test_they_list_what_we_made(store, containers_storage):
    base = put_base(store, names=["base"])
    image = store.create_image(
        names=["localhost/x:1"], layer="base", options=ImageOptions(big_data=[("k", b"v")])
    )
    container = store.create_container(names=["web"], image=image.id, metadata="text")
    layers = listed(containers_storage, "layers")
    assert [layer["id"] for layer in layers] == [base.id, container.layer]
    assert layers[0]["diff-digest"] == base.diff_digest
    assert [i["names"] for i in listed(containers_storage, "images")] == [["localhost/x:1"]]
    assert [c["names"] for c in listed(containers_storage, "containers")] == [["web"]]
    assert containers_storage("get-image-data", "localhost/x:1", "k").stdout == "v"
    assert containers_storage("metadata", "-q", "web").stdout.strip() == "text"
    assert containers_storage("exists", "web").returncode == 0


def test_they_export_our_layer_byte_for_byte(store, containers_storage, tmp_path):
    base = put_base(store)
    containers_storage("diff", "-u", "-f", str(tmp_path / "out.tar"), base.id)
    assert hashlib.sha256((tmp_path / "out.tar").read_bytes()).hexdigest() == base.diff_digest[7:]


def test_we_export_their_layer_byte_for_byte(store, containers_storage):
    layer_id = containers_storage(
        "import-layer", "-f", str(TABLES / "base.tar"), "-n", "theirs"
    ).stdout.split()[0]
    layer = store.layer("theirs")
    assert layer.id == layer_id
    with store.diff("theirs") as stream:
        assert stream.read() == (TABLES / "base.tar").read_bytes()


def test_both_record_the_same_layer_the_same_way(store, containers_storage):
    containers_storage("import-layer", "-f", str(TABLES / "base.tar"), "-n", "theirs")
    put_base(store, names=["ours"])
    theirs, ours = json.loads((store.graphroot / "btrfs-layers" / "layers.json").read_bytes())
    for record in (theirs, ours):
        assert record.pop("id")
        assert record.pop("created")
        assert record.pop("names")
    assert list(theirs.items()) == list(ours.items())


def test_they_remove_what_we_made(store, containers_storage):
    put_base(store, names=["base"])
    store.create_image(names=["localhost/x:1"], layer="base")
    store.create_container(names=["web"], image="localhost/x:1")
    store.container_directory("web")
    containers_storage("delete-container", "web")
    containers_storage("delete-image", "localhost/x:1")
    assert (store.layers(), store.images(), store.containers()) == ([], [], [])
    assert list((store.graphroot / "btrfs" / "subvolumes").iterdir()) == []


def test_we_remove_what_they_made(store, containers_storage):
    containers_storage("import-layer", "-f", str(TABLES / "base.tar"), "-n", "base")
    containers_storage("create-image", "-n", "img", store.layer("base").id)
    containers_storage("create-container", "-n", "web", "img")
    containers_storage("set-layer-data", "-f", str(TABLES / "layers.lock"), "base", "KEY")
    assert store.layer_big_data("base", "KEY") == (TABLES / "layers.lock").read_bytes()
    with pytest.raises(LayerHasChildren):
        store.delete_layer("base")
    store.delete_container("web")
    store.delete_image("img")
    for command in ("layers", "images", "containers"):
        assert listed(containers_storage, command) == []
    assert list((store.graphroot / "btrfs" / "subvolumes").iterdir()) == []


def test_names_metadata_and_data_set_by_either_are_seen_by_both(store, containers_storage):
    container = store.create_container(names=["gone"])
    containers_storage("add-names", "-n", "b", "gone")
    containers_storage("set-metadata", "-m", "theirs", "gone")
    containers_storage("set-container-data", "-f", str(TABLES / "layers.lock"), "gone", "Key")
    assert store.names("gone") == ["gone", "b"]
    assert store.metadata("b") == "theirs"
    assert store.container_big_data("gone", "Key") == (TABLES / "layers.lock").read_bytes()
    store.set_names("b", ["c"])
    assert containers_storage("get-names", container.id).stdout.split() == ["c"]
    assert containers_storage("get-names", "gone", check=False).returncode != 0


def test_names_history_is_theirs(store, containers_storage):
    ours, theirs = store.create_image(names=["a"]), store.create_image(names=["b"])
    for names in (["x", "y"], ["y", "z"], ["w"]):
        store.set_names(ours.id, [f"our{name}" for name in names])
        flags = [argument for name in names for argument in ("-n", f"their{name}")]
        containers_storage("set-names", *flags, theirs.id)
    our_history = [name.removeprefix("our") for name in store.image(ours.id).names_history]
    assert our_history == [name.removeprefix("their") for name in store.image(theirs.id).names_history]


def test_mount_counts_are_shared(store, containers_storage):
    container = store.create_container(names=["web"])
    path = store.mount("web")
    assert containers_storage("mounted", "web").stdout.strip() == "web mounted"
    assert containers_storage("mount", "web").stdout.strip() == str(path)
    assert store.mounted("web") == 2
    containers_storage("unmount", "web")
    assert store.unmount("web") is False
    assert containers_storage("mounted", container.id).stdout == ""


def test_incomplete_layer_without_subvolume_breaks_them_until_we_opened_the_store(store, containers_storage):
    layer = store.create_layer(names=["kept"])
    path = store.graphroot / "btrfs-layers" / "layers.json"
    records = json.loads(path.read_bytes())
    records.append({"id": "ab" * 32, "created": layer.created, "flags": {INCOMPLETE: True}})
    path.write_text(json.dumps(records))
    assert containers_storage("layers", check=False).returncode != 0
    store.clean_incomplete()
    assert [i["id"] for i in listed(containers_storage, "layers")] == [layer.id]


def test_mapped_container_is_shaped_as_theirs(store, containers_storage):
    put_base(store, names=["base"])
    image = store.create_image(names=["img"], layer="base")
    maps = (IDMap(0, 300000, 65536),)
    ours = store.create_container(
        names=["ours"], image="img", options=ContainerOptions(uidmap=maps, gidmap=maps)
    )
    mapped = store.image("img").mapped_layers
    assert len(mapped) == 1
    containers_storage(
        "create-container", "-n", "theirs", "--uidmap", "0:300000:65536", "--gidmap", "0:300000:65536", "img"
    )
    assert store.image("img").mapped_layers == mapped
    theirs = store.container("theirs")
    assert (theirs.uidmap, theirs.gidmap, theirs.image) == (ours.uidmap, ours.gidmap, image.id)
    our_layer, their_layer = store.layer(ours.layer), store.layer(theirs.layer)
    assert (
        (our_layer.parent, our_layer.uidmap) == (their_layer.parent, their_layer.uidmap) == (mapped[0], maps)
    )
    root = store.layer_path(ours.layer)
    assert root.stat().st_uid == 300000
    for name in ("ours", "theirs"):
        containers_storage("delete-container", name)
    containers_storage("delete-image", "img")
    assert store.layers() == []


def test_podman_lists_runs_and_removes_what_we_made(store, podman, rootfs_tar):
    from store.oci import import_rootfs

    with open(rootfs_tar, "rb") as archive:
        image = import_rootfs(store, archive, "web:1")
    store.create_container(names=["made-by-us"], image=image.id)
    assert image.id[:12] in podman("images", "-q").stdout
    assert "made-by-us" in podman("ps", "-a", "--external").stdout
    assert podman("run", "--rm", "web:1", "echo", "hello").stdout == "hello\n"
    podman("create", "--name", "theirs", "web:1", "sh")
    assert store.container("theirs").image == image.id
    podman("tag", "web:1", "other:2")
    assert set(store.names(image.id)) == {"localhost/web:1", "localhost/other:2"}
    podman("rm", "theirs")
    store.delete_container("made-by-us")
    podman("rmi", "--all")
    assert (store.layers(), store.images()) == ([], [])


WORKER = """
    import sys
    from store.config import StoreOptions
    from store.store import Store

    graphroot, runroot, name, turns = sys.argv[1:]
    store = Store(StoreOptions(graphroot=graphroot, runroot=runroot, driver="btrfs", lock_timeout=60))
    for turn in range(int(turns)):
        container = store.create_container(names=[f"{name}-{turn}"], image="img")
        store.set_container_big_data(container.id, "turn", str(turn).encode())
        store.set_names(container.id, [f"{name}-{turn}-renamed"])
        if turn % 2:
            store.delete_container(f"{name}-{turn}-renamed")
"""


def test_two_processes_of_ours_and_theirs_at_once_lose_nothing(store, containers_storage):
    put_base(store, names=["base"])
    store.create_image(names=["img"], layer="base")
    turns = 12
    argv = [sys.executable, "-c", textwrap.dedent(WORKER), str(store.graphroot), str(store.runroot)]
    workers = [
        subprocess.Popen([*argv, name, str(turns)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    theirs = []
    for turn in range(turns):
        made = containers_storage("create-container", "-n", f"they-{turn}", "img").stdout.split()[0]
        theirs.append(made)
        containers_storage("layers")
        if turn % 3 == 0:
            containers_storage("delete-container", theirs.pop())
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    ours = {f"{name}-{turn}-renamed" for name in ("one", "two") for turn in range(0, turns, 2)}
    names = {name for container in store.containers() for name in container.names}
    assert names == ours | {f"they-{turn}" for turn in range(turns) if turn % 3}
    layers = {layer.id for layer in store.layers()}
    assert layers == set(store.driver.layer_ids())
    assert {c.layer for c in store.containers()} < layers
    assert sorted(str(c["id"]) for c in listed(containers_storage, "containers")) == sorted(
        c.id for c in store.containers()
    )


def test_template_layer_is_the_shape_they_make(store, containers_storage):
    put_base(store, names=["base"])
    copy = store.create_layer(options=LayerOptions(template="base"))
    record = next(i for i in listed(containers_storage, "layers") if i["id"] == copy.id)
    assert record["diff-digest"] == store.layer("base").diff_digest
