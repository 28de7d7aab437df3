"""Tables other tools wrote or damaged, failing saves, crashes and many threads."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from store import records, replacing
from store.config import StoreOptions
from store.errors import (
    BadRecord,
    DuplicateID,
    LayerUnknown,
    LockTimeout,
)
from store.records import INCOMPLETE, MountPoint
from store.store import Store
from tests.support.tables import edit, on_disk, subvolumes, table

BASE_TAR = Path(__file__).parent / "data" / "tables" / "base.tar"
UNUSED_ID = "ab" * 32


# -- tables others wrote -------------------------------------------------------------------------


def test_unknown_keys_of_others_survive_our_writes(store):
    layer = store.create_layer()
    edit(store, "layers", lambda records: records[0].update({"x-new": {"a": [1]}}))
    store.set_names(layer.id, ["n"])
    store.create_layer()
    assert on_disk(store, "layers")[0]["x-new"] == {"a": [1]}


def test_malformed_record_is_set_aside_and_kept(store):
    layer = store.create_layer(names=["good"])
    edit(store, "layers", lambda records: records.insert(0, {"id": UNUSED_ID, "names": 7}))
    catalog = store.catalog()
    assert [i.id for i in catalog.layers] == [layer.id]
    assert [(b.table, b.id) for b in catalog.broken] == [("layers", UNUSED_ID)]
    with pytest.raises(DuplicateID):
        store.create_layer(id=UNUSED_ID)
    store.create_layer()
    assert on_disk(store, "layers")[0] == {"id": UNUSED_ID, "names": 7}


def test_table_that_cannot_be_parsed_is_never_overwritten(store):
    store.create_layer()
    store.create_image(names=["img"])
    table(store, "layers").write_text('[{"id": "half')
    assert store.layers() == []
    assert store.image("img").names == ("img",)
    assert store.catalog().broken[0].id == "layers.json"
    with pytest.raises(BadRecord, match=r"layers\.json"):
        store.create_layer()
    assert table(store, "layers").read_text() == '[{"id": "half'
    store.set_names("img", ["other"])


def test_duplicate_names_belong_to_the_later_record_and_are_repaired(store):
    store.create_layer(names=["a"])
    second = store.create_layer(names=["b"])
    edit(store, "layers", lambda records: records[1].update(names=["b", "a"]))
    assert store.layer("a").id == second.id
    store.create_layer()
    assert "names" not in on_disk(store, "layers")[0]


def test_duplicate_id_counts_once(store):
    layer = store.create_layer(names=["a"])
    edit(store, "layers", lambda records: records.append({"id": layer.id, "names": ["z"]}))
    assert [i.names for i in store.layers()] == [("a",)]
    assert store.catalog().broken[0].id == layer.id


def test_volatile_records_are_read_and_changed_where_they_are(store):
    layer = store.create_layer()
    path = table(store, "layers").with_name("volatile-layers.json")
    table(store, "layers").rename(path)
    assert store.layer(layer.id).volatile
    store.set_names(layer.id, ["v"])
    assert json.loads(path.read_bytes())[0]["names"] == ["v"]
    store.create_layer(names=["stable"])
    assert [record["names"] for record in on_disk(store, "layers")] == [["stable"]]


def test_incomplete_layers_are_hidden_and_removed_with_or_without_content(store, options):
    kept = store.create_layer(names=["kept"])
    broken = store.create_layer(names=["half"])

    def flag(records):
        records[1]["flags"] = {INCOMPLETE: True}
        records.append({"id": UNUSED_ID, "flags": {INCOMPLETE: True}})
        records.append({"id": "cd" * 32, "flags": {INCOMPLETE: True}})

    edit(store, "layers", flag)
    assert [i.id for i in store.catalog().layers] == [kept.id]
    with pytest.raises(LayerUnknown):
        store.layer("half")
    with Store(options) as opened:
        assert [i.id for i in opened.layers()] == [kept.id]
    assert subvolumes(store) == {kept.id}
    assert broken.id not in {record["id"] for record in on_disk(store, "layers")}


def test_stamp_changes_before_data_and_only_with_it(store):
    before = store.tables.images.lock.token()
    image = store.create_image(names=["a"])
    after = store.tables.images.lock.token()
    assert len(after) == 64
    assert before != after
    store.set_names(image.id, ["a"])  # the history changes
    again = store.tables.images.lock.token()
    store.set_names(image.id, ["a"])  # nothing does
    assert store.tables.images.lock.token() == again != after
    store.create_layer()
    layers = store.tables.layers.lock.token()
    mounts = store.tables.layers.mounts.lock.token()
    store.create_layer()
    assert store.tables.layers.lock.changed(layers)
    assert not store.tables.layers.mounts.lock.changed(mounts)


def test_failed_save_undoes_the_layer(store, monkeypatch):
    store.create_layer(names=["first"])
    before = table(store, "layers").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("store.segment.prepare", full)
    for make in (store.create_layer, store.create_container):
        with pytest.raises(OSError, match="No space"):
            make()
    monkeypatch.undo()
    assert table(store, "layers").read_bytes() == before
    assert len(subvolumes(store)) == 1
    assert [i.names for i in store.layers()] == [("first",)]


@pytest.mark.parametrize("where", ["store.segment.prepare", "store.replacing.put_in_place"])
def test_failed_container_save_takes_the_layer_back(store, monkeypatch, where):
    name = "prepare" if where.endswith("prepare") else "put_in_place"
    real = getattr(replacing, name)

    def full_for_containers(what, *args, **kwargs):
        if getattr(what, "path", what).name == "containers.json":
            raise OSError(28, "No space left on device")
        return real(what, *args, **kwargs)

    monkeypatch.setattr(where, full_for_containers)
    with pytest.raises(OSError, match="No space"):
        store.create_container()
    monkeypatch.undo()
    assert (store.layers(), store.containers(), subvolumes(store)) == ([], [], set())
    assert not list(store.graphroot.glob("btrfs-*/.tmp-*"))


def test_lock_held_by_another_thread_times_out_and_names_us(store_dirs):
    options = StoreOptions(
        graphroot=str(store_dirs.graphroot), runroot=str(store_dirs.runroot), driver="btrfs", lock_timeout=0.2
    )
    store = Store(options)
    caught: list[Exception] = []

    def attempt() -> None:
        try:
            store.create_layer()
        except LockTimeout as error:
            caught.append(error)

    with store.tables.images.lock.reading(), store.tables.layers.lock.writing():
        thread = threading.Thread(target=attempt)
        thread.start()
        assert store.layers() == []  # reading takes no lock
        thread.join(10)
    assert "layers.lock" in str(caught[0])


def test_many_threads_on_one_store(store):
    image = store.create_image(layer=store.create_layer().id)
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                container = store.create_container(names=[f"{number}-{turn}"], image=image.id)
                assert store.container(container.id) == container
                store.delete_container(container.id)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(subvolumes(store)) == 1


def test_table_of_contents_digest_of_newer_tools_is_found(store):
    layer = store.create_layer()
    edit(store, "layers", lambda records: records[0].update({"toc-digest": "sha256:t"}))
    assert [i.id for i in store.layers_by_toc_digest("sha256:t")] == [layer.id]
    with pytest.raises(LayerUnknown):
        store.layers_by_toc_digest("sha256:u")


def test_mount_point_records_of_unknown_layers_are_dropped(store):
    draft = [MountPoint(id=UNUSED_ID, path="/nowhere", count=3)]
    path = store.runroot / "btrfs-layers" / "mountpoints.json"
    path.write_text(json.dumps([{"id": m.id, "path": m.path, "count": m.count} for m in draft]))
    store.create_layer()
    assert path.read_bytes() == b"[]"


def test_our_own_saves_are_not_read_again_by_those_who_look_meanwhile(store, monkeypatch):
    """A reader between the new file and the end of its save sees the table before, without parsing."""
    layer = store.create_layer()
    store.catalog()
    parsed = []
    monkeypatch.setattr(store.tables.layers, "_parse", lambda *args: parsed.append(args))
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            assert store.catalog().layer(layer.id) is not None

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(20):
        store.set_names(layer.id, [f"n{number}"])
    done.set()
    looking.join()
    assert not parsed
    assert not store.saving
    assert store.catalog().layer(layer.id).names == ("n19",)


# -- what is not read or written again ---------------------------------------------------------------


def test_reader_without_lock_never_sees_old_files_with_a_new_view(store):
    """The files and what they mean are replaced as one object: a view always has its own files' time."""
    table = store.tables.layers
    store.create_layer()
    wrong: list[object] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            segments, view = table._loaded
            if max(segment.state.mtime_ns for segment in segments) != view.changed_ns:
                wrong.append(view)
            if len(segments[0].items) != len(view):
                wrong.append(segments)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(30):
        store.create_layer()
    edit(store, "layers", lambda records: records.pop())
    store.layers()
    ended.set()
    thread.join(60)
    assert wrong == []


def test_peer_change_is_read_by_what_changed(store, options, monkeypatch):
    made = [store.create_layer(names=[f"n{number}"]) for number in range(6)]
    assert len(store.layers()) == 6
    decoded: list[str] = []
    real = records.decode

    def counted(cls, value, *marks):
        decoded.append(value["id"])
        return real(cls, value)

    monkeypatch.setattr("store.table.decode", counted)
    with Store(options) as peer:
        peer.layers()
        decoded.clear()
        new = peer.create_layer(names=["é"])
        peer.set_names(made[2].id, ["other"])
        peer.delete_layer(made[4].id)
    assert [layer.id for layer in store.layers()] == [i.id for i in (*made[:4], made[5], new)]
    assert sorted(decoded) == sorted([made[2].id, made[3].id, made[5].id, new.id])
    assert store.layer(made[2].id).names == ("other",)
    store.create_layer()
    with Store(options) as fresh:
        assert fresh.layers() == store.layers()


def test_large_table_keeps_its_beginning_when_records_are_added(store, options):
    """More than what is copied at once, with text of several bytes a character, at every kind of change."""
    first = store.create_layer(names=["é" * 100_000])
    layers = [store.create_layer(names=[f"ü{number}"]) for number in range(3)]
    store.set_names(layers[2].id, ["ö" * 5000])
    store.delete_layer(layers[1].id)
    store.create_container(names=["c"])
    with Store(options) as fresh:
        assert fresh.layers() == store.layers()
        assert fresh.layer(first.id).names == ("é" * 100_000,)
    store.set_names(first.id, ["short"])
    data = table(store, "layers").read_bytes()
    assert json.loads(data)[0]["names"] == ["short"]
    with Store(options) as fresh:
        assert fresh.layers() == store.layers()
