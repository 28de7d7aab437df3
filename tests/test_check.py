"""Each way in which a store can be damaged is found, named and repaired."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from store.check import CheckOptions, Kind, RepairOptions
from store.config import StoreOptions
from store.records import INCOMPLETE
from store.store import BigData, ContainerOptions, ImageOptions, Store

BASE_TAR = Path(__file__).parent / "data" / "tables" / "base.tar"
OTHER = "ab" * 32
NOW = CheckOptions(unreferenced_age=0)
THOROUGH = CheckOptions(digests=True)


@pytest.fixture
def store(store_dirs):
    options = StoreOptions(
        graphroot=str(store_dirs.graphroot), runroot=str(store_dirs.runroot), driver="btrfs", lock_timeout=10
    )
    with Store(options) as store:
        layer, _ = store.put_layer(io.BytesIO(BASE_TAR.read_bytes()), names=["base"])
        store.create_image(
            names=["img"],
            layer=layer.id,
            options=ImageOptions(big_data=[("manifest", b"{}"), ("config", b"[]")]),
        )
        big = ContainerOptions(big_data=[BigData("key", b"value")])
        store.create_container(names=["web"], image="img", options=big)
        yield store


def edit(store: Store, name: str, change) -> None:
    path = store.table_directory(name) / f"{name}.json"
    records = json.loads(path.read_bytes())
    change(records)
    path.write_text(json.dumps(records))


def kinds(problems) -> list[Kind]:
    return [problem.kind for problem in problems]


def test_sound_store_has_no_problems(store):
    assert store.check(THOROUGH) == []
    assert store.check(NOW) == []
    assert store.garbage_collect() == []


def test_unaccounted_content_and_leftovers_are_collected(store):
    store.driver.create(OTHER)
    homes = [store.table_directory(kind) / OTHER for kind in ("layers", "images", "containers")]
    for home in homes:
        home.mkdir()
        (home / "file").write_text("x")
    split = store.table_directory("layers") / f"{OTHER}.tar-split.gz"
    split.touch()
    temporary = store.table_directory("images") / ".tmp-images.json123"
    temporary.touch()
    os.utime(temporary, (0, 0))
    young = store.table_directory("images") / ".tmp-images.json456"
    young.touch()
    foreign = store.table_directory("layers") / "someone-elses"
    foreign.mkdir()
    found = store.check()
    assert kinds(found) == [Kind.LEFTOVER] * 5 + [Kind.UNACCOUNTED_LAYER]
    removed = store.garbage_collect()
    assert set(removed) == {OTHER, str(split), str(temporary), *map(str, homes)}
    assert store.check() == []
    assert young.exists()
    assert foreign.exists()


def test_layer_without_content_is_repaired_with_all_that_needs_it(store):
    store.driver.remove(store.layer("base").id)
    found = store.check()
    assert kinds(found) == [Kind.LAYER_WITHOUT_DATA]
    left = store.repair(found)
    assert kinds(left) == [Kind.LAYER_WITHOUT_DATA], "a container is in the way"
    assert store.container("web")
    assert store.repair(found, RepairOptions(remove_containers=True)) == []
    assert store.multi_list() == ([], [], [])


def test_modified_layer_is_found_by_digest_only_when_asked(store):
    path = store.layer_path("base")
    victim = next(p for p in path.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size)
    victim.write_bytes(b"?" * victim.stat().st_size)
    assert store.check() == []
    found = store.check(THOROUGH)
    assert kinds(found) == [Kind.MODIFIED_LAYER]
    assert "content differs from the layer's archive" in found[0].text
    assert store.repair(found, RepairOptions(remove_containers=True)) == []


def test_wrong_recorded_digest_is_found(store):
    edit(store, "layers", lambda records: records[0].update({"diff-digest": "sha256:" + "0" * 64}))
    assert kinds(store.check(THOROUGH)) == [Kind.MODIFIED_LAYER]


def test_missing_parent_image_and_layer_are_found(store):
    def change(records):
        records[1]["parent"] = OTHER

    edit(store, "layers", change)
    edit(store, "containers", lambda records: records[0].update(image=OTHER))
    found = store.check()
    assert kinds(found) == [Kind.MISSING_PARENT, Kind.MISSING_IMAGE]
    edit(store, "images", lambda records: records[0].update({"layer": OTHER, "mapped-layers": ["cd" * 32]}))
    edit(store, "containers", lambda records: records[0].update(layer=OTHER))
    assert kinds(store.check()).count(Kind.MISSING_LAYER) == 3


def test_damaged_big_data_is_found_and_image_goes(store):
    home = store.table_directory("images") / store.image("img").id
    (home / "config").write_bytes(b"()")
    found = store.check()
    assert kinds(found) == [Kind.BAD_DATA]
    assert "digest" in found[0].text
    (home / "config").write_bytes(b"longer")
    assert "6 bytes" in store.check()[0].text
    (home / "config").unlink()
    assert kinds(store.check()) == [Kind.BAD_DATA]
    store.delete_container("web")
    assert store.repair(store.check()) == []
    assert store.images() == []
    assert len(store.layers()) == 1
    assert kinds(store.check(NOW)) == [Kind.UNREFERENCED_LAYER]
    assert store.check() == [], "young layers are left in peace"
    store.repair(store.check(NOW))
    assert store.layers() == []


def test_damaged_big_data_of_layers_and_containers_is_found(store):
    store.set_layer_big_data("base", "key", b"value")
    item = store.table_directory("layers") / store.layer("base").id / "key"
    item.unlink()
    (found,) = store.check()
    assert (found.kind, found.table) == (Kind.BAD_DATA, "layers")
    item.write_bytes(b"value")
    other = store.table_directory("containers") / store.container("web").id / "key"
    other.write_bytes(b"VALUE")
    (found,) = store.check()
    assert (found.kind, found.table) == (Kind.BAD_DATA, "containers")
    assert "digest" in found.text
    other.write_bytes(b"value")
    assert store.check() == []


def test_broken_records_are_dropped_and_unfinished_layers_finished(store):
    edit(store, "images", lambda records: records.append({"id": OTHER, "names": 1}))
    edit(store, "layers", lambda records: records.append({"id": OTHER, "flags": {INCOMPLETE: True}}))
    found = store.check()
    assert kinds(found) == [Kind.INCOMPLETE_LAYER, Kind.BROKEN_RECORD]
    assert store.repair(found) == []
    assert store.check() == []
    assert len(json.loads((store.table_directory("images") / "images.json").read_bytes())) == 1


def test_unreadable_table_is_reported_and_nothing_is_touched(store):
    path = store.table_directory("layers") / "layers.json"
    path.write_text("[{")
    found = store.check()
    assert Kind.UNREADABLE_TABLE in kinds(found)
    assert Kind.UNACCOUNTED_LAYER not in kinds(found)
    assert Kind.LEFTOVER not in kinds(found)
    assert store.repair(found) == found
    assert path.read_text() == "[{"
    assert len(set(store.driver.layer_ids())) == 2
