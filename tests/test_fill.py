"""Filling an empty container from each kind of source, and what happens when it cannot be."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from store.errors import BadValue, ContainerUnknown, InUse, NoSuchSource, NotPristine
from store.fill import fill, resolve_source
from store.history import History
from store.oci import import_rootfs
from store.store import Store
from tests.support.crash import crash
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from store.records import Container, Image


@pytest.fixture
def image(store, rootfs_tar) -> Image:
    with open(rootfs_tar, "rb") as archive:
        return import_rootfs(store, archive, "base")


@pytest.fixture
def web(store) -> Container:
    return store.create_container(names=["web"])


def rootfs(store: Store, container: str) -> Path:
    return store.driver.get(store.container(container).layer)


def consistent(store: Store) -> None:
    """Every record's layer exists in the driver, and the driver holds no other."""
    layers = {layer.id for layer in store.layers()}
    assert layers == set(store.driver.layer_ids())
    assert {c.layer for c in store.containers()} <= layers
    assert not any(layer.incomplete for layer in store.layers())


def test_filling_from_an_image_gives_its_tree_and_sets_image_and_parent(store, image, web) -> None:
    filled = fill(store, "web", "base")
    assert (filled.id, filled.names, filled.created) == (web.id, ("web",), web.created)
    assert filled.image == image.id
    assert store.container("web") == filled
    assert store.layer(filled.layer).parent == image.layer
    assert snapshot_tree(rootfs(store, "web")) == snapshot_tree(store.driver.get(image.layer))
    assert store.container_by_layer(filled.layer).id == web.id
    consistent(store)


def test_a_filled_container_is_writable_and_the_image_stays(store, image, web) -> None:
    before = snapshot_tree(store.driver.get(image.layer))
    fill(store, "web", "base")
    (rootfs(store, "web") / "etc" / "hostname").write_text("changed\n")
    assert snapshot_tree(store.driver.get(image.layer)) == before


def test_filling_from_a_container_copies_its_present_state(store, image, web) -> None:
    other = store.create_container(names=["other"], image=image.id)
    (rootfs(store, "other") / "new").write_text("x")
    filled = fill(store, "web", "containers/other")
    assert snapshot_tree(rootfs(store, "web")) == snapshot_tree(rootfs(store, "other"))
    assert filled.image == image.id
    assert store.layer(filled.layer).parent == store.layer(other.layer).parent == image.layer
    assert [c.path for c in store.changes(filled.layer)] == [b"/new"]
    consistent(store)


@pytest.mark.parametrize("form", ["other/snapshots/s1", "containers/other/snapshots/s1", "other@s1"])
def test_filling_from_a_snapshot_copies_the_state_it_kept(store, history, image, web, form) -> None:
    store.create_container(names=["other"], image=image.id)
    (rootfs(store, "other") / "new").write_text("then")
    history.take("other", "s1")
    (rootfs(store, "other") / "new").write_text("now")
    filled = fill(store, "web", form)
    assert (rootfs(store, "web") / "new").read_text() == "then"
    assert filled.image == image.id
    (rootfs(store, "web") / "new").write_text("writable")
    consistent(store)


def test_filling_from_a_snapshot_of_a_container_that_is_gone(store, history, image, web) -> None:
    other = store.create_container(names=["other"], image=image.id)
    history.take("other", "s1")
    store.delete_container(other.id)
    filled = fill(store, "web", f"{other.id}/snapshots/s1")
    assert snapshot_tree(rootfs(store, "web")) == snapshot_tree(store.driver.get(image.layer))
    assert filled.image == ""


def test_filling_from_a_layer_makes_a_child_of_it(store, image, web) -> None:
    filled = fill(store, "web", f"layers/{image.layer[:12]}")
    assert store.layer(filled.layer).parent == image.layer
    assert filled.image == ""
    assert snapshot_tree(rootfs(store, "web")) == snapshot_tree(store.driver.get(image.layer))


def test_filling_from_a_containers_layer_is_filling_from_the_container(store, image, web) -> None:
    other = store.create_container(names=["other"], image=image.id)
    source = resolve_source(store, other.layer)
    assert source == resolve_source(store, "other")
    assert fill(store, "web", source).image == image.id


@pytest.mark.parametrize(
    "form",
    [
        "base",
        "localhost/base",
        "localhost/base:latest",
        "{id}",
        "{id:.6}",
        "{digest}",
        "images/base",
        " base\n",
        "/mnt/fsd/images/localhost/base:latest/rootfs/",
        "../../images/localhost/base:latest",
    ],
)
def test_an_image_is_found_in_every_form(store, image, form) -> None:
    text = form.format(id=image.id, digest=image.digest)
    assert resolve_source(store, text).image == image.id


@pytest.mark.parametrize(
    "form",
    ["", " ", "/", "nothing", "images/", "images/web", "web/snapshots/none", "web@", "../..", "@", "a\0b"],
)
def test_what_names_nothing_is_refused_and_changes_nothing(store, image, web, form) -> None:
    with pytest.raises(NoSuchSource):
        fill(store, "web", form)
    assert store.container("web") == web
    consistent(store)


def test_a_container_cannot_be_filled_from_itself(store, web) -> None:
    with pytest.raises(BadValue, match="itself"):
        fill(store, "web", "web")


def test_an_unknown_container_is_said_so(store, image) -> None:
    with pytest.raises(ContainerUnknown):
        fill(store, "nobody", "base")


def test_a_container_with_a_file_is_refused(store, image, web) -> None:
    (rootfs(store, "web") / "file").write_text("x")
    with pytest.raises(NotPristine, match="already has files"):
        fill(store, "web", "base")
    assert (rootfs(store, "web") / "file").read_text() == "x"
    assert store.container("web") == web
    consistent(store)


def test_a_filled_container_is_refused_even_when_it_was_emptied(store, image, web) -> None:
    fill(store, "web", "base")
    with pytest.raises(NotPristine, match="filled already"):
        fill(store, "web", "base")
    consistent(store)


def test_a_mounted_container_is_refused(store, image, web) -> None:
    store.mount(web.id)
    with pytest.raises(InUse, match="count 1"):
        fill(store, "web", "base")
    store.unmount(web.id)
    fill(store, "web", "base")


def test_the_names_of_the_layer_stay_with_the_container(store, image, web) -> None:
    store.set_names(web.layer, ["web-layer"])
    filled = fill(store, "web", "base")
    assert store.layer("web-layer").id == filled.layer


def test_a_copy_that_fails_leaves_the_container_as_it_was(store, image, web, monkeypatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.tables.containers, "lock", FailingStamp(store.tables.containers.lock))
    with pytest.raises(OSError, match="No space"):
        fill(store, "web", "base")
    monkeypatch.undo()
    assert store.container("web") == web
    assert store.layer(web.layer).names == ()
    consistent(store)
    fill(store, "web", "base")


class FailingStamp:
    """A lock that works until something is to be saved under it."""

    def __init__(self, lock: object) -> None:
        self._lock = lock

    def __getattr__(self, name: str) -> object:
        return getattr(self._lock, name)

    def stamp(self) -> bytes:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("target", "when", "filled"),
    [
        ("store.driver.create_read_write", "before", False),
        ("store.driver.create_read_write", "after", False),
        ("store.tables.layers.lock.stamp", "before", False),
        ("store.tables.layers.adopt", "after", False),
        ("store.tables.containers.lock.stamp", "before", False),
        ("store.tables.containers.adopt", "after", True),
        ("store.driver.remove", "before", True),
        ("store.driver.remove", "after", True),
    ],
)
def test_a_crash_while_filling_leaves_all_of_it_or_nothing(store, image, web, target, when, filled) -> None:
    crash(store, when, target, "fill(store, 'web', 'base', state=history.state)")
    options = store.options
    with Store(options) as again, closing(History(again).state) as state:
        assert state.pending() == []
        container = again.container("web")
        assert (container.image == image.id) is filled
        assert bool(os.listdir(again.driver.get(container.layer))) is filled
        consistent(again)
        assert len(again.layers()) == 2


def test_podman_and_containers_storage_see_the_filled_container(
    store, image, web, podman, containers_storage
) -> None:
    fill(store, "web", "base")
    listed = podman("ps", "-a", "--external", "--format", "{{.Names}} {{.Image}}").stdout
    assert "web localhost/base:latest" in listed
    assert "web" in containers_storage("containers").stdout
    containers_storage("delete-container", "web")
    consistent(store)
