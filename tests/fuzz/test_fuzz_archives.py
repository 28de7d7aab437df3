"""Random archives keep the properties of ``tests.fuzz.archives``; ``tests.fuzz.run`` goes on for long."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.archives import Arena, archives

if TYPE_CHECKING:
    from collections.abc import Iterator

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.tar"))


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with tempfile.TemporaryDirectory(prefix="fsd-fuzz-") as base:
        yield Arena(Path(base))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_fuzz_corpus_keeps_every_property(path: Path, arena: Arena) -> None:
    arena.check(path.read_bytes())


@settings(
    max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(archive=archives())
def test_fuzz_random_archives_keep_every_property(archive: bytes, arena: Arena) -> None:
    arena.check(archive)
