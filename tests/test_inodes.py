"""Numbers and lookup counts of synthetic nodes."""

from __future__ import annotations

from typing import Any

import pytest

from fsd.inodes import REAL_TREES, ROOT, Inodes
from fsd.nodes import Directory, Node


def _node(key: str) -> Node:
    subject: Any = object()
    return Node(Directory({}), subject, key, key)


@pytest.fixture
def inodes() -> Inodes:
    return Inodes(_node("/"))


def test_number_is_the_same_after_a_remount(inodes):
    first = inodes.remember(_node("/control"))
    assert Inodes(_node("/")).remember(_node("/control")) == first
    assert 1 < first < REAL_TREES


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
