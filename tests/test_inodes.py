"""Numbers and lookup counts of synthetic nodes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from fsd.inodes import ROOT, Inodes
from fsd.nodes import Directory, Node, Text
from fsd.plane import OURS

NAMES = [f"attribute{number}" for number in range(30)]
OBJECT = Directory({"inner": Directory({"deep": Text(str)}), **{name: Text(str) for name in NAMES}})


def _node(key: str) -> Node:
    subject: Any = object()
    return Node(Directory({}), subject, key, key)


@pytest.fixture
def inodes() -> Inodes:
    return Inodes(_node("/"))


def test_number_is_the_same_after_a_remount(inodes):
    first = inodes.remember(_node("/control"))
    assert Inodes(_node("/")).remember(_node("/control")) == first
    assert 1 < first < OURS


def test_forget_of_every_lookup_drops_the_node(inodes):
    number = inodes.remember(_node("/control"))
    inodes.remember(_node("/control"))
    inodes.forget([(number, 1)])
    assert inodes.node(number).key == "/control"
    inodes.forget([(number, 1)])
    with pytest.raises(KeyError):
        inodes.node(number)
    assert len(inodes) == 1


def test_forget_never_drops_the_root_and_ignores_strangers(inodes):
    inodes.forget([(ROOT, 99), (12345, 1)])
    assert inodes.node(ROOT).key == "/"


def test_remember_replaces_the_node_of_a_key(inodes):
    number = inodes.remember(_node("containers:1"))
    newer = _node("containers:1")
    inodes.remember(newer)
    assert inodes.node(number) is newer


def test_number_collision_is_probed(inodes, monkeypatch):
    monkeypatch.setattr(
        "fsd.inodes.hashlib.blake2b", lambda *_, **__: type("H", (), {"digest": lambda self: bytes(8)})()
    )
    first, second = inodes.remember(_node("a")), inodes.remember(_node("b"))
    assert first != second
    assert inodes.node(first).key == "a"
    assert inodes.node(second).key == "b"


def test_removed_directory_that_is_still_held_comes_back_with_another_generation(inodes):
    number = inodes.remember(_node("containers:1"))
    inodes.retire("containers:1")
    assert inodes.remember(_node("containers:1")) == number
    assert inodes.generation(number) == 1
    inodes.forget([(number, 2)])
    assert inodes.generation(number) == 0


def _object(key: str, path: str = "somewhere") -> Node:
    subject: Any = object()
    return Node(OBJECT, subject, key, path)


def _entry(node: Node, name: str) -> Node:
    found = node.kind.lookup(node, name)
    assert found is not None
    return found


def test_fixed_entry_is_made_again_from_its_directory(inodes):
    node = _object("containers:1", "containers/x")
    number = inodes.remember(_entry(node, "attribute3"))
    made = inodes.node(number)
    assert (made.kind, made.key, made.path) == (
        OBJECT.routes["attribute3"],
        "containers:1/attribute3",
        "containers/x/attribute3",
    )
    assert made.subject is node.subject


def test_fixed_entry_of_a_renamed_object_has_its_new_path(inodes):
    number = inodes.remember(_entry(_object("containers:1", "containers/x"), "attribute3"))
    inodes.remember(_object("containers:1", "containers/y"))
    assert inodes.node(number).path == "containers/y/attribute3"


def test_fixed_entries_are_found_by_key_at_any_depth(inodes):
    node = _object("containers:1")
    inner = _entry(node, "inner")
    deep = inodes.remember(_entry(inner, "deep"))
    assert inodes.find("containers:1/inner/deep") == deep
    assert inodes.find("containers:1/inner") is None
    assert inodes.find("containers:1") is None
    number = inodes.remember(inner)
    assert inodes.find("containers:1/inner") == number
    assert inodes.find("containers:1/unknown") is None


def test_fixed_entry_that_outlives_its_directory_is_dropped_by_its_own_lookups(inodes):
    node = _object("containers:1")
    number, entry = inodes.remember(node), inodes.remember(_entry(node, "attribute0"))
    inodes.remember(_entry(node, "attribute0"))
    inodes.forget([(number, 1)])
    with pytest.raises(KeyError):
        inodes.node(number)
    inodes.forget([(entry, 1)])
    assert inodes.node(entry).key == "containers:1/attribute0"
    inodes.forget([(entry, 1), (entry, 1)])
    with pytest.raises(KeyError):
        inodes.node(entry)
    assert len(inodes) == 1


def test_fixed_entries_have_numbers_of_their_own_that_a_remount_keeps(inodes):
    def all_of(held: Inodes) -> list[int]:
        found = []
        for key in ("containers:1", "layers:1"):
            node = _object(key)
            found += [held.remember(node), *(held.remember(entry) for _, entry in OBJECT.entries(node))]
        return found

    numbers = all_of(inodes)
    assert len(set(numbers)) == 2 * (1 + len(OBJECT.routes))
    assert all(1 < number < OURS for number in numbers)
    assert all_of(Inodes(_node("/"))) == numbers
    assert len(inodes) == 1 + len(numbers)


def test_a_fixed_entry_the_kernel_holds_takes_few_bytes(inodes):
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(700):
            node = _object(f"layers:{number:064}", f"layers/{number:064}")
            inodes.remember(node)
            for _, entry in OBJECT.entries(node):
                inodes.remember(entry)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(inodes) > 20_000
    assert held / len(inodes) < 64


def test_published_nodes_are_known_whoever_counts_their_lookups(inodes):
    """Those the plane counted are not known here any more from the time it releases the group."""
    node = _object("containers:1")
    number = inodes.publish(node)
    entry = inodes.number(_entry(node, "attribute3"))
    assert inodes.node(entry).key == "containers:1/attribute3"
    assert inodes.find("containers:1/attribute3") == entry
    inodes.forget([(number, 1), (entry, 1)])
    inodes.remember(_entry(node, "attribute3"))
    inodes.release([number])
    with pytest.raises(KeyError):
        inodes.node(number)
    assert inodes.node(entry).key == "containers:1/attribute3"
    inodes.forget([(entry, 1)])
    assert len(inodes) == 1
    with pytest.raises(KeyError):
        inodes.node(entry)


def test_published_directory_that_was_removed_keeps_its_generation_until_it_is_given_back(inodes):
    node = _node("containers:1")
    number = inodes.publish(node)
    inodes.retire("containers:1")
    inodes.remember(node)
    inodes.forget([(number, 1)])
    assert inodes.generation(number) == 1
    inodes.release([number])
    assert inodes.generation(number) == 0


def test_published_and_retracted_for_ever_leaves_nothing(inodes):
    for number in range(1000):
        node = _object(f"layers:{number % 7}")
        inodes.release([inodes.publish(node)])
    assert len(inodes) == 1
    assert len(inodes._groups) == 1
