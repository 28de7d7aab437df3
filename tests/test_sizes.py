"""Figures: right, cached, renewed when something changed, and read without a walk."""

from __future__ import annotations

import itertools
import os
import time
from contextlib import closing

import pytest

from store.config import StoreOptions
from store.errors import ImageUnknown, LayerUnknown, TrashUnknown
from store.fill import fill
from store.history import History
from store.sizes import Refreshed, Sizes, own_layers
from store.store import Store
from store.trash import Trash

MIB = 1 << 20
DAY = 24 * 3600 * 10**9


@pytest.fixture
def sizes(trash):
    return Sizes(trash.history, trash)


@pytest.fixture
def image(store):
    """base (4 MiB) under top (2 MiB)."""
    base = store.create_layer()
    write(store, base.id, "a", 4)
    top = store.create_layer(parent=base.id)
    write(store, top.id, "b", 2)
    return store.create_image(names=["localhost/a:1"], layer=top.id)


def write(store, layer_id: str, name: str, mebibytes: int) -> None:
    (store.driver.path_of(layer_id) / name).write_bytes(os.urandom(mebibytes * MIB))


def test_an_image_frees_what_its_layers_share_with_each_other_only(store, sizes, image) -> None:
    figures = sizes.measure("images", image.id)
    assert (figures.exclusive, figures.freed, figures.method) == (6 * MIB, 6 * MIB, "extents")
    single = [sizes.measure("layers", layer.id) for layer in store.catalog().chain(image.layer)]
    assert [f.exclusive for f in single] == [0, 2 * MIB]
    assert [f.shared for f in single] == [4 * MIB, 4 * MIB]
    assert [f.size for f in single] == [4 * MIB, 6 * MIB]


def test_a_container_frees_its_snapshots_as_well(store, trash, sizes, image) -> None:
    store.create_container(names=["web"])
    fill(store, "web", "localhost/a:1")
    container = store.container("web")
    write(store, container.layer, "c", 3)
    trash.history.take("web", "s")
    write(store, container.layer, "c", 1)
    figures = sizes.measure("containers", container.id)
    assert (figures.exclusive, figures.shared, figures.freed) == (1 * MIB, 6 * MIB, 4 * MIB)
    assert sizes.measure("images", image.id).freed == 0
    assert sizes.together(images=[image.id], containers=[container.id]) == 10 * MIB
    entry = trash.remove_container("web")
    assert sizes.measure("trash", entry.id).freed == 4 * MIB
    assert sizes.together(trash=[entry.id]) == 4 * MIB


def test_nothing_is_measured_before_somebody_does(store, sizes, image) -> None:
    assert sizes.get("images", image.id) is None
    assert sizes.all() == {}
    for kind, error in (("images", ImageUnknown), ("layers", LayerUnknown), ("trash", TrashUnknown)):
        with pytest.raises(error):
            sizes.measure(kind, "nobody")


def test_refreshing_measures_only_what_changed(store, trash, sizes, image) -> None:
    store.create_container(names=["web"])
    fill(store, "web", "localhost/a:1")
    container = store.container("web")
    assert (sizes.refresh(60).measured, sizes.refresh(60).measured) == (5, 0)
    known = sizes.get("layers", image.layer)
    assert known is not None
    assert abs(known.measured_ns - time.time_ns()) < 60 * 10**9
    write(store, container.layer, "c", 1)
    os.sync()
    assert sizes.refresh(60).measured == 2
    assert sizes.get("containers", container.id).exclusive == 1 * MIB
    assert sizes.get("layers", image.layer) == known
    trash.history.take("web", "s")
    assert sizes.refresh(60).measured == 1
    assert sizes.get("containers", container.id).exclusive == 0
    assert sizes.get("containers", container.id).freed == 1 * MIB
    assert sizes.refresh(60, now_ns=time.time_ns() + DAY).measured == 5


def test_a_budget_is_kept_and_the_next_call_goes_on(store, sizes, monkeypatch) -> None:
    layers = sorted(store.create_layer().id for _ in range(5))
    assert sizes.refresh(0.0) == Refreshed(measured=0, left=5)
    ticking = itertools.count()
    monkeypatch.setattr("store.sizes.time.monotonic", lambda: float(next(ticking)))
    assert sizes.refresh(3.0) == Refreshed(measured=2, left=3)
    assert sizes.refresh(3.0) == Refreshed(measured=2, left=3)
    write(store, layers[-1], "a", 1)
    os.sync()
    assert sizes.refresh(3.0).measured == 1  # all that are known are looked at in turn
    assert [sizes.refresh(2.0).left for _ in range(5)] == [4] * 5
    assert sizes.get("layers", layers[-1]).size == MIB


def test_what_is_gone_is_forgotten(store, trash, sizes, image) -> None:
    sizes.refresh(60)
    entry = trash.remove_image(image.id)
    sizes.refresh(60)
    assert set(sizes.all()) == {("trash", entry.id)}
    assert sizes.get("trash", entry.id).freed == 6 * MIB
    trash.purge(entry.id)
    sizes.refresh(60)
    assert sizes.all() == {}


def test_a_broken_object_keeps_no_other_from_being_measured(store, sizes) -> None:
    broken, good = store.create_layer(), store.create_layer()
    store.driver.remove(broken.id)
    assert sizes.refresh(60).measured == 1
    assert set(sizes.all()) == {("layers", good.id)}


def test_figures_survive_the_process_but_not_the_state(store, trash, sizes, image) -> None:
    sizes.refresh(60)
    other = History(store)
    with closing(other.state):
        assert Sizes(other, Trash(other)).all() == sizes.all() != {}
    trash.history.state.close()
    for path in store.graphroot.glob("fsd/state.db*"):
        path.unlink()
    assert sizes.all() == {}


def test_reading_never_looks_at_a_layer(store, sizes, image, monkeypatch) -> None:
    sizes.refresh(60)

    def walked(*args, **kwargs):
        raise AssertionError("a walk")

    for name in ("freed", "ownership", "read_write_disk_usage", "present", "get"):
        monkeypatch.setattr(store.driver, name, walked)
    assert sizes.get("images", image.id).freed == 6 * MIB
    assert len(sizes.all()) == 3


def test_a_driver_that_cannot_tell_says_nothing_about_sharing(btrfs_dir) -> None:
    options = StoreOptions(graphroot=str(btrfs_dir / "vg"), runroot=str(btrfs_dir / "vr"), driver="vfs")
    with Store(options) as store:
        layer = store.create_layer()
        write(store, layer.id, "a", 1)
        history = History(store)
        with closing(history.state):
            sizes = Sizes(history, Trash(history))
            assert sizes.refresh(60).measured == 1
            figures = sizes.get("layers", layer.id)
            assert (figures.size, figures.exclusive, figures.method) == (MIB, None, "unknown")
            assert sizes.together(images=[store.create_image(layer=layer.id).id]) is None


def test_only_layers_nothing_else_needs_belong_to_a_removal(store, image) -> None:
    chain = [layer.id for layer in store.catalog().chain(image.layer)]
    assert own_layers(store.catalog(), [image.id], ()) == chain[::-1]
    other = store.create_image(layer=chain[0])
    assert own_layers(store.catalog(), [image.id], ()) == [chain[1]]
    assert own_layers(store.catalog(), [other.id], ()) == []
    assert sorted(own_layers(store.catalog(), [other.id, image.id], ())) == sorted(chain)
    container = store.create_container(image=image.id)
    assert own_layers(store.catalog(), [image.id, other.id], ()) == []
    doomed = own_layers(store.catalog(), [image.id, other.id], [container.id])
    assert sorted(doomed) == sorted([*chain, container.layer])
    assert doomed[0] == container.layer
