"""Objects the data plane answers for by itself: they are what they are, at once, whoever changes them."""

from __future__ import annotations

import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.errors import StoreError
from tests.support.daemon import fsd
from tests.support.filled import eventually, write
from tests.support.mounted import Mounted, mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from store.store import Store
    from tests.support.tools import StoreDirs

LISTING = ("5", "27", "44")
"""READLINK, OPENDIR and READDIRPLUS (fuse.h): what a listing asks."""
REAL = ("rootfs", "userdata", "rundata")
MEASURED = ("size", "exclusive", "measured")
"""What changes whenever the background gets there."""
COMPARED = ("changes", "diff.tar")
"""Their sizes show as 0 until they were compared where that takes a walk."""
LISTED_SECONDS = 0.02
"""How long the kernel may keep what a listing said."""


@pytest.fixture
def tree(store_dirs: StoreDirs, btrfs_dir: Path, require: Callable[[str], None]) -> Iterator[Mounted]:
    """A mounted store with a layer and a container filled from it."""
    require("fuse")
    with mounted(store_dirs, btrfs_dir / "mnt") as serving:
        (serving.path / "layers/base").mkdir()
        (serving.path / "containers/c").mkdir()
        (serving.path / "containers/c/from").write_text("layers/base")
        yield serving


def look(directory: Path) -> None:
    """``ls -lR``: whatever can be published is, after that."""
    with os.scandir(directory) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            if entry.is_symlink():
                os.readlink(entry.path)
            elif entry.is_dir(follow_symlinks=False) and entry.name not in REAL:
                look(Path(entry.path))


def shown(top: Path) -> dict[str, tuple[int, str]]:
    """Mode, and target or content, of all below a directory; each file is as long as its stat says."""
    found = {}
    for path, names, files in os.walk(top):
        names[:] = [name for name in names if name not in REAL]
        for name in (*names, *files):
            entry = Path(path, name)
            info = entry.lstat()
            text = os.readlink(entry) if stat.S_ISLNK(info.st_mode) else ""
            if stat.S_ISREG(info.st_mode) and name not in MEASURED:
                data = entry.read_bytes()
                assert info.st_size == len(data) or name in COMPARED, entry
                text = data.decode("latin-1")
            found[str(entry.relative_to(top))] = info.st_mode, text
    return found


def asked(tree: Mounted) -> dict[str, int]:
    """How often Python was asked each thing a listing asks."""
    text = (tree.path / "control/metrics").read_text()
    pairs = re.findall(r'^fsd_requests_forwarded_total\{opcode="(\d+)"\} (\d+)', text, re.MULTILINE)
    return {opcode: int(count) for opcode, count in pairs if opcode in LISTING}


def test_object_that_was_just_listed_is_listed_again_without_asking_python(tree):
    container = tree.path / "containers/c"

    def is_answered() -> bool:
        look(container)
        before = asked(tree)
        look(container)
        return asked(tree) == before

    assert eventually(is_answered)


def test_walk_through_a_table_asks_python_for_a_few_objects_only(tree):
    for number in range(60):
        (tree.path / f"layers/n{number}").mkdir()

    def is_answered() -> bool:
        before = asked(tree)
        look(tree.path / "layers")
        return asked(tree).get("27", 0) - before.get("27", 0) < 20

    assert eventually(is_answered)


CHANGES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "metadata": (lambda c: write(c / "metadata", "new"), lambda c: (c / "metadata").stat().st_size == 4),
    "names": (lambda c: write(c / "names", "other", "a"), lambda c: (c / "names").stat().st_size == 8),
    "pin": (lambda c: (c / "pinned").touch(), lambda c: "pinned" in os.listdir(c)),
    "unpin": (lambda c: (c / "pinned").unlink(), lambda c: "pinned" not in os.listdir(c)),
    "on-write": (lambda c: write(c / "on-write", "none"), lambda c: (c / "on-write").stat().st_size == 5),
    "snapshot": (lambda c: (c / "snapshots/s").mkdir(), lambda c: os.listdir(c / "snapshots") == ["s"]),
    "no snapshot": (lambda c: (c / "snapshots/s").rmdir(), lambda c: os.listdir(c / "snapshots") == []),
    "big data": (lambda c: write(c / "big-data/key", "x"), lambda c: os.listdir(c / "big-data") == ["key"]),
    "bigger": (lambda c: write(c / "big-data/key", "xx"), lambda c: (c / "big-data/key").stat().st_size == 2),
    "no big data": (lambda c: (c / "big-data/key").unlink(), lambda c: os.listdir(c / "big-data") == []),
    "content": (
        lambda c: (write(c / "rootfs/new", "x"), os.sync()),
        lambda c: (c / "changes").stat().st_size == len((c / "changes").read_bytes()) > 0,
    ),
    "child": (
        lambda c: (c / "../../layers/base/children/x").mkdir(),
        lambda c: len(os.listdir(c / "../../layers/base/children")) == 2,
    ),
}


def test_each_change_through_the_tree_is_seen_at_once(tree):
    container = tree.path / "containers/c"
    for name, (change, is_seen) in CHANGES.items():
        for _ in range(2):
            look(container)
            look(tree.path / "layers/base")
        change(container)
        assert is_seen(container), name
    look(container)
    container.rename(tree.path / "containers/d")
    assert os.listdir(tree.path / "containers") == ["d"]
    look(tree.path / "containers/d")
    assert (tree.path / "containers/d/names").read_text() == "d\nother\n"
    (tree.path / "containers/d").rmdir()
    assert not (tree.path / "containers/d/id").exists()
    assert os.listdir(tree.path / "layers/base/children") != []


def test_links_lead_to_the_new_name_of_what_was_renamed(tree):
    """The kernel keeps targets of symlinks for good, also where size and time are the same again."""
    used_by = (tree.path / "containers/c/layer").resolve() / "used-by"
    before = "c"
    for name in ("d", "e", "d"):
        look(used_by.parent)
        (tree.path / "containers" / before).rename(tree.path / "containers" / name)
        assert [os.readlink(link) for link in used_by.iterdir()] == [f"../../../containers/{name}"]
        before = name


def test_changes_of_other_processes_are_seen_as_soon_as_what_is_listed_expires(
    tree, store: Store, store_dirs: StoreDirs
):
    """Other processes replace tables by rename, and close fsd's state when they end."""
    container, layer = tree.path / "containers/c", tree.path / "layers/base"
    container_id = (container / "id").read_text().strip()
    layer_id = (layer / "id").read_text().strip()

    def listed() -> None:
        look(container)
        look(layer)
        time.sleep(2 * LISTED_SECONDS)

    listed()
    store.set_metadata(container_id, "from elsewhere")
    assert (container / "metadata").stat().st_size == 15
    listed()
    child = store.create_layer(parent=layer_id)
    assert child.id in os.listdir(layer / "children")
    listed()
    store.mount(layer_id)
    assert (layer / "mount-count").read_text() == "1\n"
    listed()
    fsd(store_dirs, "pin", "c")
    assert "pinned" in os.listdir(container)
    listed()
    store.delete_container(container_id)
    assert not (container / "id").exists()
    store.unmount(layer_id)


def test_kernel_gives_everything_back_that_listings_gave_it(tree):
    def held() -> int:
        text = (tree.path / "control/metrics").read_text()
        return int(float(re.findall(r"^fsd_entries_held (\S+)", text, re.MULTILINE)[0]))

    for number in range(20):
        (tree.path / f"layers/n{number}").mkdir()
    for _ in range(10):
        look(tree.path / "layers")
        look(tree.path / "containers")
    assert held() > 20 * 25

    def is_dropped() -> bool:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        return held() < 30

    assert eventually(is_dropped)


# -- anything, in any order --------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d"])
STEPS = st.lists(st.tuples(st.sampled_from(["look", "look", *"MFLNPQSDRWBCXE"]), NAMES, NAMES), max_size=14)


def step(tree: Mounted, store: Store, what: str, one: str, two: str) -> None:
    """One change or look; those that cannot be done now are refused."""
    top, container = tree.path, tree.path / "containers" / one
    todo: dict[str, Callable[[], object]] = {
        "look": lambda: [look(top / table) for table in ("layers", "images", "containers")],
        "M": container.mkdir,
        "F": lambda: (container / "from").write_text(f"layers/{two}"),
        "L": lambda: (top / "layers" / one).mkdir(),
        "N": lambda: (top / "layers" / one / "children" / two).mkdir(),
        "P": (container / "pinned").touch,
        "Q": (container / "pinned").unlink,
        "S": (container / "snapshots" / two).mkdir,
        "D": container.rmdir,
        "R": lambda: container.rename(top / "containers" / two),
        "W": lambda: (container / "rootfs" / two).write_text(two),
        "B": lambda: (container / "big-data" / two).write_text(two),
        "C": lambda: (container / "commit").write_text(f"localhost/{two}:1"),
        "X": lambda: store.set_metadata(store.lookup(one), two),
        "E": lambda: store.set_names(store.lookup(one), [one, f"{two}{two}"]),
    }
    with suppress(OSError, StoreError):
        todo[what]()


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_tree_shows_what_a_fresh_mount_shows_after_any_changes(tree, store, store_dirs, btrfs_dir, steps):
    for what, one, two in steps:
        step(tree, store, what, one, two)
    os.sync()
    before = shown(tree.path / "containers"), shown(tree.path / "layers"), shown(tree.path / "images")
    with mounted(store_dirs, btrfs_dir / "fresh") as fresh:
        assert shown(fresh.path / "containers") == before[0]
        assert shown(fresh.path / "layers") == before[1]
        assert shown(fresh.path / "images") == before[2]
