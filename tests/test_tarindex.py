"""Random access to a layer's archive gives the bytes that reading it from the start gives."""

from __future__ import annotations

import gzip
import io
import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from drivers import tarsplit, tarsplit_file
from drivers.archive import apply_archive
from drivers.errors import IntegrityError, MalformedArchive
from tests.support import tars
from tests.support.tars import END, directory, entry

if TYPE_CHECKING:
    from pathlib import Path

ALL = {**tars.ODD, **tars.REPEATED, **tars.SPARSE}
LARGE = 17 << 20


def apply(archive: bytes, base: Path) -> tuple[Path, Path]:
    tree, path = base / "tree", base / "split.gz"
    tree.mkdir()
    with tarsplit_file.create(path) as out:
        apply_archive(tree, io.BytesIO(archive), tar_split=out)
    return path, tree


@pytest.mark.parametrize("name", ALL)
def test_index_reads_every_archive_at_any_offset(name: str, tmp_path: Path) -> None:
    archive, noise = ALL[name], random.Random(name)
    with tarsplit.open_index(*apply(archive, tmp_path)) as diff:
        assert diff.size == len(archive)
        assert diff.read_at(0, diff.size + 10) == archive
        for _ in range(40):
            at, size = noise.randrange(len(archive) + 2), noise.choice((0, 1, 7, 511, 512, 513, 5000))
            assert diff.read_at(at, size) == archive[at : at + size]


def test_index_reads_another_spelling(tmp_path: Path) -> None:
    archive = tars.ODD["names JSON escapes"]
    path, tree = apply(archive, tmp_path)
    lines = gzip.decompress(path.read_bytes()).replace(b'"type":', b'"type": ')
    path.write_bytes(gzip.compress(lines.rstrip(b"\n")))
    with tarsplit.open_index(path, tree) as diff:
        assert diff.read_at(0, diff.size) == archive


def test_index_is_shared_by_threads(tmp_path: Path) -> None:
    archive = b"".join(entry(b"f%d" % n, os.urandom(n * 10)) for n in range(200)) + END
    with tarsplit.open_index(*apply(archive, tmp_path)) as diff, ThreadPoolExecutor(8) as pool:
        offsets = [random.Random(n).randrange(len(archive)) for n in range(200)]
        got = list(pool.map(lambda at: diff.read_at(at, 3000), offsets))
    assert got == [archive[at : at + 3000] for at in offsets]


def test_index_names_an_altered_small_file_at_first_touch(tmp_path: Path) -> None:
    path, tree = apply(directory(b"d") + entry(b"d/f", b"x" * 3000) + END, tmp_path)
    (tree / "d/f").write_bytes(b"x" * 2999 + b"y")
    with tarsplit.open_index(path, tree) as diff:
        assert diff.read_at(0, 1024) != b""
        with pytest.raises(IntegrityError, match="'d/f': content differs"):
            diff.read_at(1024, 1)


def test_index_notices_a_file_altered_between_reads(tmp_path: Path) -> None:
    path, tree = apply(entry(b"f", b"x" * 3000) + END, tmp_path)
    with tarsplit.open_index(path, tree) as diff:
        assert diff.read_at(512, 5) == b"xxxxx"
        (tree / "f").write_bytes(b"y" * 3000)
        with pytest.raises(IntegrityError, match="'f': content differs"):
            diff.read_at(512, 5)
        (tree / "f").write_bytes(b"y")
        with pytest.raises(IntegrityError, match="'f': 1 bytes"):
            diff.read_at(512, 5)


def test_index_checks_a_large_file_when_it_is_read_in_order(tmp_path: Path) -> None:
    path, tree = apply(entry(b"big", b"x" * LARGE) + END, tmp_path)
    with open(tree / "big", "r+b") as file:
        file.seek(LARGE // 2)
        file.write(b"y")
    with tarsplit.open_index(path, tree) as diff:
        assert diff.read_at(512 + LARGE // 2, 2) == b"yx"
        with pytest.raises(IntegrityError, match="'big': content differs"):
            list(map(diff.read_at, range(0, diff.size, 1 << 20), [1 << 20] * 20))


def test_index_of_a_damaged_record_is_refused_and_leaks_nothing(tmp_path: Path) -> None:
    path, tree = apply(entry(b"f", b"1") + END, tmp_path)
    path.write_bytes(gzip.compress(b"not json\n"))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MalformedArchive):
        tarsplit.open_index(path, tree)
    path.write_bytes(path.read_bytes()[:15])
    with pytest.raises(MalformedArchive, match="truncated"):
        tarsplit.open_index(path, tree)
    assert len(os.listdir("/proc/self/fd")) == before
