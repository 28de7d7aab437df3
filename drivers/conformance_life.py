"""Conformance: making, mounting and removing layers, and what must be refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from drivers import conformance_trees as trees
from drivers import syscalls
from drivers.base import DEFAULT_CREATION, Creation, Driver
from drivers.conformance_harness import BASE, CHILD, Harness, check, raises
from drivers.errors import BadLayerID, BadOption, DriverError, LayerExists, LayerMounted, LayerUnknown
from drivers.idmap import IDMap, IDMappings
from drivers.usage import tree_usage

BAD_IDS = ("", ".", "..", "a/b", "/", "nul\0byte", "x" * 256, "é" * 128)


@check()
def layers_are_listed_until_they_are_removed(harness: Harness) -> None:
    """``exists`` and ``layer_ids`` follow creation and removal, for any possible ID."""
    driver = harness.driver
    wanted = {"x" * 255, "plain", "with space", "caf\udce9"} | {f"{n:064x}" for n in range(20)}
    for layer_id in wanted:
        driver.create(layer_id)
    assert set(driver.layer_ids()) == wanted
    assert all(driver.exists(layer_id) for layer_id in wanted)
    for layer_id in wanted:
        driver.remove(layer_id)
        assert not driver.exists(layer_id)
    assert not list(driver.layer_ids())


@check()
def removing_a_child_leaves_its_parent(harness: Harness) -> None:
    """A parent does not suffer from its child's removal."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    harness.driver.create(CHILD, BASE)
    harness.driver.remove(CHILD)
    harness.same(BASE)


@check()
def mounts_are_counted(harness: Harness) -> None:
    """A layer stays usable until the last ``put``; one too many is harmless."""
    harness.driver.create(BASE)
    harness.driver.create(CHILD, BASE)
    first, second = harness.driver.get(CHILD), harness.driver.get(CHILD)
    assert first == second
    harness.driver.put(CHILD)
    (second / "written after the first put").touch()
    harness.driver.put(CHILD)
    harness.driver.put(CHILD)
    with harness.driver.mounted(CHILD) as root:
        assert [entry.name for entry in root.iterdir()] == ["written after the first put"]


@check()
def mount_is_released_when_its_block_raises(harness: Harness) -> None:
    """``mounted`` puts in every case."""
    harness.driver.create(BASE)
    with raises(ZeroDivisionError), harness.driver.mounted(BASE):
        raise ZeroDivisionError
    harness.driver.remove(BASE)


@check()
def status_and_metadata_are_text(harness: Harness) -> None:
    """Both are made for people."""
    harness.driver.create(BASE)
    status = harness.driver.status()
    assert status
    assert all(isinstance(part, str) and part for pair in status for part in pair), status
    facts = harness.driver.metadata(BASE)
    assert all(isinstance(part, str) for pair in facts.items() for part in pair), facts


@check()
def disk_usage_of_a_base_layer_is_that_of_its_tree(harness: Harness) -> None:
    """Bytes and inodes as a walk counts them, and current after a write."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files, trees.links_and_names, trees.sparse_files)
    assert harness.driver.read_write_disk_usage(BASE) == tree_usage(harness.oracle)
    before = harness.driver.read_write_disk_usage(BASE)
    harness.apply(BASE, _write_more)
    after = harness.driver.read_write_disk_usage(BASE)
    assert (after.size - before.size, after.inodes - before.inodes) == (12345, 1)


def _write_more(root: Path) -> None:
    (root / "more").write_bytes(bytes(12345))


@check()
def cleanup_may_be_repeated_and_layers_stay(harness: Harness) -> None:
    """Cleaning up costs no data and may be done again."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    harness.driver.cleanup()
    harness.driver.cleanup()
    harness.same(BASE)


@check()
def many_threads_create_and_remove_children(harness: Harness) -> None:
    """A driver object may be shared by threads."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    _in_threads(8, lambda number: _rounds(harness.driver, number))
    assert list(harness.driver.layer_ids()) == [BASE]


def _rounds(driver: Driver, number: int) -> None:
    for turn in range(5):
        layer_id = f"{number}-{turn}"
        driver.create(layer_id, BASE)
        with driver.mounted(layer_id) as root:
            (root / "file0").write_text(layer_id)
            assert (root / "file0").read_text() == layer_id
        driver.remove(layer_id)


@check()
def one_of_many_threads_wins_an_id(harness: Harness) -> None:
    """An ID is given once, whoever asks at the same time."""
    harness.driver.create(BASE)
    outcomes: list[str] = []

    def attempt(number: int) -> None:
        try:
            harness.driver.create(CHILD, BASE)
        except LayerExists:
            outcomes.append("exists")
        else:
            outcomes.append("created")

    _in_threads(8, attempt)
    assert sorted(outcomes) == ["created"] + ["exists"] * 7
    harness.driver.remove(CHILD)


def _in_threads(count: int, work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# -- what must fail ------------------


@check()
def impossible_ids_are_refused_everywhere(harness: Harness) -> None:
    """No operation accepts an ID that is no directory name."""
    driver = harness.driver
    driver.create(BASE)
    for bad in BAD_IDS:
        for call in (driver.create, driver.create_read_write, driver.remove, driver.get):
            with raises(BadLayerID):
                call(bad)
        with raises(BadLayerID):
            driver.create_from_template(bad, BASE)
        with raises(BadLayerID, LayerUnknown):
            driver.create(CHILD, bad)
        assert not driver.exists(bad)
    assert list(driver.layer_ids()) == [BASE]


@check()
def unknown_layers_are_named(harness: Harness) -> None:
    """A layer that is not there is an error that says which."""
    driver = harness.driver
    for call in (driver.get, driver.remove, driver.read_write_disk_usage):
        with raises(LayerUnknown, names="missing"):
            call("missing")
    with raises(LayerUnknown, names="missing"):
        driver.create(CHILD, "missing")
    with raises(LayerUnknown, names="missing"):
        driver.create_from_template(CHILD, "missing")
    driver.put("missing")
    assert not list(driver.layer_ids())


@check()
def existing_layer_is_not_made_again(harness: Harness) -> None:
    """A taken ID stays with its layer, which stays as it was."""
    harness.driver.create(BASE)
    harness.apply(BASE, trees.plain_files)
    for parent in (None, BASE):
        with raises(LayerExists, names=BASE):
            harness.driver.create(BASE, parent)
    harness.same(BASE)


@check()
def mounted_layer_is_not_removed(harness: Harness) -> None:
    """A layer someone has mounted is refused and keeps its content."""
    harness.driver.create(BASE)
    harness.driver.create(CHILD, BASE)
    root = harness.driver.get(CHILD)
    (root / "kept").touch()
    by_hand = not syscalls.is_mount_root(root)
    if by_hand:
        syscalls.mount(root, root, flags=syscalls.MS_BIND)
    try:
        with raises(LayerMounted, names=CHILD):
            harness.driver.remove(CHILD)
        assert (root / "kept").exists()
    finally:
        if by_hand:
            syscalls.umount(root)
        harness.driver.put(CHILD)
    harness.driver.remove(CHILD)


@check()
def layer_removed_behind_the_drivers_back_is_unknown(harness: Harness) -> None:
    """What another process removed is gone at once."""
    harness.driver.create(BASE)
    harness.driver.get(BASE)
    harness.driver.put(BASE)
    harness.open().remove(BASE)
    assert not harness.driver.exists(BASE)
    for call in (harness.driver.get, harness.driver.remove):
        with raises(LayerUnknown):
            call(BASE)
    with raises(LayerUnknown):
        harness.driver.create(CHILD, BASE)
    harness.driver.create(BASE)


@check()
def unknown_options_are_named(harness: Harness) -> None:
    """Driver and layer options are not ignored."""
    with raises(BadOption, names="nonsense"):
        harness.open({"nonsense": "1"})
    with raises(BadOption, names="nonsense"):
        harness.driver.create(BASE, creation=Creation(storage_opts={"nonsense": "1"}))
    assert not harness.driver.exists(BASE)


@check()
def failed_creation_leaves_nothing(harness: Harness) -> None:
    """A creation that fails half way leaves the disk as it was."""
    harness.driver.create(BASE)
    harness.apply(BASE, lambda root: os.chown(root, 5, 5))
    before = _names_below(harness.graphroot)
    narrow = IDMappings((IDMap(0, 1000, 1),), (IDMap(0, 1000, 1),))
    with raises(DriverError, OSError):  # owner 5 is none of a layer's under these mappings
        harness.driver.create_from_template(CHILD, BASE, creation=DEFAULT_CREATION,
                                            template_mappings=narrow)  # fmt: skip
    assert list(harness.driver.layer_ids()) == [BASE]
    assert _names_below(harness.graphroot) == before


def _names_below(root: Path) -> set[str]:
    found: set[str] = set()
    for directory, names, files in os.walk(root):
        found.update(os.path.join(directory, name) for name in names + files)
    return found
