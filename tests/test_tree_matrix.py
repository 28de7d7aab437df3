"""Other people's tools in every kind of place of the tree: what each does there, and what is left.

Every directory of a mounted tree belongs to a kind of place (:data:`PLACES`; a test derives the kinds from
the tree itself), every tool has a result in each (:func:`expected`), and all tools are at a place at once,
each a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.support.features import require
from tests.support.filled import BASE, CONTAINER, TOP, eventually, fill
from tests.support.mounted import Mounted, mounted
from tests.support.tools import StoreDirs, ToolBox
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 120
"""How long any one command may take; hanging is what the tests are about."""
C = f"containers/{CONTAINER}"
IMAGE = f"images/{TOP}"
IDENTITY = "-c user.name=t -c user.email=t@example.org"

CHANGING = " ".join(f"--exclude={name}" for name in ("events", "metrics", "errors", "status", "health"))
"""Files of ``control/`` that have no end, or another size a moment later."""

READERS = {
    "ls -lR --color": "ls -lR --color=always $P",
    "find": "find $P -xdev -printf '%i %p %s %t\\n'",  # what updatedb(8) does
    "du": "du -s $P",
    "df": "df $P",
    "grep -r": f"grep -rIs {CHANGING} 'no such text' $P; test $? = 1",
    "tar": f"tar {CHANGING} -cf - $P | wc -c",
    "rsync": f"rsync -a {CHANGING} $P/ $S/rsync/",
    "cp -a": "cp -a $P/. $S/copy/",
}
WRITERS = {
    "cp": "cp $S/src/hello $P/new",
    "mv": "mv $S/moved $P/moved",
    "touch": "touch $P/touched",
    "rsync into": "rsync -a $S/src/ $P/",
    "tar x": "tar -C $P -xf $S/archive.tar",
    "ln -s": "ln -s /etc/passwd $P/link",
    "ln": "ln $F $P/hard",
    "mkfifo": "mkfifo $P/fifo",
    "sed -i": "sed -i s/o/x/ $F",
    "vim": "vim -es -u NONE -c 's/^/x/' -c wq -c q! $F",
    "git": f"git init -q $P && git {IDENTITY} -C $P commit -q --allow-empty -m x",
    "chmod -R": "chmod -R 0700 $P",
    "chown -R": "chown -R 12345 $P",
    "truncate": "truncate -s 0 $F",
    "mv away": "mv $F $S/away",
    "rsync --delete": "rsync -a --delete $S/empty/ $P/",
    "rm -r": "rm -rf $P",
    "find -delete": "find $P -delete",
}
PLACES = {
    ".": "refuses",
    "layers": "refuses",
    "layers/L": "refuses",
    "layers/L/children": "refuses",
    "layers/L/used-by": "refuses",
    "layers/L/big-data": "takes files",
    "layers/L/rootfs": "read-only",
    "images": "refuses",
    "images/.import": "takes archives",
    "images/R": "refuses",
    "images/I": "refuses",
    "images/I/layers": "refuses",
    "images/I/mapped-layers": "refuses",
    "images/I/containers": "refuses",
    "images/I/big-data": "takes files",
    "images/I/oci": "refuses",
    "images/I/oci/blobs": "refuses",
    "images/I/oci/blobs/sha256": "refuses",
    "images/I/rootfs": "read-only",
    "containers": "refuses",
    "containers/C": "refuses",
    "containers/C/big-data": "takes files",
    "containers/C/userdata": "writable",
    "containers/C/rundata": "writable",
    "containers/C/rootfs": "writable",
    "containers/C/snapshots": "refuses",
    "containers/C/snapshots/S": "refuses",
    "containers/C/snapshots/S/rootfs": "read-only",
    "diff": "refuses",
    "diff/A..B": "refuses",
    "trash": "refuses",
    "trash/T": "refuses",
    "trash/T/rootfs": "read-only",
    "orphans": "refuses",
    "orphans/O": "refuses",
    "broken": "refuses",
    "control": "refuses",
    "control/prune": "refuses",
}
REAL = ("rootfs", "userdata", "rundata")
"""Names of directories whose content is on disk; everything else of the tree is made up."""
REACH_A_ROOTFS = (".", "containers", "containers/C")
"""Below these a recursive change of mode or owner comes to what may be written."""


def expected(tool: str, place: str) -> bool | None:
    """Whether a tool succeeds in a place; ``None`` where it is not tried, for the reason beside it."""
    if tool in READERS:
        return None if tool == "cp -a" and place in (".", "control") else True  # control/events has no end
    kind = PLACES[place]
    if kind == "takes files":
        return tool in TAKEN or (tool == "rsync --delete" and not place.startswith("images"))
    if tool in ("chmod -R", "chown -R") and place in REACH_A_ROOTFS:
        return None  # it comes to what may be written
    if tool in ("truncate", "vim", "sed -i") and place == "control/prune":
        return None  # what is written there is a command: tests/test_tree_control.py
    return kind == "writable" or (kind == "takes archives" and tool in ("touch", "truncate"))


MADE = ("new", "moved", "touched", "hello")
"""Keys that tools add to big data."""
TAKEN = ("cp", "mv", "touch", "tar x", "vim", "truncate", "mv away")
"""What does something to big data, or believes so; the others make names that are no keys, or remove all."""


@pytest.fixture(scope="module")
def tree(home: Path, rootfs_tar: Path) -> Iterator[Mounted]:
    """A filled and mounted store that has one of everything."""
    for feature in ("fuse", "podman", "buildah"):
        require(feature)
    dirs = StoreDirs(home / "g", home / "r")
    dirs.graphroot.mkdir(mode=0o700)
    dirs.runroot.mkdir(mode=0o700)
    tools = ToolBox(dirs, "btrfs", home / "conf")
    podman = tools.podman()
    fill(podman, tools.buildah(), rootfs_tar, dirs)
    with mounted(dirs, home / "mnt") as tree:
        for name in ("orphaned", "removed"):
            (tree.path / "containers" / name).mkdir()
            (tree.path / "containers" / name / "snapshots/one").mkdir()
        tools.containers_storage()("delete-container", "orphaned")
        (tree.path / "containers/removed").rmdir()
        (tree.path / C / "snapshots/one").mkdir()
        for owner in (C, IMAGE, f"{IMAGE}/layers/00/"):
            (tree.path / owner / "big-data/note").write_text("mine\n")
        for private in ("userdata", "rundata"):
            (tree.path / C / private / "mine").write_text("the only copy\n")
        (tree.path / C / "on-write").write_text("none\n")  # no snapshots come in between
        assert eventually(lambda: len(os.listdir(tree.path / "orphans")) == 1)
        yield tree


def real_places(tree: Mounted) -> dict[str, str]:
    """A path for every kind of place."""
    stand_for = {
        "L": os.readlink(tree.path / IMAGE / "layers/00").rpartition("/")[2],
        "R": TOP.split("/")[0],
        "I": TOP,
        "C": CONTAINER,
        "S": "one",
        "A..B": f"{quote(BASE, safe='')}..{CONTAINER}",
        "T": os.listdir(tree.path / "trash")[0],
        "O": os.listdir(tree.path / "orphans")[0],
    }
    return {place: "/".join(stand_for.get(part, part) for part in place.split("/")) for place in PLACES}


def test_every_directory_of_the_tree_is_of_a_kind_of_place(tree: Mounted) -> None:
    """What is new in the tree must be put into the table."""
    places = {os.path.normpath(path): place for place, path in real_places(tree).items()}
    tables = {"layers": "L", "containers": "C", "trash": "T", "orphans": "O"}
    found = set()
    for top, directories, _ in os.walk(tree.path):
        relative = os.path.relpath(top, tree.path)
        parts = relative.split("/")
        if len(parts) > 1 and parts[0] in tables:
            parts[1] = tables[parts[0]]
        kind = "/".join(parts)
        kind = re.sub(r"^images/[^/.]+/[^/]+:[^/]+", "images/I", kind)
        kind = re.sub(r"^images/[^/.]+$", "images/R", kind)
        kind = re.sub(r"/snapshots/[^/]+", "/snapshots/S", kind)
        found.add(places.get(relative, kind))
        directories[:] = [name for name in directories if name not in REAL]
    unlisted = {"diff/A..B", "images/.import"}
    real = {place for place in PLACES if place.rpartition("/")[2] in REAL}
    assert found == set(PLACES) - unlisted - real


@pytest.mark.parametrize("place", PLACES)
def test_tools_all_at_once_do_as_expected_and_lose_nothing(tree: Mounted, place: str, tmp_path: Path) -> None:
    where = tree.path / real_places(tree)[place]
    before = _state(tree)
    tools = {tool: work for tool, work in (READERS | WRITERS).items() if expected(tool, place) is not None}
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for number, (tool, script) in enumerate(tools.items()):
            here = _own(where, number) if PLACES[place] == "writable" else where
            running[tool] = _begin(script, here, _scratch(tmp_path / str(number)))
            if PLACES[place] == "takes archives" and tool in READERS:  # what is coming in cannot be read
                _end(running, tool, place)
            if PLACES[place] == "takes files":  # one removes what the next one needs
                _end(running, tool, place)
                (where / "note").write_text("mine\n")
        for tool in list(running):
            _end(running, tool, place)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    if PLACES[place] == "takes files":
        _tidy(where, before["big-data"][place.split("/")[0]])
    if PLACES[place] == "writable":
        # Not by this process: it has listed the container, and so must not empty what is private there.
        subprocess.run(["rm", "-r", where / "w"], check=True)
    assert _state(tree) == before


def _tidy(big_data: Path, before: dict[str, bytes]) -> None:
    """Take back what may be done there: further keys, and the removal of what no tool needs."""
    assert set(os.listdir(big_data)) <= {*before, *MADE}
    for name in MADE:
        (big_data / name).unlink(missing_ok=True)
    for name in before.keys() - set(os.listdir(big_data)):
        assert name.startswith("signature-"), name
        (big_data / name).write_bytes(before[name])


def _scratch(path: Path) -> Path:
    """What tools need outside the tree."""
    for name in ("src", "empty", "copy"):
        (path / name).mkdir(parents=True)
    os.utime(path / "empty", (10**9, 10**9))  # a time that rsync has to set
    (path / "src/hello").write_text("hello\n")
    (path / "moved").write_text("moved\n")
    subprocess.run(["tar", "-C", path / "src", "-cf", path / "archive.tar", "hello"], check=True)
    return path


def _own(rootfs: Path, number: int) -> Path:
    """A directory for one tool alone; some remove it."""
    here = rootfs / "w" / str(number)
    (here / "below").mkdir(parents=True)
    (here / "id").write_text("o\n")
    return here


def _begin(script: str, place: Path, scratch: Path) -> subprocess.Popen[str]:
    candidates = [place / "id", place / "note", place / "etc/hostname", place / "README", place / "status"]
    file = next((path for path in candidates if os.path.lexists(path)), place / "nothing")
    env = os.environ | {"P": str(place), "S": str(scratch), "F": str(file), "LC_ALL": "C"}
    return subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {script}"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(running: dict[str, subprocess.Popen[str]], tool: str, place: str) -> None:
    process = running[tool]
    _, text = process.communicate(timeout=SECONDS)
    del running[tool]
    assert (process.returncode == 0) is expected(tool, place), f"{tool} in {place}: {text}"


def _state(tree: Mounted) -> dict[str, Any]:
    """Everything that a tool could have lost, or left half-made."""
    listed, values = {}, {}
    for top, directories, files in os.walk(tree.path):
        directories[:] = [name for name in directories if name not in (*REAL, "oci")]
        if os.path.basename(top) != "big-data":
            listed[top] = sorted(directories + files)
        for name in {"names", "metadata", "on-write", "limit", "from"} & set(files):
            values[top, name] = (Path(top) / name).read_text()
    trees = [f"{C}/{name}" for name in REAL] + [f"{IMAGE}/rootfs", f"{C}/snapshots/one/rootfs"]
    owners = {"containers": C, "images": IMAGE, "layers": f"{IMAGE}/layers/00/"}
    return {
        "listed": listed,
        "values": values,
        "trees": {path: snapshot_tree(tree.path / path, times=False) for path in trees},
        "big-data": {
            table: {path.name: path.read_bytes() for path in (tree.path / owner / "big-data").iterdir()}
            for table, owner in owners.items()
        },
    }
