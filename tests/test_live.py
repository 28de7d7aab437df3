"""Readings of the store that a thread goes on seeing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsd.live import Live
from store.config import StoreOptions
from store.store import Store


@pytest.fixture
def live(tmp_path: Path):
    with Store(
        StoreOptions(graphroot=str(tmp_path / "g"), runroot=str(tmp_path / "r"), driver="vfs")
    ) as store:
        yield Live(store)


def test_once_asks_again_outside_of_a_block(live):
    answers = iter(range(3))
    assert [live.once("key", lambda: next(answers)) for _ in range(3)] == [0, 1, 2]


def test_once_asks_one_time_for_a_key_in_a_block_and_anew_in_the_next(live):
    answers = iter(range(9))
    with live.held():
        assert [live.once(key, lambda: next(answers)) for key in "aab"] == [0, 0, 1]
        with live.held():
            assert live.once("a", lambda: next(answers)) == 2
        assert live.once("a", lambda: next(answers)) == 0
    with live.held():
        assert live.once("a", lambda: next(answers)) == 3


def test_a_block_goes_on_seeing_the_store_as_it_was(live):
    with live.held():
        layer = live.store.create_layer()
        assert live.now().catalog.layer(layer.id) is None
    assert live.now().catalog.layer(layer.id) is not None
