"""``control/events`` for programs that wait: by ``read``, ``poll``, ``select``, ``epoll``, many at once."""

from __future__ import annotations

import json
import os
import select
import selectors
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.filled import BASE, CONTAINER, errname_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.mounted import Mounted


MILLISECONDS = 20_000
"""How long an event may take to arrive."""


@pytest.fixture
def reader(tree: Mounted) -> Iterator[Callable[[], int]]:
    """Opens a descriptor of the events."""
    with ExitStack() as stack:

        def opened() -> int:
            number = os.open(tree.path / "control/events", os.O_RDONLY | os.O_NONBLOCK)
            stack.callback(os.close, number)
            return number

        yield opened


def _read(number):
    return [json.loads(line) for line in os.read(number, 1 << 16).splitlines()]


def test_poll_wakes_at_an_event_and_not_before(tree, reader, podman):
    events = reader()
    assert errname_of(os.read, events, 100) == "EAGAIN"
    waiting = select.poll()
    waiting.register(events, select.POLLIN)
    assert waiting.poll(0) == []
    podman("tag", BASE, "localhost/event:1")
    assert waiting.poll(MILLISECONDS) == [(events, select.POLLIN)]
    (event,) = _read(events)
    assert (event["table"], event["action"]) == ("images", "rename")
    assert "localhost/event:1" in event["names"]
    assert waiting.poll(0) == []


@pytest.mark.parametrize("kind", [selectors.SelectSelector, selectors.PollSelector, selectors.EpollSelector])
def test_every_reader_that_waits_gets_every_event(tree, reader, kind):
    with kind() as selector:
        readers = {reader(): [] for _ in range(5)}
        for number in readers:
            selector.register(number, selectors.EVENT_READ)
        snapshots = tree.path / "containers" / CONTAINER / "snapshots"
        for name in ("one", "two"):
            (snapshots / name).mkdir()
            while any(name not in names for names in readers.values()):
                ready = selector.select(MILLISECONDS / 1000)
                assert ready
                for key, _ in ready:
                    readers[key.fd] += [event["names"][0] for event in _read(key.fd)]
    assert list(readers.values()) == [["one", "two"]] * 5


def test_edge_triggered_epoll_is_woken_again(tree, reader):
    events = reader()
    snapshots = tree.path / "containers" / CONTAINER / "snapshots"
    with select.epoll() as waiting:
        waiting.register(events, select.EPOLLIN | select.EPOLLET)
        waiting.poll(0)
        for name in ("one", "two", "three"):
            (snapshots / name).mkdir()
            assert waiting.poll(MILLISECONDS / 1000)
            assert [event["names"] for event in _read(events)] == [[name]]


def test_other_files_are_always_ready(tree):
    with open(tree.path / "control/status", "rb") as file:
        waiting = select.poll()
        waiting.register(file, select.POLLIN)
        assert waiting.poll(MILLISECONDS) == [(file.fileno(), select.POLLIN)]


def test_reader_that_was_slow_is_told_how_many_events_it_missed(tree, reader):
    events = reader()
    metadata = tree.path / "containers" / CONTAINER / "snapshots"
    (metadata / "n").mkdir()
    for number in range(1100):
        os.rename(metadata / (f"n{number - 1}" if number else "n"), metadata / f"n{number}")
    lines = []
    while select.select([events], [], [], 0)[0]:
        lines += os.read(events, 1 << 20).splitlines()
    first = json.loads(lines[0])
    assert first["action"] == "missed"
    assert first["count"] + len(lines) - 1 == 1101
