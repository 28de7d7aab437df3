"""Finding the processes that hold a tree, on a subvolume and on a plain directory."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from drivers import btrfs_ioctl
from fsd.plane import mount, unmount
from store.holders import holders

WAIT = "import sys; print(1, flush=True); sys.stdin.read()"


@pytest.fixture(params=["subvolume", "directory"])
def tree(request: pytest.FixtureRequest, btrfs_dir: Path) -> Path:
    if request.param == "subvolume":
        btrfs_ioctl.create_subvolume(btrfs_dir, "tree")
    else:
        (btrfs_dir / "tree").mkdir()
    (btrfs_dir / "tree" / "sub").mkdir()
    return btrfs_dir / "tree"


@contextmanager
def running(*argv: str | Path, **options: object):
    """A child that waits for its input to close; ready when the block begins."""
    child = subprocess.Popen(
        list(map(str, argv)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )
    try:
        assert child.stdout.readline().strip() == b"1"
        yield child
    finally:
        child.stdin.close()
        child.stdout.close()
        child.wait(30)


def test_an_idle_tree_has_no_holder(tree: Path) -> None:
    (tree / "file").write_text("x")
    with open(tree / "file"):
        assert holders(tree) == []


def test_a_working_directory_holds_the_tree(tree: Path) -> None:
    with running(sys.executable, "-c", WAIT, cwd=tree / "sub") as child:
        (holder,) = holders(tree)
    assert (holder.pid, holder.what) == (child.pid, "its working directory")
    assert holder.command.startswith("python")
    assert str(child.pid) in str(holder)


def test_an_open_file_holds_the_tree(tree: Path) -> None:
    (tree / "file").write_text("x")
    code = f"f = open({str(tree / 'file')!r}); {WAIT}"
    with running(sys.executable, "-c", code) as child:
        assert [(h.pid, h.what) for h in holders(tree)] == [(child.pid, "an open file")]
        assert holders(tree, ignore=[child.pid]) == []


def test_a_descriptor_that_only_marks_a_place_holds_nothing(tree: Path) -> None:
    code = f"import os; os.open({str(tree)!r}, os.O_PATH); {WAIT}"
    with running(sys.executable, "-c", code):
        assert holders(tree) == []


def test_a_directory_in_a_private_copy_of_the_mount_holds_nothing(tree: Path) -> None:
    code = f"""
import os
from drivers import syscalls
copy = syscalls.clone_tree({str(tree)!r})
os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=copy)
{WAIT}
"""
    with running(sys.executable, "-c", code):
        assert holders(tree) == []


def test_a_server_that_never_answers_hangs_nobody(tree: Path, btrfs_dir: Path) -> None:
    point = btrfs_dir / "silent"
    point.mkdir()
    device = mount(point)  # nobody serves it
    try:
        (tree / "lock").touch()
        look = f"""
from pathlib import Path
from store.holders import holders
from store.lockfile import LockFile
tree = Path({str(tree)!r})
print(holders(tree), LockFile(tree / "lock").holders())
"""
        with running(sys.executable, "-c", f"import os; os.open({str(point)!r}, os.O_PATH); {WAIT}"):
            done = subprocess.run(
                [sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True
            )
        assert done.stdout == "[] ()\n"
    finally:
        os.close(device)
        unmount(point)


def test_a_root_directory_holds_the_tree(tree: Path) -> None:
    code = f"import os; os.chdir('/'); os.chroot({str(tree)!r}); {WAIT}"
    with running(sys.executable, "-c", code) as child:
        assert [(h.pid, h.what) for h in holders(tree)] == [(child.pid, "its root directory")]


def test_a_bind_mount_holds_the_tree(tree: Path, btrfs_dir: Path) -> None:
    point = btrfs_dir / "a point"
    point.mkdir()
    subprocess.run(["mount", "--bind", tree / "sub", point], check=True)
    try:
        found = holders(tree)
        assert [h.what for h in found] == [f"a mount at {point}"]
        assert holders(tree, ignore=[os.getpid()]) == found
    finally:
        subprocess.run(["umount", point], check=True)
    assert holders(tree) == []


def test_a_mount_in_a_namespace_of_its_own_holds_the_tree(tree: Path, btrfs_dir: Path) -> None:
    point = btrfs_dir / "point"
    point.mkdir()
    script = f"mount --bind {tree} {point} && exec {sys.executable} -c '{WAIT}'"
    with running("unshare", "--mount", "sh", "-c", script) as child:
        assert [(h.pid, h.what) for h in holders(tree)] == [(child.pid, f"a mount at {point}")]


def test_a_neighbour_with_the_same_prefix_holds_nothing(tree: Path, btrfs_dir: Path) -> None:
    neighbour = btrfs_dir / "tree2"
    neighbour.mkdir()
    with running(sys.executable, "-c", WAIT, cwd=neighbour):
        assert holders(tree) == []


def test_file_open_for_a_moment_does_not_hold_the_tree(tree: Path) -> None:
    """A daemon that measures a tree has it open, and would otherwise keep others from a rollback."""
    (tree / "file").write_text("x")
    code = "\n".join(
        (
            "import sys, time",
            "with open(sys.argv[1]):",
            "    print(1, flush=True)",
            "    sys.stdin.readline()",
            "    time.sleep(0.2)",
            "sys.stdin.read()",
        )
    )
    with running(sys.executable, "-c", code, tree / "file") as child:
        assert [holder.pid for holder in holders(tree, patience=0)] == [child.pid]
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert holders(tree, patience=60) == []
