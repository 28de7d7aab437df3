"""Files of a mounted tree that are truncated, and copies that are ended before they are whole."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import pytest

from fsd import mounts, runfile
from tests.support.daemon import fsd, with_small_image
from tests.support.filled import BASE, CONTAINER, TOP, eventually, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.mounted import Mounted
    from tests.support.tools import StoreDirs, Tool


def _shell(script: str, directory: Path) -> None:
    subprocess.run(["bash", "-ec", script], cwd=directory, check=True)


# -- truncation --------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["images", "containers", "layers"])
def test_truncation_by_itself_changes_big_data(tree: Mounted, table: str) -> None:
    (tree.path / "layers/mine").mkdir()
    place = {"images": TOP, "containers": CONTAINER, "layers": "mine"}[table]
    item = tree.path / table / place / "big-data/note"
    write(item, "hello")
    for script, expected in (
        ("truncate -s 3 note", b"hel"),
        ("truncate -s 5 note", b"hel\0\0"),
        ("echo more >> note", b"hel\0\0more\n"),
        ("printf HEL | dd of=note conv=notrunc status=none", b"HEL\0\0more\n"),
        ("exec 3<> note", b"HEL\0\0more\n"),
        ("> note", b""),
        ("echo data > note", b"data\n"),
        ("cat /dev/null > note", b""),
    ):
        _shell(script, item.parent)
        assert (item.read_bytes(), item.stat().st_size) == (expected, len(expected)), script
    write(item, "again")
    os.truncate(item, 2)
    assert item.read_bytes() == b"ag"
    assert "note" in os.listdir(item.parent)


def test_emptied_big_data_is_empty_for_others_too(tree: Mounted, containers_storage: Tool) -> None:
    item = tree.path / "images" / TOP / "big-data/note"
    write(item, "hello")
    _shell("> note", item.parent)
    assert containers_storage("get-image-data", TOP, "note").stdout == ""


def test_shell_replaces_big_data_without_emptying_it_on_the_way(tree: Mounted) -> None:
    """It closes a copy of the descriptor before the command has written anything."""
    item = tree.path / "containers" / CONTAINER / "big-data/note"
    write(item, "value\n")
    seen, over = set(), threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(item.read_bytes())

    looker = threading.Thread(target=look)
    looker.start()
    _shell("for n in {1..20}; do echo value > note; { echo val; echo ue; } > other; done", item.parent)
    over.set()
    looker.join()
    assert seen == {b"value\n"}
    assert (item.parent / "other").read_bytes() == b"val\nue\n"


def test_two_handles_of_one_process_both_write(tree: Mounted) -> None:
    item = tree.path / "containers" / CONTAINER / "big-data/note"
    with open(item, "w") as first, open(item, "w") as second:
        first.write("first")
        second.write("second")
    assert eventually(lambda: item.exists() and item.read_bytes() in (b"first", b"second"))


def test_truncation_empties_metadata_and_nothing_that_cannot_be_empty(tree: Mounted) -> None:
    container = tree.path / "containers" / CONTAINER
    for script in ("> metadata", "truncate -s 0 metadata"):
        _shell(f"echo value > metadata; {script}", container)
        assert (container / "metadata").read_bytes() == b""
        assert (container / "metadata").stat().st_size == 0
    write(container / "metadata", "value")
    os.truncate(container / "metadata", 0)
    assert (container / "metadata").read_bytes() == b""
    before = {name: (container / name).read_bytes() for name in ("names", "limit", "from", "on-write")}
    for name in (*before, "rollback", "commit"):
        _shell(f"> {name}; truncate -s 0 {name}", container)
    assert {name: (container / name).read_bytes() for name in before} == before


def test_refused_write_leaves_what_was_there(tree: Mounted) -> None:
    container = tree.path / "containers" / CONTAINER
    for place, script in (
        ("metadata", "printf 'a\\0b' > metadata"),
        ("big-data/note", "head -c 70M /dev/zero > big-data/note"),
    ):
        write(container / place, "kept")
        done = subprocess.run(["bash", "-c", script], cwd=container, capture_output=True, check=False)
        assert done.returncode != 0
        assert (container / place).read_text().strip() == "kept"


# -- copies that are ended ---------------------------------------------------------------------


def _state(tree: Mounted) -> dict[str, Any]:
    """What a copy could leave, in the tree and behind it."""
    graphroot = tree.path.parent / "g"
    big_data = tree.path / "containers" / CONTAINER / "big-data"
    places = [tree.path / name for name in ("layers", "images/localhost", "images/.import", "orphans")]
    places += [graphroot / f"btrfs/{name}" for name in ("subvolumes", "fsd/tmp", "fsd/older")]
    places += [graphroot / "fsd/tmp", big_data]
    found: dict[str, Any] = {str(place): sorted(os.listdir(place)) for place in places if place.exists()}
    found |= {name: (big_data / name).read_bytes() for name in os.listdir(big_data)}
    found["layer"] = os.listdir(tree.path / "layers/mine/rootfs")
    found["digest"] = (tree.path / "layers/mine/diff-digest").read_text()
    status = (tree.path / "control/status").read_text().splitlines()
    found["status"] = [line for line in status if line.startswith("upload")]
    return found


def _await_status(tree: Path, text: str) -> None:
    assert eventually(lambda: text in (tree / "control/status").read_text())


@pytest.fixture
def prepared(tree: Mounted) -> dict[str, bytes]:
    """Where copies go, and what each can take."""
    (tree.path / "layers/mine").mkdir()
    item = tree.path / "containers" / CONTAINER / "big-data/old"
    write(item, "as it was")
    image = (tree.path / "images" / BASE / "image.tar").read_bytes()
    layer = (tree.path / "images" / BASE / "layer/diff.tar").read_bytes()
    return {
        "layers/mine/diff.tar": layer,
        "images/.import/x": image,
        f"containers/{CONTAINER}/big-data/old": layer,
        f"containers/{CONTAINER}/big-data/new": layer,
    }


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_copy_that_is_ended_by_a_signal_leaves_nothing(
    tree: Mounted, prepared: dict[str, bytes], number: signal.Signals
) -> None:
    before = _state(tree)
    for place, data in prepared.items():
        for part in (data[: len(data) // 2], data):
            copy = subprocess.Popen(["cp", "/dev/stdin", tree.path / place], stdin=subprocess.PIPE)
            assert copy.stdin is not None
            copy.stdin.write(part)
            copy.stdin.flush()
            _await_status(tree.path, f": {len(part)} bytes")
            copy.send_signal(number)
            assert copy.wait() == -number
            copy.stdin.close()
            assert eventually(lambda: _state(tree) == before), place
    for place, data in prepared.items():
        subprocess.run(["cp", "/dev/stdin", tree.path / place], input=data, check=True)
    assert len(os.listdir(tree.path / "layers/mine/rootfs")) > 0


def _big_layer() -> bytes:
    """A layer that takes a while to be unpacked."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for number in range(20_000):
            member = tarfile.TarInfo(f"{number % 100}/{number}")
            member.size = 2000
            archive.addfile(member, io.BytesIO(b"x" * 2000))
    return made.getvalue()


def _objects(dirs: StoreDirs, tree: Path) -> dict[str, list[str]]:
    """Everything a copy that was not completed could leave in the store."""
    places = [tree / name for name in ("layers", "images/localhost", "images/.import", "trash", "orphans")]
    places += [dirs.graphroot / f"btrfs/{name}" for name in ("subvolumes", "fsd/tmp", "fsd/older")]
    places += [dirs.graphroot / "btrfs-layers", dirs.graphroot / "fsd/tmp", tree / "layers/mine/big-data"]
    return {str(place): sorted(os.listdir(place)) if place.exists() else [] for place in places}


@pytest.mark.parametrize(
    ("place", "doing"),
    [
        ("layers/mine/diff.tar", "receiving"),
        ("layers/mine/diff.tar", "applying"),
        ("images/.import/x", "receiving"),
        ("images/.import/x", "applying"),
        ("layers/mine/big-data/key", "receiving"),
    ],
)
def test_copy_leaves_nothing_when_the_daemon_is_killed(
    store_dirs: StoreDirs, btrfs_dir: Path, rootfs_tar: Path, require: Any, place: str, doing: str
) -> None:
    require("fuse")
    tree, data = btrfs_dir / "mnt", _big_layer()
    tree.mkdir()
    with_small_image(store_dirs, rootfs_tar)
    if place.startswith("images"):
        (btrfs_dir / "big.tar").write_bytes(data)
        fsd(store_dirs, "import", btrfs_dir / "big.tar", "localhost/big:1")
        fsd(store_dirs, "save", "localhost/big:1", "-o", btrfs_dir / "image.tar")
        fsd(store_dirs, "rm", "--now", "localhost/big:1")
        data = (btrfs_dir / "image.tar").read_bytes()
    fsd(store_dirs, "up", tree)
    try:
        (tree / "layers/mine").mkdir()
        before = _objects(store_dirs, tree)
        copy = subprocess.Popen(
            ["cp", "/dev/stdin", tree / place], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert copy.stdin is not None
        with copy.stdin:
            copy.stdin.write(data)
            _await_status(tree, f": {len(data)} bytes, receiving")
            if doing == "applying":
                copy.stdin.close()
                _await_status(tree, f": {len(data)} bytes, applying")
            found = runfile.read(store_dirs.runroot)
            assert found is not None
            os.kill(found.pid, signal.SIGKILL)
        assert copy.wait() == 1
        assert eventually(lambda: mounts.is_dead(tree))
        fsd(store_dirs, "up", tree)
        eventually(lambda: _objects(store_dirs, tree) == before)
        assert _objects(store_dirs, tree) == before
        assert (tree / "layers/mine/diff-digest").read_text() == ""
        assert os.listdir(tree / "layers/mine/rootfs") == []
        assert fsd(store_dirs, "check").returncode == 0
        subprocess.run(["cp", "/dev/stdin", tree / place], input=data, check=True)
    finally:
        fsd(store_dirs, "down", "--force")
