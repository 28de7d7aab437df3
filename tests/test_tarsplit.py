"""tar-split: an archive comes back byte by byte, from our record and from containers/storage's."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from drivers import _archive, tarsplit, tarsplit_file
from drivers.archive import apply_archive
from drivers.archive_native import crc64
from drivers.errors import HostileArchive, IntegrityError, MalformedArchive
from drivers.limits import Limits
from tests.support import tars
from tests.support.tars import END, directory, entry

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.tools import StoreDirs, Tool

ALL = {**tars.ODD, **tars.REPEATED, **tars.SPARSE}


def record(archive: bytes, tree: Path, **options: object) -> bytes:
    """Apply ``archive`` to the new directory ``tree`` and return its tar-split lines."""
    tree.mkdir()
    lines = io.BytesIO()
    apply_archive(tree, io.BytesIO(archive), tar_split=lines, **options)  # type: ignore[arg-type]
    return lines.getvalue()


def assemble(lines: bytes, tree: Path) -> bytes:
    with tarsplit.assemble(io.BytesIO(lines), tree) as stream:
        return stream.read()


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "python"])
@pytest.mark.parametrize("name", ALL)
def test_tarsplit_any_archive_comes_back(name: str, tmp_path: Path, compiled: bool) -> None:
    tree = tmp_path / "t"
    lines = record(ALL[name], tree, compiled=compiled)
    assert assemble(lines, tree) == ALL[name]
    records = [json.loads(line) for line in lines.splitlines()]
    assert [one["position"] for one in records] == list(range(len(records)))
    names = [os.path.normpath(str(one.get("name") or one["name_raw"])) for one in records if one["type"] == 1]
    assert len(names) == len(set(names)), "other readers refuse a name that comes twice"


def test_tarsplit_lines_are_containers_storages(tmp_path: Path) -> None:
    lines = record(entry(b"hello", b"hello world\n") + END, tmp_path / "t").splitlines()
    assert lines[1] == b'{"type":1,"name":"hello","size":12,"payload":"ROnPP1cq2aw=","position":1}'
    assert lines[0].startswith(b'{"type":2,"payload":"aGVsbG8AAAAA')
    assert lines[2] == b'{"type":2,"payload":"%s","position":2}' % base64.b64encode(bytes(500 + 1024))


def test_tarsplit_names_are_escaped_as_go_does(tmp_path: Path) -> None:
    odd = 'a<&>"\\b\u2028\u00e9\x7f\x01\n'.encode()
    lines = record(entry(odd) + entry(b"raw\xff") + END, tmp_path / "t").splitlines()
    assert b'"name":"a\\u003c\\u0026\\u003e\\"\\\\b\\u2028\xc3\xa9\x7f\\u0001\\n",' in lines[1]
    assert b'"name_raw":"cmF3/w==",' in lines[3]


def test_tarsplit_file_roundtrip_and_rewrite(tmp_path: Path) -> None:
    for name, archive in tars.REPEATED.items():
        tree, path = tmp_path / name, tmp_path / f"{name}.gz"
        tree.mkdir()
        with tarsplit_file.create(path) as out:
            apply_archive(tree, io.BytesIO(archive), tar_split=out)
        assert path.stat().st_mode & 0o777 == 0o600
        assert assemble(gzip.decompress(path.read_bytes()), tree) == archive, name


def test_tarsplit_file_reports_a_full_disk(tmp_path: Path) -> None:
    with open("/dev/full", "r+b", buffering=0) as full:
        out = tarsplit_file.TarSplitFile(full)
        out.write(os.urandom(100_000))
        with pytest.raises(OSError, match="No space left"):
            out.close()


def test_tarsplit_kept_content_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(HostileArchive, match="'s': more than 100 bytes the layer cannot give back"):
        record(tars.SPARSE["pax 1.0"], tmp_path / "a", limits=Limits(stored=100))
    with pytest.raises(HostileArchive, match="'a'"):
        record(entry(b"a", bytes(200)) + entry(b"a") + END, tmp_path / "b", limits=Limits(stored=100))


def test_crc64_is_that_of_the_definition_at_every_length_and_split() -> None:
    def bitwise(data: bytes) -> int:
        crc = (1 << 64) - 1
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0xD8 << 56 if crc & 1 else 0)
        return crc ^ (1 << 64) - 1

    data = random.Random(64).randbytes(700)
    assert crc64(b"123456789") == 0xB90956C775A41001  # the catalogue's check value of CRC-64/GO-ISO
    for size in (0, 1, 15, 16, 17, 63, 64, 255, 256, 257, 300, 511, 512, 600, 700):
        want = bitwise(data[:size])
        assert crc64(data[:size]) == want
        assert _archive.lib.fsd_crc64_by_table(0, data[:size], size) == want
        for cut in (0, 1, 13, 256, 299):
            assert crc64(data[cut:size], crc64(data[: min(cut, size)])) == want


def test_tarsplit_closing_unread_or_early_releases_everything(tmp_path: Path) -> None:
    tree = tmp_path / "t"
    lines = record(b"".join(entry(b"f%d" % n, bytes(100_000)) for n in range(100)) + END, tree)
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for size in (0, 1, 3_000_000):
        stream = tarsplit.assemble(io.BytesIO(lines), tree)
        assert len(stream.read(size)) == size
        stream.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads


# -- damage ------------------------------------------------------------------------------------


@pytest.fixture
def layer(tmp_path: Path) -> tuple[Path, bytes]:
    tree = tmp_path / "t"
    return tree, record(directory(b"d") + entry(b"d/f", b"x" * 5000) + entry(b"g", b"1") + END, tree)


def test_tarsplit_altered_file_is_named(layer: tuple[Path, bytes]) -> None:
    (layer[0] / "d/f").write_bytes(b"x" * 4999 + b"y")
    with pytest.raises(IntegrityError, match="'d/f': content differs"):
        assemble(layer[1], layer[0])


def test_tarsplit_longer_file_is_named(layer: tuple[Path, bytes]) -> None:
    (layer[0] / "d/f").write_bytes(b"x" * 5001)
    with pytest.raises(IntegrityError, match="'d/f': 5001 bytes"):
        assemble(layer[1], layer[0])


def test_tarsplit_missing_file_is_named(layer: tuple[Path, bytes]) -> None:
    (layer[0] / "g").unlink()
    with pytest.raises(IntegrityError, match="'g': cannot be read back: No such file"):
        assemble(layer[1], layer[0])


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_tarsplit_file_of_another_type_is_named(layer: tuple[Path, bytes], kind: str) -> None:
    place = layer[0] / "g"
    place.unlink()
    if kind == "symlink":
        place.symlink_to("d/f")
    elif kind == "directory":
        place.mkdir()
    else:
        os.mkfifo(place)
    with pytest.raises(IntegrityError, match="'g': cannot be read back"):
        assemble(layer[1], layer[0])


def test_tarsplit_never_reads_outside_the_tree(layer: tuple[Path, bytes], tmp_path: Path) -> None:
    tree, lines = layer
    (tmp_path / "secret").write_bytes(b"1")
    os.symlink(tmp_path, tree / "out")
    for name in (b"../secret", b"out/secret", bytes(tmp_path / "secret")):
        changed = lines.replace(b'"name":"g"', b'"name":"%s"' % name)
        with pytest.raises(IntegrityError, match="cannot be read back"):
            assemble(changed, tree)


def test_tarsplit_names_outside_are_clamped_to_the_root(layer: tuple[Path, bytes]) -> None:
    whole = assemble(layer[1], layer[0])
    for name in (b"/g", b"../g", b"./d/../../g"):
        assert assemble(layer[1].replace(b'"name":"g"', b'"name":"%s"' % name), layer[0]) == whole


@pytest.mark.parametrize(
    "bad",
    [
        b"not json\n",
        b"[]\n",
        b'{"type":3,"position":0}\n',
        b'{"type":2,"payload":"???","position":0}\n',
        b'{"type":1,"name":"g","size":-1,"payload":null,"position":0}\n',
        b'{"type":1,"name":"g","size":5,"payload":"AAAA","position":0}\n',
        b'{"type":1,"name":7,"size":5,"payload":"AAAAAAAAAAE=","position":0}\n',
        b'{"type":1,"name":"g","size":99999999999999999999,"payload":"AAAAAAAAAAE=","position":0}\n',
        b'{"type":1,"name":"g","si',
    ],
)
def test_tarsplit_damaged_record_is_malformed(bad: bytes, tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(b"12345")
    with pytest.raises((MalformedArchive, IntegrityError)):
        assemble(bad, tmp_path)


def test_tarsplit_any_json_spelling_is_read(layer: tuple[Path, bytes]) -> None:
    """Key order, spaces, escapes and the chunking of segments are the writer's business."""
    whole = assemble(layer[1], layer[0])
    respelt = []
    for line in layer[1].splitlines():
        one = json.loads(line)
        if "name" in one:
            one["name"] = one["name"].replace("d", "\u0064")
        respelt.append(json.dumps(dict(reversed(one.items())), indent=None, separators=(" , ", " : ")))
    respelt.append('{"type":2,"payload":"","position":99}')
    assert assemble("\n".join(respelt).encode(), layer[0]) == whole


# -- the other implementation --------------------------------------------------------------------


def test_tarsplit_both_directions_with_containers_storage(
    containers_storage: Tool, store_dirs: StoreDirs, btrfs_dir: Path
) -> None:
    """It assembles our record of every archive, also of those it cannot record; we assemble its."""
    unreadable = {"file then whiteout", "directory then whiteout", "whiteout with content"}
    for number, (name, archive) in enumerate(ALL.items(), 1):
        layer_id, file = f"{number:064x}", btrfs_dir / "a.tar"
        file.write_bytes(archive)
        tree = store_dirs.graphroot / "btrfs/subvolumes" / layer_id
        split = store_dirs.graphroot / "btrfs-layers" / f"{layer_id}.tar-split.gz"
        done = containers_storage("import-layer", "--id", layer_id, "-f", file, check=False)
        if done.returncode:
            containers_storage("create-layer", "--id", layer_id)
        elif name in unreadable or name.startswith("pax"):
            # What it lost is reported, never made up.
            if "path" not in name and "owner" not in name and "size" not in name:
                with pytest.raises(IntegrityError):
                    assemble(gzip.decompress(split.read_bytes()), tree)
        else:
            assert assemble(gzip.decompress(split.read_bytes()), tree) == archive, name
        scratch = btrfs_dir / f"ours{number}"
        lines = record(archive, scratch)
        if done.returncode:
            shutil.copytree(scratch, tree, symlinks=True, dirs_exist_ok=True)
        split.write_bytes(gzip.compress(lines))
        out = btrfs_dir / f"{number}.out"
        containers_storage("diff", "-u", "-f", out, layer_id)
        assert hashlib.sha256(out.read_bytes()).digest() == hashlib.sha256(archive).digest(), name
