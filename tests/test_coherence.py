"""What others change on the real path shows in the mount although the kernel kept what was there before."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import features, loops
from tests.support.rootfs_mount import RootfsMount
from tests.support.rootfs_samples import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUEUE_LENGTH = Path("/proc/sys/fs/fanotify/max_queued_events")
OLD_SECONDS = 4
"""A file keeps its attributes no longer than it was left alone, so what is to be kept has to be this old."""
WITHIN_SECONDS = 2


@dataclass(frozen=True)
class Sides:
    """One directory on the real path and in the mount."""

    real: Path
    here: Path


@dataclass(frozen=True)
class Shown:
    """A mount with two writable views, ``c`` and ``also``, of the subvolume ``real``."""

    mount: RootfsMount
    real: Path

    def sides(self, name: str) -> Sides:
        """A directory in it."""
        return Sides(self.real / name, self.mount.path / "c" / name)


def fill(place: Path) -> None:
    """What the cases change."""
    (place / "d/sub").mkdir(parents=True)
    (place / "d/sub/below").write_text("below")
    (place / "empty").mkdir()
    (place / "f").write_bytes(b"first" * 1000)
    (place / "g").write_text("g")
    (place / "l").symlink_to("f")
    os.link(place / "f", place / "d/hard")


def fill_subvolume(place: Path) -> None:
    """What is changed on btrfs only."""
    run("btrfs", "subvolume", "create", place / "volume")
    (place / "volume/in").write_text("in")


def state(top: Path) -> dict[str, tuple[object, ...]]:
    """Names and attributes of everything below, without opening a file."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(top):
        for name in [".", *names, *files]:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            times = (info.st_mtime_ns, info.st_ctime_ns)
            rest = (info.st_mode, info.st_nlink, info.st_uid, info.st_gid, info.st_size)
            target = os.readlink(path) if os.path.islink(path) else ""
            found[os.path.relpath(path, top)] = (*rest, *times, target)
    return found


def eventually(
    wanted: Callable[[], object], found: Callable[[], object], within: float = WITHIN_SECONDS
) -> None:
    """Both give the same soon, and go on to."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        with suppress(FileNotFoundError):  # a name that is listed still, and gone when it is looked at
            if found() == wanted():
                return
        time.sleep(0.002)
    assert found() == wanted()


@contextmanager
def opened(directory: Path) -> Iterator[Path]:
    """A path to a directory that costs no lookups."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def fill_home(home: Path, places: list[str], *, btrfs: bool = True) -> None:
    """Make a subvolume, or directory, with these directories in it, each filled."""
    home.mkdir()
    real = home / "c"
    run(*(("btrfs", "subvolume", "create") if btrfs else ("mkdir",)), real)
    for name in places:
        (real / name).mkdir()
        fill(real / name)
        if btrfs:
            fill_subvolume(real / name)
    (home / "filled").touch()


@contextmanager
def shown(home: Path, **plane: int) -> Iterator[Shown]:
    """Serve what ``fill_home`` made some seconds ago; the rest of them is waited for."""
    features.require("fuse")
    with tempfile.TemporaryDirectory(prefix="fsd-rootfs-") as place:
        real = home / "c"
        time.sleep(max(0.0, (home / "filled").stat().st_mtime + OLD_SECONDS - time.time()))
        views = {"c": (real, False), "also": (real, False)}
        with RootfsMount(
            Path(place) / "mnt", views, Path(place) / "scratch", plane={"quiet": 1, **plane}
        ) as mount:
            yield Shown(mount, real)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rename_directory(place: Path) -> None:
    os.rename(place / "d/sub", place / "empty/sub")


def write_mapped(place: Path) -> None:
    with (place / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:3] = b"XYZ"


def remove_subvolume(place: Path) -> None:
    run("btrfs", "subvolume", "delete", place / "volume")


def snapshot_over(place: Path) -> None:
    (place / "empty").rmdir()
    run("btrfs", "subvolume", "snapshot", place / "volume", place / "empty")


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda place: (place / "new").write_text("new"),
    "make": lambda place: (place / "d/new/deeper").mkdir(parents=True),
    "unlink": lambda place: (place / "f").unlink(),
    "rename over": lambda place: os.rename(place / "g", place / "f"),
    "rename": lambda place: os.rename(place / "g", place / "d/moved"),
    "rename a directory": rename_directory,
    "rmdir": lambda place: (place / "empty").rmdir(),
    "chmod": lambda place: (place / "f").chmod(0o4711),
    "chmod a directory": lambda place: (place / "d").chmod(0o711),
    "chown": lambda place: os.chown(place / "g", 12, 34),
    "touch": lambda place: os.utime(place / "g", (1, 2)),
    "truncate": lambda place: os.truncate(place / "f", 7),
    "grow": lambda place: os.truncate(place / "g", 70000),
    "write": lambda place: (place / "f").write_bytes(b"other" * 1000),
    "append": lambda place: append(place / "f"),
    "write mapped": write_mapped,
    "write by another name": lambda place: (place / "d/hard").write_bytes(b"linked" * 500),
    "unlink another name": lambda place: (place / "d/hard").unlink(),
    "link": lambda place: os.link(place / "g", place / "d/again"),
    "symlink over": lambda place: ((place / "l").unlink(), (place / "l").symlink_to("g")),
    "set an attribute": lambda place: os.setxattr(place / "g", "user.a", b"value"),
    "set an access list": lambda place: run("setfacl", "-m", "u:12:rw", place / "g"),
}
CHANGES_OF_BTRFS: dict[str, Callable[[Path], object]] = {
    "clone": lambda place: run("cp", "--reflink=always", place / "g", place / "f"),
    "remove a subvolume": remove_subvolume,
    "make a subvolume": snapshot_over,
    "write in a subvolume": lambda place: (place / "volume/in").write_text("changed"),
}


@pytest.fixture(scope="module")
def homes(btrfs_root: Path) -> Iterator[Path]:
    """What all mounts of btrfs here serve, filled at once, so that the time they need passes once."""
    top = btrfs_root / "coherence"
    top.mkdir()
    try:
        fill_home(top / "views", [place_of(name) for name in [*CHANGES, *CHANGES_OF_BTRFS, *OTHERS]])
        for name in ("lost", "rest", "mixed"):
            fill_home(top / name, ["w"])
        yield top
    finally:
        loops.delete_tree(btrfs_root, top)


@pytest.fixture(scope="module")
def views(homes: Path) -> Iterator[Shown]:
    """One mount for all kinds of changes."""
    with shown(homes / "views") as served:
        yield served


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def other_views(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[Shown]:
    """The same on a filesystem of another type, as the vfs and overlay drivers have it."""
    features.require("xfs" if request.param == "xfs" else "btrfs")
    mkfs = (f"mkfs.{request.param}", "-q")
    with loops.loop_mount(run_dir, f"coherence-{request.param}", mkfs=mkfs, size=1 << 29) as top:
        fill_home(top / "home", [place_of(name) for name in CHANGES], btrfs=False)
        with shown(top / "home") as served:
            yield served


def place_of(kind: str) -> str:
    """The directory a kind of change is tried in."""
    return kind.replace(" ", "-")


OTHERS = ("at-once", "two-views", "kept", "negative", "own")


def content(top: Path) -> dict[str, tuple[bytes, dict[str, bytes]]]:
    """What is in the files below, and their extended attributes."""
    paths = [Path(directory, name) for directory, _, files in os.walk(top) for name in files]
    return {
        str(path.relative_to(top)): (path.read_bytes(), {n: os.getxattr(path, n) for n in os.listxattr(path)})
        for path in paths
        if not path.is_symlink()
    }


@pytest.mark.parametrize("kind", [*CHANGES, *CHANGES_OF_BTRFS])
def test_change_on_the_real_path_shows(views: Shown, kind: str) -> None:
    check_that_it_shows(views, kind)


@pytest.mark.parametrize("kind", CHANGES)
def test_change_on_another_filesystem_shows(other_views: Shown, kind: str) -> None:
    check_that_it_shows(other_views, kind)
    assert other_views.mount.stats()["unwatched"] == 0


def check_that_it_shows(views: Shown, kind: str) -> None:
    """Make a change on the real path of what the kernel holds from the mount."""
    sides = views.sides(place_of(kind))
    assert state(sides.here) == state(sides.real)
    assert content(sides.here) == content(sides.real)
    assert state(sides.here) == state(sides.real)
    {**CHANGES, **CHANGES_OF_BTRFS}[kind](sides.real)
    eventually(lambda: state(sides.real), lambda: state(sides.here))
    assert content(sides.here) == content(sides.real)


def test_unchanged_tree_is_not_asked_for_again(views: Shown) -> None:
    sides = views.sides("kept")
    for _ in range(2):
        state(sides.here)
        content(sides.here)
    before = views.mount.operations()
    with opened(sides.here) as directory:  # the name of a view is looked up each time
        state(directory)
        os.close(os.open(directory / "f", os.O_RDONLY))
    asked = views.mount.operations() - before
    assert set(asked) <= {"lookup", "opendir", "releasedir", "open", "release"}
    assert asked["lookup"] <= 1
    assert views.mount.stats()["unwatched"] == 0
    assert views.mount.stats()["watched"] >= 2


def test_data_is_right_at_once(views: Shown) -> None:
    sides = views.sides("at-once")
    for number in range(3):  # known, then kept, then kept for good
        assert (sides.here / "f").read_bytes() == b"first" * 1000, number
    with (sides.real / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:5] = b"FIRST"
        assert (sides.here / "f").read_bytes()[:5] == b"FIRST"
        memory[:5] = b"again"
        assert (sides.here / "f").read_bytes()[:5] == b"again"
    with (sides.real / "g").open("r+b", buffering=0) as file:
        for number in range(100):
            os.pwrite(file.fileno(), str(number).encode(), 0)
            assert (sides.here / "g").read_bytes() == str(number).encode()


def test_change_through_another_view_shows(views: Shown) -> None:
    sides, other = views.sides("two-views"), views.mount.path / "also/two-views"
    for _ in range(2):
        assert content(sides.here) == content(other) == content(sides.real)
    (other / "f").write_bytes(b"from the other")
    (other / "made").touch()
    (other / "g").unlink()
    os.rename(other / "d/sub", other / "empty/sub")
    eventually(lambda: set(state(sides.real)), lambda: set(state(sides.here)))
    assert content(sides.here) == content(sides.real)
    with (other / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:4] = b"FROM"
    assert (sides.here / "f").read_bytes() == (sides.real / "f").read_bytes() == b"FROM the other"


def test_name_that_was_not_there_shows(views: Shown) -> None:
    sides = views.sides("negative")
    for number in range(30):
        name = f"n{number}"
        assert not (sides.here / name).exists()
        assert not (sides.here / name).exists()
        (sides.real / name).touch()
        eventually(lambda: True, (sides.here / name).exists)
        (sides.real / name).unlink()
        eventually(lambda: False, (sides.here / name).exists)


def test_own_changes_show_on_both_sides(views: Shown) -> None:
    sides = views.sides("own")
    assert state(sides.here) == state(sides.real)
    for kind in ("create", "link", "rename", "chmod a directory", "append", "write mapped", "rmdir"):
        CHANGES[kind](sides.here)
        eventually(lambda: state(sides.real), lambda: state(sides.here))


def test_lost_events_make_everything_be_asked_for_again(homes: Path) -> None:
    before = QUEUE_LENGTH.read_text()
    try:
        QUEUE_LENGTH.write_text("8")  # a queue keeps the length it was made with
        with shown(homes / "lost") as served:
            sides = served.sides("w")
            for _ in range(2):
                assert state(sides.here) == state(sides.real)
                assert content(sides.here) == content(sides.real)
            QUEUE_LENGTH.write_text(before)
            for number in range(500):
                (sides.real / f"n{number}").touch()
                (sides.real / f"d/n{number}").touch()
            (sides.real / "f").write_text("changed")
            (sides.real / "d").chmod(0o700)
            eventually(lambda: state(sides.real), lambda: state(sides.here))
            assert content(sides.here) == content(sides.real)
            assert served.mount.stats()["lost"] > 0
    finally:
        QUEUE_LENGTH.write_text(before)


def test_changes_are_followed_only_while_somebody_looks(homes: Path) -> None:
    with shown(homes / "rest", idle=1) as served:
        sides = served.sides("w")
        for _ in range(2):
            assert state(sides.here) == state(sides.real)
            assert content(sides.here) == content(sides.real)
        assert served.mount.stats()["watching"] == 1
        with (sides.here / "f").open() as held:
            eventually(lambda: 0, lambda: served.mount.stats()["watching"], 5)
            (sides.real / "new").touch()
            (sides.real / "d").chmod(0o700)
            (sides.real / "f").write_bytes(b"other" * 1000)
            eventually(lambda: state(sides.real), lambda: state(sides.here))
            assert held.read() == "other" * 1000
        assert content(sides.here) == content(sides.real)
        eventually(lambda: 1, lambda: bool(state(sides.here)) and served.mount.stats()["watching"])
        assert served.mount.stats()["watched"] >= 2


# -- anything in any order -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(homes: Path) -> Iterator[Shown]:
    """A mount for random operations."""
    with shown(homes / "mixed") as served:
        yield served


NAMES = st.sampled_from(["a", "b", "s/a", "s/b", "s/t/a"])
OPERATIONS: dict[str, Callable[[Path, Path], object]] = {
    "write": lambda one, _: one.write_bytes(os.urandom(20)),
    "append": lambda one, _: append(one),
    "truncate": lambda one, _: os.truncate(one, 3),
    "mkdir": lambda one, _: one.mkdir(),
    "unlink": lambda one, _: one.unlink(),
    "rmdir": lambda one, _: one.rmdir(),
    "rename": lambda one, two: os.rename(one, two),
    "link": lambda one, two: os.link(one, two),
    "symlink": lambda one, two: one.symlink_to(two.name),
    "chmod": lambda one, _: one.chmod(0o604),
    "utime": lambda one, _: os.utime(one, (5, 6)),
}
STEPS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(sorted(OPERATIONS)), NAMES, NAMES), min_size=5, max_size=15
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_random_operations_on_both_sides_agree(mixed: Shown, steps: list[tuple[bool, str, str, str]]) -> None:
    top = tempfile.mkdtemp(dir=mixed.real)
    sides = mixed.sides(os.path.basename(top))
    (sides.real / "s/t").mkdir(parents=True)
    eventually(lambda: state(sides.real), lambda: state(sides.here))
    for through_mount, kind, one, two in steps:
        place = sides.here if through_mount else sides.real
        try:
            OPERATIONS[kind](place / one, place / two)
        except OSError:
            continue
        eventually(lambda: state(sides.real), lambda: state(sides.here))
    run("rm", "-r", sides.real)


STORM = """
import os, random, sys
top, count = sys.argv[1], int(sys.argv[2])
choose = random.Random(7)
for n in range(count):
    d = f"{top}/d{choose.randrange(4)}"
    one, two = (f"{d}/f{choose.randrange(12)}" for _ in "ab")
    what = choose.randrange(5)
    try:
        if what == 0:
            with open(one, "a") as file: file.write("x" * n)
        elif what == 1: os.unlink(one)
        elif what == 2: os.rename(one, two)
        elif what == 3: os.chmod(one, choose.randrange(0o777))
        else: os.mkdir(one) if n % 2 else os.rmdir(one)
    except OSError: pass
"""


def test_answers_under_way_during_a_change_are_not_kept(mixed: Shown) -> None:
    sides = mixed.sides("storm")
    for number in range(4):
        (sides.real / f"d{number}").mkdir(parents=True)
    look = "import os, sys\nwhile True:\n  for d, _, fs in os.walk(sys.argv[1]):\n    for f in fs + ['no']:\n"
    look += "      try: os.stat(os.path.join(d, f))\n      except OSError: pass\n"
    lookers = [subprocess.Popen([sys.executable, "-S", "-c", look, sides.here]) for _ in range(3)]
    try:
        for _ in range(5):
            subprocess.run([sys.executable, "-S", "-c", STORM, sides.real, "400"], check=True)
            eventually(lambda: state(sides.real), lambda: state(sides.here))
    finally:
        for looker in lookers:
            looker.kill()
            looker.wait()
