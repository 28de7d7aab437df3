"""The trash when the process dies in the middle, or a step fails."""

from __future__ import annotations

import errno
from contextlib import closing

import pytest

from store.history import History
from store.trash import Trash
from tests.support.crash import crash

ID = "ab" * 32


@pytest.fixture
def objects(store, rootfs_tar):
    """A container with a private file, and an image of two layers, each made to be recognised."""
    container = store.create_container(names=["web"])
    (store.driver.path_of(container.layer) / "file").write_text("one")
    (store.container_directory(container.id) / "private").write_text("also")
    with rootfs_tar.open("rb") as archive:
        base, _ = store.put_layer(archive)
    top = store.create_layer(parent=base.id)
    image = store.create_image(names=["localhost/a:1"], layer=top.id)
    store.set_image_big_data(image.id, "notes", b"kept")
    return container, store.image(image.id)


def reopened(store):
    history = History(store)
    return closing(history.state), Trash(history)


def assert_whole(store, trash, objects) -> None:
    """Each object is in the store with all that is its own, or can be brought back so."""
    for entry in trash.list():
        trash.restore(entry.id)
    container, image = objects
    assert store.container("web") == container
    assert store.image("localhost/a:1") == image
    assert (store.driver.path_of(container.layer) / "file").read_text() == "one"
    assert (store.container_directory(container.id) / "private").read_text() == "also"
    assert store.image_big_data(image.id, "notes") == b"kept"
    assert store.check() == []
    assert_nothing_left(store, trash)


def assert_nothing_left(store, trash) -> None:
    assert list(trash.entries.root.parent.glob("trash/*")) == list(store.driver.aside().keys()) == []


STEPS = [
    "trash.entries.begin",
    "trash.entries.write",
    "trash.moves.drop_record",
    "trash.moves.sink",
    "trash.moves.aside.put",
    "trash.entries.advance",
]


@pytest.mark.parametrize("call", ["trash.remove_container('web')", "trash.remove_image('localhost/a:1')"])
@pytest.mark.parametrize("target", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_removal_that_died_is_ended_or_undone(
    store, objects, containers_storage, when, target, call
) -> None:
    crash(store, when, target, call)
    containers_storage("layers")  # other tools come first, and find a store that works
    state, trash = reopened(store)
    with state:
        assert trash.entries.ids("pending.json") == []
        dropped = STEPS.index("trash.moves.drop_record")
        removed = STEPS.index(target) > dropped or (when, target) == ("after", STEPS[dropped])
        assert len(trash.list()) == int(removed)
        assert_whole(store, trash, objects)


@pytest.mark.parametrize("call", ["trash.remove_container('web')", "trash.remove_image('localhost/a:1')"])
@pytest.mark.parametrize(
    "target",
    [
        "trash.entries.advance",
        "trash.moves.bring_back",
        "trash.moves.aside.take_back",
        "trash.moves.discard",
        "trash.entries.erase",
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_restoration_that_died_is_ended_or_undone(store, objects, when, target, call) -> None:
    state, trash = reopened(store)
    with state:
        eval(call)
    crash(store, when, target, "trash.restore(trash.list()[0].id)")
    state, trash = reopened(store)
    with state:
        assert trash.entries.ids("pending.json") == []
        assert_whole(store, trash, objects)


@pytest.mark.parametrize("target", ["trash.moves.discard", "trash.entries.erase", "trash.history.reap"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_purge_that_died_is_ended(store, objects, when, target) -> None:
    state, trash = reopened(store)
    with state:
        trash.history.take("web", "s")
        trash.remove_container("web")
    crash(store, when, target, "trash.purge(trash.list()[0].id)")
    state, trash = reopened(store)
    with state:
        assert trash.list() == ()
        assert_nothing_left(store, trash)
        assert list(store.driver.snapshots().keys()) == trash.history.state.snapshots() == []


@pytest.mark.parametrize("target", ["drop_record", "sink", "bring_back"])
@pytest.mark.parametrize("call", ["remove_container", "remove_image"])
def test_a_step_that_fails_leaves_the_object_where_it_was(store, objects, monkeypatch, target, call) -> None:
    state, trash = reopened(store)
    with state:
        remove, key = getattr(trash, call), "web" if call == "remove_container" else "localhost/a:1"
        entry = remove(key) if target == "bring_back" else None
        real = getattr(trash.moves, target)

        def failing(*args):
            real(*args)
            monkeypatch.undo()
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(trash.moves, target, failing)
        with pytest.raises(OSError, match="no space"):
            trash.restore(entry.id) if entry else remove(key)
        assert trash.list() == ()
        assert_whole(store, trash, objects)


def test_a_table_that_cannot_be_saved_leaves_the_object_where_it_was(store, objects, monkeypatch) -> None:
    state, trash = reopened(store)
    with state:

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr("store.segment.prepare", full)
        for remove, key in ((trash.remove_container, "web"), (trash.remove_image, "localhost/a:1")):
            with pytest.raises(OSError, match="no space"):
                remove(key)
        monkeypatch.undo()
        assert trash.list() == ()
        assert_whole(store, trash, objects)


@pytest.mark.parametrize("call", ["remove_container", "remove_image"])
def test_what_can_neither_go_on_nor_back_is_in_the_trash_after_a_while(
    store, objects, monkeypatch, call
) -> None:
    """The disk fills after the record has gone."""
    state, trash = reopened(store)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "no space")

    with state:
        monkeypatch.setattr(trash.moves, "sink", full)
        monkeypatch.setattr(trash.moves, "bring_back", full)
        with pytest.raises(OSError, match="no space"):
            getattr(trash, call)("web" if call == "remove_container" else "localhost/a:1")
        monkeypatch.undo()
        assert trash.list() == ()
        assert trash.expire() == ()
        (entry,) = trash.list()
        trash.restore(entry.id)
        assert_whole(store, trash, objects)
