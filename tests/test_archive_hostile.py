"""Hostile archives: each is refused with an error that names the entry, and nothing outside is touched."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard

from drivers.archive import apply_archive
from drivers.errors import ArchiveError, HostileArchive
from drivers.limits import Limits
from tests.support import hostile
from tests.support.tars import END, base256, entry, symlink
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACEHOLDER = b"/tmp/fsd-hostile/outside"
NAMES = [name for name, _, _ in hostile.cases(PLACEHOLDER)]
MIB = 1 << 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``outside`` (and its canary), which every archive leaves alone."""
    path = tmp_path_factory.mktemp("arena")
    (path / "outside/kept").mkdir(parents=True)
    (path / "outside/canary").write_text("alive")
    return path


@pytest.fixture(scope="module")
def corpus(place: Path) -> list[hostile.Case]:
    return list(hostile.cases(os.fsencode(place / "outside")))


@pytest.fixture
def arena(place: Path) -> Iterator[Path]:
    """``outside`` with a fresh ``tree`` next to it."""
    tree = place / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below/file").write_text("below")
    (tree / "abslink").symlink_to("/below")
    yield place
    shutil.rmtree(tree)


def surroundings(arena: Path) -> object:
    """Everything but the tree, times included."""
    times = {str(p): p.lstat().st_ctime_ns for p in [arena / "outside", *(arena / "outside").rglob("*")]}
    return sorted(os.listdir(arena)), snapshot_tree(arena / "outside"), times


def test_hostile_archives_are_many_and_different() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert len(NAMES) >= 200


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "python"])
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_hostile_archive_is_refused_and_touches_nothing(
    number: int, compiled: bool, arena: Path, corpus: list[hostile.Case]
) -> None:
    _, archive, pattern = corpus[number]
    before = surroundings(arena)
    with pytest.raises((ArchiveError, OSError)) as caught:
        apply_archive(arena / "tree", io.BytesIO(archive), tar_split=io.BytesIO(), compiled=compiled)
    assert re.search(pattern, str(caught.value)), f"{caught.type.__name__}: {caught.value}"
    assert surroundings(arena) == before
    assert len(str(caught.value)) < 700, "an error text must fit a screen"


# -- bombs -------------------------------------------------------------------------------------

SMALL = Limits(ratio_floor=16 * MIB)


class Zeros(io.RawIOBase):
    """An endless stream of one chunk, after a head."""

    def __init__(self, head: bytes, chunk: bytes, times: int) -> None:
        self._parts: Iterator[bytes] = iter([head, *[chunk] * times])

    def read(self, size: int = -1) -> bytes:
        return next(self._parts, b"")


@pytest.mark.parametrize(
    "compress", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gzip", "zstd"]
)
def test_hostile_compression_bomb_is_stopped_early(compress: object, arena: Path) -> None:
    head = entry(b"bomb", size=base256(1 << 36, 12))
    chunk = compress(bytes(256 * MIB))  # type: ignore[operator]
    stream = Zeros(compress(head), chunk, 100)  # type: ignore[operator]
    with pytest.raises(HostileArchive, match="expands more than 500 times"):
        apply_archive(arena / "tree", stream, limits=SMALL)  # type: ignore[arg-type]
    used = sum(p.lstat().st_blocks * 512 for p in (arena / "tree").rglob("*"))
    assert used < 400 * MIB


def test_hostile_size_limit_counts_uncompressed_bytes(arena: Path) -> None:
    archive = gzip.compress(entry(b"a", bytes(MIB)) + END)
    with pytest.raises(HostileArchive, match="holds more than 1000 bytes"):
        apply_archive(arena / "tree", io.BytesIO(archive), limits=Limits(size=1000))


def test_hostile_file_size_limit_names_the_file(arena: Path) -> None:
    with pytest.raises(HostileArchive, match="'huge': a size of"):
        apply_archive(
            arena / "tree",
            io.BytesIO(entry(b"huge", size=base256(1 << 35, 12)) + END),
            limits=Limits(file_size=1 << 30),
        )


CHILD = """
import resource, sys
from pathlib import Path
from drivers.archive import apply_archive
from drivers.errors import ArchiveError
from tests.support.tars import header

def links():
    yield header(b"target")
    for start in range(0, 1_100_000, 2000):
        yield b"".join(header(b"%07d" % n, b"1", link=b"target") for n in range(start, start + 2000))

def blocks():
    yield bytes.fromhex("28b52ffd0088")
    for _ in range(40):
        yield bytes.fromhex("02001000") * 50000

class Stream:
    def __init__(self, parts):
        self.parts = parts
    def read(self, size=-1):
        return next(self.parts, b"")

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    apply_archive(Path(sys.argv[1]), Stream({"links": links, "zstd": blocks}[sys.argv[2]]()))
    print("applied")
except ArchiveError as error:
    print(type(error).__name__, error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def run_child(arena: Path, kind: str) -> tuple[str, int]:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(arena / "tree"), kind],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    *text, grown = done.stdout.splitlines()
    return " ".join(text), int(grown)


def test_hostile_million_entries_are_refused_in_bounded_memory(arena: Path) -> None:
    text, grown = run_child(arena, "links")
    assert text.startswith(("HostileArchive", "MalformedArchive")), text
    assert re.search(r"'\d{7}'", text)
    assert grown < 100


def test_hostile_zstd_of_repeated_blocks_keeps_memory_bounded(arena: Path) -> None:
    text, grown = run_child(arena, "zstd")
    assert text.startswith(("HostileArchive", "MalformedArchive")), text
    assert grown < 100


def test_hostile_device_nodes_without_privilege_name_the_entry(arena: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(entry(b"evil-null", kind=b"3", major=1, minor=3) + END)
    script = (
        "import os, sys; from pathlib import Path; from drivers.archive import apply_archive\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: apply_archive(int(sys.argv[1]), os.fdopen(int(sys.argv[2]), 'rb'))\n"
        "except OSError as e: print(type(e).__name__, e)"
    )
    (arena / "tree").chmod(0o777)
    tree = os.open(arena / "tree", os.O_RDONLY)
    with open(archive, "rb") as stream:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tree), str(stream.fileno())],
            pass_fds=(tree, stream.fileno()),
            cwd=Path(__file__).resolve().parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
    os.close(tree)
    assert "PermissionError" in done.stdout, done.stdout + done.stderr
    assert "evil-null" in done.stdout


# -- harmless although they look odd -----------------------------------------------------------


def test_odd_names_and_link_targets_are_kept_as_they_are(arena: Path) -> None:
    """A link may point anywhere, a name may hold anything: neither reaches outside by itself."""
    tree = arena / "tree"
    archive = (
        symlink(b"abs", b"/etc/passwd")
        + symlink(b"up", b"../../../../etc/passwd")
        + entry(b"new\nline\t\x1b[31m", b"1")
        + entry(b"-rf", b"2")
        + entry(b"...", b"3")
        + entry(b"..hidden/x", b"4")
        + entry(b".wh", b"5")
    )
    apply_archive(tree, io.BytesIO(archive + END))
    assert os.readlink(tree / "up") == "../../../../etc/passwd"
    assert (tree / "new\nline\t\x1b[31m").read_bytes() == b"1"
    assert (tree / "..hidden/x").read_bytes() == b"4"


def test_link_of_the_layer_below_stays_inside(arena: Path) -> None:
    tree = arena / "tree"
    (tree / "evil").symlink_to(arena / "outside")
    apply_archive(tree, io.BytesIO(entry(b"evil/canary", b"dead") + END))
    assert (arena / "outside/canary").read_text() == "alive"
    assert (tree / str(arena / "outside/canary").lstrip("/")).read_bytes() == b"dead"
