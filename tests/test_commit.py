"""Committing containers to images that podman runs."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from drivers.btrfs_ioctl import create_subvolume
from drivers.errors import IntegrityError
from store.commit import commit
from store.errors import BadName, BadRecord, BadValue, ContainerUnknown
from store.fill import fill
from store.oci import config_document, import_rootfs
from store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def base(store, rootfs_tar):
    with open(rootfs_tar, "rb") as archive:
        return import_rootfs(store, archive, "base", config={"Env": ["PATH=/bin", "A=b"], "User": "web"})


@pytest.fixture
def changed(store, base):
    """A container of ``base`` with a file added, one changed and one deleted."""
    store.create_container(names=["c"])
    container = fill(store, "c", "base")
    root = store.driver.get(container.layer)
    (root / "added").write_text("new\n")
    (root / "etc" / "os-release").write_text("changed\n")
    (root / "srv" / "empty").unlink()
    return container


def test_podman_runs_what_was_committed(store, changed, podman) -> None:
    image = commit(store, "c", "mine:1", comment="by hand")
    assert image.names == ("localhost/mine:1",)
    script = "cat /added /etc/os-release; test ! -e /srv/empty && echo gone; id -un; echo $A"
    assert podman("run", "--rm", "mine:1", "sh", "-c", script).stdout == "new\nchanged\ngone\nweb\nb\n"
    assert "by hand" in podman("history", "mine:1").stdout
    assert podman("diff", "mine:1", "base").returncode == 0


def test_the_image_has_its_bases_layers_and_config_and_one_layer_more(store, base, changed) -> None:
    image = commit(store, "c", config={"Cmd": ["/bin/true"], "Env": None}, author="A")
    top = store.layer(image.layer)
    assert top.parent == base.layer
    document = config_document(store, image)[1]
    assert document["rootfs"]["diff_ids"] == [store.layer(base.layer).diff_digest, top.diff_digest]
    assert document["config"] == {"User": "web", "Cmd": ["/bin/true"]}
    assert document["author"] == "A"
    assert [entry["created_by"] for entry in document["history"]] == ["fsd import", "fsd commit"]
    manifest = json.loads(store.image_big_data(image.id, "manifest"))
    assert [layer["digest"] for layer in manifest["layers"]] == document["rootfs"]["diff_ids"]
    assert {c.path: c.kind.value for c in store.changes(image.layer)} == {
        b"/added": "A",
        b"/etc": "C",
        b"/etc/os-release": "C",
        b"/srv": "C",
        b"/srv/empty": "D",
    }


def test_the_container_and_its_image_stay_as_they_were(store, base, changed) -> None:
    before = store.container("c"), store.image(base.id)
    commit(store, "c", "mine")
    assert (store.container("c"), store.image(base.id)) == before


def test_a_name_moves_to_the_committed_image(store, base, changed) -> None:
    image = commit(store, "c", "base")
    assert store.image("localhost/base:latest").id == image.id
    assert store.image(base.id).names == ()


def test_a_container_made_from_nothing_becomes_a_one_layer_image(store, podman, rootfs_tar) -> None:
    container = store.create_container(names=["scratch"])
    (store.driver.get(container.layer) / "file").write_text("x")
    image = commit(store, "scratch", "scratch")
    assert store.layer(image.layer).parent == ""
    (shown,) = json.loads(podman("inspect", "localhost/scratch:latest").stdout)
    assert shown["Config"]["Cmd"] == ["/bin/sh"]


def test_a_container_filled_from_a_layer_keeps_the_layers_below(store, base) -> None:
    store.create_container(names=["c"])
    fill(store, "c", f"layers/{base.layer}")
    image = commit(store, "c")
    assert [layer.id for layer in store.catalog().chain(image.layer)] == [base.layer, image.layer]


def test_a_layer_that_was_not_made_from_an_archive_cannot_be_built_upon(store) -> None:
    layer = store.create_layer()
    store.create_container(names=["c"])
    fill(store, "c", layer.id)
    with pytest.raises(BadRecord, match=layer.id[:12]):
        commit(store, "c")
    assert store.images() == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"container": "nobody"}, ContainerUnknown),
        ({"name": "Bad"}, BadName),
        ({"config": {"Cmd": 1}}, BadValue),
    ],
)
def test_bad_arguments_are_refused_and_make_nothing(store, changed, arguments, error) -> None:
    before = store.layers(), store.images()
    with pytest.raises(error):
        commit(store, **({"container": "c"} | arguments))
    assert (store.layers(), store.images()) == before


@contextmanager
def at_opening_of(name: bytes, act: Callable[[], object]) -> Iterator[None]:
    """Call ``act`` before the first file of that name is opened in the block, by an audit hook."""
    left = [act]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and arguments[0] == name and left:
            left.pop()()

    sys.addaudithook(hook)
    try:
        yield
    finally:
        left.clear()


@pytest.mark.parametrize("driver", ["btrfs", "vfs"])
def test_a_container_that_goes_while_it_is_read_becomes_no_image(options, driver) -> None:
    with Store(replace(options, driver=driver)) as store:
        root = store.driver.get(store.create_container(names=["c"]).layer)
        if driver == "btrfs":  # with one in it the files are read from where they live
            create_subvolume(root, "own")
        for name in ("first", "second"):
            (root / name).write_text(name)
        removal = at_opening_of(b"first", lambda: store.delete_container("c"))
        with removal, pytest.raises((ContainerUnknown, IntegrityError)):
            commit(store, "c", "mine")
        assert (store.layers(), store.images()) == ([], [])
