"""Random requests do not harm the data plane; ``python -m tests.fuzz.plane`` goes on for long."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fuzz import plane_answers, plane_requests
from tests.fuzz.plane import Fuzzer, fuzz, prepare
from tests.support import features, loops

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = int(os.environ.get("FSD_FUZZ_REQUESTS", "10000"))
SEEDS = (1, 3, 7)


@pytest.fixture
def place(run_dir: Path) -> Iterator[Path]:
    """A btrfs on which no device can be opened."""
    features.require("btrfs")
    options = "noatime,nodev,nodatasum"
    with loops.loop_mount(run_dir, "fuzz", mkfs=("mkfs.btrfs", "-q"), size=4 << 30, options=options) as top:
        yield top


@pytest.mark.parametrize("seed", SEEDS)
def test_fuzz_plane_answers_random_requests_and_keeps_nothing(place: Path, seed: int) -> None:
    assert f"{REQUESTS} requests" in fuzz(place, REQUESTS, seed)


@pytest.mark.parametrize("opcode", [plane_requests.UNLINK, plane_requests.RENAME])
def test_fuzz_plane_change_that_meets_a_new_subvolume_happens_once(place: Path, opcode: int) -> None:
    prepare(place)
    fuzzer = Fuzzer(place, 1)
    try:
        root = fuzzer.roots[3]
        names = b"nested\0" if opcode == plane_requests.UNLINK else struct.pack("<Q", root) + b"d\0nested\0"
        fuzzer.send(fuzzer.make.proper(opcode, root, names))
        fuzzer.settle()
        for _ in range(20):
            fuzzer.send(fuzzer.make.proper(plane_requests.GETATTR, root, bytes(16)))
        fuzzer.settle()
        assert (fuzzer.answered, fuzzer.parked) == (21, 1)
    finally:
        fuzzer.stop()


def test_fuzz_plane_directory_moved_below_one_it_held_does_not_hang(place: Path) -> None:
    """What was seen by name at different times can say that two directories are below each other."""
    prepare(place)
    fuzzer = Fuzzer(place, 1)
    try:
        root = fuzzer.roots[2]

        def ask(opcode: int, node: int, name: bytes) -> int:
            fuzzer.send(fuzzer.make.proper(opcode, node, name + bytes(17)))
            fuzzer.settle()
            body = memoryview(fuzzer.buffer)[16:]
            return next(plane_answers.nodes_in(opcode, body)) if opcode == plane_requests.LOOKUP else 0

        a = ask(plane_requests.LOOKUP, root, b"a")
        b = ask(plane_requests.LOOKUP, a, b"b")
        ask(plane_requests.GETATTR, b, b"")
        (place / "in/a/b").rename(place / "in/b")
        (place / "in/a").rename(place / "in/b/a")
        ask(plane_requests.LOOKUP, b, b"a")
        for number in range(20):  # more directories than are kept open
            (place / f"in/{number}").mkdir()
            node = ask(plane_requests.LOOKUP, root, str(number).encode())
            fuzzer.send(fuzzer.make.proper(plane_requests.GETATTR, node, bytes(16)))
        for node in (a, b):
            ask(plane_requests.GETATTR, node, b"")
        assert fuzzer.answered
        fuzzer.let_go()
        assert not fuzzer.held()
    finally:
        fuzzer.stop()
