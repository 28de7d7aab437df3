"""Every way to find changes gives one answer, and it is ``containers-storage changes``'.

An example is a batch of random edit scripts, each in a directory of its own of one pair of layers, so that
the peer is started once for all of them. ``FSD_EDIT_SCRIPTS`` asks for more scripts than the default.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from drivers.base import ChangeKind
from drivers.btrfs import BtrfsDriver
from drivers.changes import tree_changes
from tests.support.edits import START, apply_script, scripts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers.base import Change
    from tests.support.edits import Script
    from tests.support.tools import StoreDirs, Tool

BATCH = 12
EXAMPLES = -(-int(os.environ.get("FSD_EDIT_SCRIPTS", "312")) // BATCH)
KINDS = {0: ChangeKind.MODIFIED, 1: ChangeKind.ADDED, 2: ChangeKind.DELETED}
profile = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="FSD_EDIT_SCRIPTS" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
few = settings(profile, max_examples=max(EXAMPLES // 4, 1))


class Layers:
    """Pairs of layers that both the peer and our driver know."""

    def __init__(self, dirs: StoreDirs, tool: Tool) -> None:
        self.tool = tool
        self.tool("layers")
        self.driver = BtrfsDriver(dirs.graphroot / "btrfs")
        self._numbers = count(1)

    def create(self, parent: str | None = None) -> str:
        """A new layer, recorded by the peer."""
        layer_id = f"{next(self._numbers):064x}"
        self.tool("create-layer", "--id", layer_id, *([parent] if parent else []))
        return layer_id

    def expected(self, layer_id: str, parent: str) -> list[tuple[bytes, ChangeKind]]:
        """The peer's answer, sorted."""
        records = json.loads(self.tool("changes", "--json", layer_id, parent).stdout) or []
        return sorted(((r["Path"].encode(), KINDS[r["Kind"]]) for r in records), key=lambda pair: pair[0])

    def size(self, layer_id: str, parent: str) -> int:
        """The peer's ``diffsize``."""
        return int(self.tool("diffsize", layer_id, parent).stdout)

    def path(self, layer_id: str) -> Path:
        """A layer's directory."""
        return self.driver.present(layer_id)


@pytest.fixture
def layers(store_dirs: StoreDirs, containers_storage: Tool) -> Iterator[Layers]:
    made = Layers(store_dirs, containers_storage)
    try:
        yield made
    finally:
        made.driver.cleanup()


def pairs(changes: list[Change]) -> list[tuple[bytes, ChangeKind]]:
    return [(change.path, change.kind) for change in changes]


def batches(
    length: int, *, nesting: bool = False
) -> st.SearchStrategy[list[list[tuple[str, int, int, int]]]]:
    return st.lists(scripts(length, nesting=nesting), min_size=BATCH, max_size=BATCH)


def apply_all(root: Path, batch: list[Script], *, start: bool = False) -> None:
    for number, script in enumerate(batch):
        place = root / f"s{number:02}"
        place.mkdir(exist_ok=True)
        if start:
            apply_script(place, START)
        apply_script(place, script)


def check_all_ways(layers: Layers, new: str, old: str) -> None:
    expected = layers.expected(new, old)
    assert pairs(tree_changes(layers.path(new), layers.path(old))) == expected
    with ExitStack() as copies:
        pair = layers.driver.pair(copies, new, old)
        assert pair is not None
        assert pairs(pair.by_send()) == expected
        assert pairs(pair.by_generation()) == expected
        assert pairs(pair.by_walk()) == expected
    assert layers.driver.diff_size(new, old) == layers.size(new, old)
    assert not [*layers.driver.scratch.iterdir(), *layers.driver.older.iterdir()]
    event(f"about {len(expected) // 25 * 25} changes")


HARD_LINK_MOVED_AWAY: list[Script] = [[("write", 3, 0, 0), ("rename", 0, 8, 0)]]


@profile
@example(base=[[]], edits=HARD_LINK_MOVED_AWAY)
@given(base=batches(8), edits=batches(14))
def test_changes_of_random_edits_are_the_same_every_way(
    layers: Layers, base: list[Script], edits: list[Script]
) -> None:
    parent = layers.create()
    apply_all(layers.path(parent), base, start=True)
    child = layers.create(parent)
    apply_all(layers.path(child), edits)
    try:
        check_all_ways(layers, child, parent)
    finally:
        for layer_id in (child, parent):
            layers.driver.remove(layer_id)


@few
@given(base=batches(4), edits=batches(8), siblings=batches(8), later=batches(4))
def test_changes_between_siblings_and_changed_parents_are_the_same_every_way(
    layers: Layers, base: list[Script], edits: list[Script], siblings: list[Script], later: list[Script]
) -> None:
    parent = layers.create()
    apply_all(layers.path(parent), base, start=True)
    one, two = layers.create(parent), layers.create(parent)
    apply_all(layers.path(one), edits)
    apply_all(layers.path(two), siblings)
    apply_all(layers.path(parent), later)
    try:
        for new, old in ((one, two), (two, parent), (parent, one)):
            check_all_ways(layers, new, old)
    finally:
        for layer_id in (one, two, parent):
            layers.driver.remove(layer_id)


@few
@given(base=batches(6, nesting=True), edits=batches(10, nesting=True))
def test_changes_with_nested_subvolumes_are_the_same_every_way(
    layers: Layers, base: list[Script], edits: list[Script]
) -> None:
    parent = layers.create()
    apply_all(layers.path(parent), base, start=True)
    child = layers.create(parent)
    apply_all(layers.path(child), edits)
    try:
        check_all_ways(layers, child, parent)
        check_all_ways(layers, parent, child)
    finally:
        for layer_id in (child, parent):
            layers.driver.remove(layer_id)
