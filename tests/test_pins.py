"""Pins: what they protect, from whom, and for how long."""

from __future__ import annotations

import io
from contextlib import closing

import pytest

from store.errors import BadValue, Pinned
from store.history import History
from store.pins import Pins


@pytest.fixture
def pins(store):
    history = History(store)
    with closing(history.state):
        yield history.pins


def test_a_pin_lasts_until_it_is_taken_away(store, pins) -> None:
    assert not pins.is_pinned("images", "i")
    pins.pin("images", "i")
    first = pins.pinned_ns("images", "i")
    pins.pin("images", "i")
    assert first == pins.pinned_ns("images", "i") != 0
    assert Pins(History(store).state).all() == {("images", "i")}
    pins.unpin("images", "i")
    pins.unpin("images", "i")
    assert pins.all() == frozenset()
    assert pins.pinned_ns("images", "i") is None


def test_what_cannot_be_pinned_is_said_so(pins) -> None:
    with pytest.raises(BadValue, match="volumes"):
        pins.pin("volumes", "v")


@pytest.mark.parametrize("remove", ["delete", "delete_layer", "delete_container", "delete_image", "wipe"])
def test_every_way_of_removal_spares_a_pinned_object(store, pins, remove) -> None:
    layer = store.create_layer()
    image = store.create_image(names=["localhost/a:1"], layer=layer.id)
    free = store.create_layer()
    container = store.create_container(names=["web"])
    doomed = {
        "delete": [("containers", container.id), ("images", image.id), ("layers", free.id)],
        "delete_layer": [("layers", free.id)],
        "delete_container": [("containers", container.id)],
        "delete_image": [("images", image.id)],
        "wipe": [("layers", free.id)],
    }
    before = store.catalog().stamp
    for kind, object_id in doomed[remove]:
        pins.pin(kind, object_id)
        with pytest.raises(Pinned, match="pinned"):
            store.wipe() if remove == "wipe" else getattr(store, remove)(object_id)
        assert store.catalog().stamp == before
        pins.unpin(kind, object_id)
        if remove != "wipe":
            getattr(store, remove)(object_id)
            assert not store.exists(object_id)
            before = store.catalog().stamp


def test_an_image_keeps_a_layer_that_is_pinned(store, pins) -> None:
    base = store.create_layer()
    top = store.create_layer(parent=base.id)
    image = store.create_image(layer=top.id)
    pins.pin("layers", base.id)
    with pytest.raises(Pinned, match=base.id[:12]):
        store.delete_image(image.id)
    assert {r.id for r in (*store.layers(), *store.images())} == {base.id, top.id, image.id}


def test_a_pin_does_not_bind_other_tools(store, pins, containers_storage) -> None:
    layer, _ = store.put_layer(io.BytesIO(bytes(1024)))
    container = store.create_container(names=["web"])
    pins.pin("containers", container.id)
    pins.pin("layers", layer.id)
    containers_storage("delete-container", "web")
    containers_storage("delete-layer", layer.id)
    assert store.catalog().container(container.id) is None
    assert pins.all() == {("layers", layer.id), ("containers", container.id)}


def test_deleting_history_with_a_container_respects_its_pin(store, pins) -> None:
    history = History(store)
    container = store.create_container(names=["web"])
    history.take("web", "a")
    pins.pin("containers", container.id)
    with closing(history.state), pytest.raises(Pinned):
        history.delete_container("web")
    assert [s.name for s in history.list("web")] == ["a"]
