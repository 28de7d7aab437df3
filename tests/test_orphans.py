"""Orphans: found whoever made them, never mistaken, and gone only on purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import closing
from dataclasses import replace

import pytest

from store.config import StoreOptions
from store.errors import InUse, OrphanUnknown, Pinned
from store.history import History
from store.orphans import Orphans
from store.store import Store
from store.trash import Trash

MIB = 1 << 20
MINUTE, DAY = 60 * 10**9, 24 * 3600 * 10**9
STRAY = "ab" * 32


@pytest.fixture
def orphans(trash):
    return Orphans(trash.history, trash)


def later() -> int:
    return time.time_ns() + 2 * MINUTE


@pytest.fixture
def soon(monkeypatch):
    """Two minutes later, for everything that asks the clock itself."""
    now = later()
    monkeypatch.setattr("store.orphans.time.time_ns", lambda: now)


def make_stray(store, name=STRAY, mebibytes=0):
    path = store.graphroot / "btrfs/subvolumes" / name
    subprocess.run(["btrfs", "-q", "subvolume", "create", path], check=True)
    (path / "file").write_bytes(os.urandom(mebibytes * MIB))
    return path


def kinds(orphans) -> list[tuple[str, str]]:
    return [(o.kind, o.key) for o in orphans.list(later())]


def test_a_store_in_order_has_none(store, trash, orphans, rootfs_tar) -> None:
    with rootfs_tar.open("rb") as archive:
        layer, _ = store.put_layer(archive)
    store.create_image(names=["localhost/a:1"], layer=layer.id)
    store.create_container(names=["web"])
    trash.history.take("web", "s")
    trash.remove_container("web")
    trash.remove_image("localhost/a:1")
    assert kinds(orphans) == []


def test_a_subvolume_without_a_record_is_one(store, orphans, soon) -> None:
    before = time.time_ns()
    path = make_stray(store, mebibytes=2)
    make_stray(store, "by-hand")
    first, second = sorted(orphans.list(), key=lambda o: o.id)
    assert (first.id, first.key, first.kind, first.ours, first.path) == (STRAY, STRAY, "layer", False, path)
    assert "killed" in first.reason
    assert "by hand" in second.reason
    assert before - 3 * MINUTE <= first.born_ns <= before
    assert first.size is None
    assert orphans.measure(STRAY) == 2 * MIB
    assert orphans.get(STRAY).size == 2 * MIB


def test_one_that_is_being_made_is_left_out_at_first(store, orphans) -> None:
    make_stray(store)
    assert orphans.list() == ()
    with pytest.raises(OrphanUnknown):
        orphans.reap(STRAY)
    assert kinds(orphans) == [("layer", STRAY)]


def test_what_somebody_unpacks_is_none(store, orphans, rootfs_tar) -> None:
    with rootfs_tar.open("rb") as archive, store.prepare_staged_layer(archive):
        assert kinds(orphans) == []


def test_layers_are_no_orphans_when_their_table_cannot_be_read(store, orphans) -> None:
    store.create_layer()
    (store.table_directory("layers") / "layers.json").write_text("[{")
    assert kinds(orphans) == []


def test_reaping_takes_that_one_only(store, orphans, soon) -> None:
    layer = store.create_layer()
    make_stray(store)
    make_stray(store, "other")
    assert orphans.reap(STRAY).key == STRAY
    assert sorted(store.driver.layer_ids()) == sorted([layer.id, "other"])
    with pytest.raises(OrphanUnknown):
        orphans.reap(STRAY)
    with pytest.raises(OrphanUnknown):
        orphans.reap(layer.id)


def test_one_that_got_a_record_meanwhile_is_not_reaped(store, orphans, soon, monkeypatch) -> None:
    make_stray(store)
    found = orphans.get(STRAY)
    store.driver.remove(STRAY)
    store.create_layer(id=STRAY)
    monkeypatch.setattr(orphans, "get", lambda *_: found)
    with pytest.raises(OrphanUnknown, match="record"):
        orphans.reap(STRAY)
    assert store.layer(STRAY).id == STRAY
    assert store.driver.exists(STRAY)


def test_one_somebody_works_in_is_not_reaped(store, orphans, soon) -> None:
    path = make_stray(store)
    with subprocess.Popen(["sleep", "60"], cwd=path) as process:
        try:
            with pytest.raises(InUse, match=str(process.pid)):
                orphans.reap(STRAY)
        finally:
            process.kill()
    assert path.is_dir()


def test_snapshots_of_a_container_podman_removed_are_ours(store, trash, orphans, containers_storage) -> None:
    container = store.create_container(names=["web"])
    (store.driver.path_of(container.layer) / "file").write_bytes(os.urandom(MIB))
    trash.history.take("web", reason="write")
    containers_storage("delete-container", "web")
    (orphan,) = orphans.list()
    assert (orphan.kind, orphan.id, orphan.ours, orphan.path) == ("snapshots", container.id, True, None)
    assert orphans.measure(orphan.id) == MIB
    assert orphans.reap_ours() == ()
    assert orphans.reap_ours(orphan.born_ns + DAY) == (replace(orphan, size=MIB),)
    assert kinds(orphans) == []
    assert list(store.driver.snapshots().keys()) == []


@pytest.mark.parametrize("pinned", [True, False])
def test_snapshots_a_person_wanted_go_only_when_asked(
    store, trash, orphans, containers_storage, pinned
) -> None:
    container = store.create_container(names=["web"])
    name = trash.history.take("web", None if pinned else "mine").name
    trash.history.pin("web", name, pinned)
    containers_storage("delete-container", "web")
    assert orphans.reap_ours(time.time_ns() + 2 * DAY) == ()
    if pinned:
        with pytest.raises(Pinned):
            orphans.reap(container.id)
        trash.history.pin(container.id, name, False)
    orphans.reap(container.id)
    assert kinds(orphans) == []


def test_layers_set_aside_without_an_entry_are_ours(store, trash, orphans) -> None:
    store.create_container(names=["web"])
    entry = trash.remove_container("web")
    shutil.rmtree(trash.entries.root / entry.id)
    (orphan,) = orphans.list()
    assert (orphan.kind, orphan.ours) == ("aside", True)
    assert "/" not in orphan.id
    assert orphan.path.is_dir()
    assert orphans.measure(orphan.id) == 0
    assert [o.id for o in orphans.reap_ours(time.time_ns() + 2 * DAY)] == [orphan.id]
    assert list(store.driver.aside().keys()) == []


def test_layers_nobody_proved_to_be_ours_stay_until_asked_for(store, orphans) -> None:
    make_stray(store)
    assert orphans.reap_ours(time.time_ns() + 30 * DAY) == ()
    assert store.driver.exists(STRAY)


def test_what_a_killed_build_left_is_found(store, orphans, buildah, podman, rootfs_tar, btrfs_dir) -> None:
    """buildah's working container outlives its kill as a container; without records it is an orphan."""
    podman("import", rootfs_tar, "localhost/base:1")
    name = buildah("from", "localhost/base:1").stdout.strip()
    assert kinds(orphans) == []
    layer = store.container(name).layer
    for table in ("layers", "containers"):
        (store.table_directory(table) / f"{table}.json").write_text("[]")
    found = dict.fromkeys(key for _, key in kinds(orphans))
    assert layer in found
    assert len(found) == 2


def test_nothing_is_an_orphan_where_the_driver_sets_nothing_aside(btrfs_dir) -> None:
    options = StoreOptions(graphroot=str(btrfs_dir / "vg"), runroot=str(btrfs_dir / "vr"), driver="vfs")
    with Store(options) as store:
        history = History(store)
        with closing(history.state):
            orphans = Orphans(history, Trash(history))
            store.create_layer()
            assert kinds(orphans) == []
            (store.graphroot / "vfs/dir" / STRAY).mkdir()
            assert kinds(orphans) == [("layer", STRAY)]
