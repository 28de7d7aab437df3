"""The programs in ``examples/`` do what they say, and stay small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.filled import BASE, CONTAINER, TOP, fill
from tests.support.mounted import mounted
from tests.support.tools import StoreDirs, ToolBox

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))
SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))


def run(name: str, *arguments: object) -> str:
    """What an example prints; its errors are ours."""
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / name, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def roots(store_dirs) -> tuple[Path, Path]:
    (store_dirs.graphroot / "btrfs").mkdir(mode=0o700)  # which driver a store has is told by its directory
    return store_dirs.graphroot, store_dirs.runroot


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_an_example_has_a_docstring_and_fewer_than_sixty_lines(program: Path) -> None:
    text = program.read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) < 60


def test_import_and_fill_makes_what_list_store_and_podman_show(roots, rootfs_tar, podman) -> None:
    printed = run("import_and_fill.py", *roots, rootfs_tar)
    assert "localhost/example:latest is image" in printed
    assert "web has bin, etc, root, srv" in printed
    assert "a second time is refused: container web was filled already" in printed
    listed = run("list_store.py", *roots)
    assert "image localhost/example:latest" in listed
    assert "container web  from localhost/example:latest  mounted 0 times" in listed
    assert podman("run", "--rm", "example", "sh", "-c", "echo $GREETING").stdout == "hello\n"


def test_undo_a_change_goes_back_and_forth(roots, rootfs_tar) -> None:
    run("import_and_fill.py", *roots, rootfs_tar)
    printed = run("undo_a_change.py", *roots, "web").splitlines()
    assert printed[0] == "etc exists: False"
    assert printed[1] == "etc exists: True; the accident is kept as a snapshot (pre-rollback)"
    assert printed[2] == "etc exists: False"
    assert printed[3:] == ["snapshot (manual)", *["snapshot (pre-rollback)"] * 3]


def test_copy_as_layout_makes_what_skopeo_reads(roots, rootfs_tar, skopeo, btrfs_dir) -> None:
    run("import_and_fill.py", *roots, rootfs_tar)
    printed = run("copy_as_layout.py", *roots, "example", btrfs_dir / "layout")
    assert "oci-layout" in printed
    assert "GREETING=hello" in skopeo("inspect", "--config", f"oci:{btrfs_dir / 'layout'}").stdout


# -- the tree, in a shell ----------------------------------------------------------------------


@pytest.fixture
def tree(podman, buildah, rootfs_tar, store_dirs, btrfs_dir, require) -> Iterator[Path]:
    require("fuse")
    fill(podman, buildah, rootfs_tar, store_dirs)
    with mounted(store_dirs, btrfs_dir / "mnt") as serving:
        yield serving.path


def shell(name: str, *arguments: object, code: int = 0) -> str:
    """What a script prints; its errors are ours."""
    argv = ["sh", str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_what_it_is_for_and_has_fewer_than_sixty_lines(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert lines[1].startswith("# ")
    assert len(lines) < 60
    assert os.access(script, os.X_OK)


def test_inspect_image_tells_what_is_in_it(tree) -> None:
    printed = shell("inspect_image.sh", tree, TOP)
    assert f"names:    {TOP} \n" in printed
    assert '"made":"by-buildah"' in printed
    assert f"used by:  {CONTAINER} \n" in printed
    assert "layer 01: " in printed


def test_find_secret_finds_it_in_the_layer_that_has_it(tree) -> None:
    assert shell("find_secret.sh", tree, "no such text anywhere", code=1) == ""
    (tree / "containers/leaky").mkdir()
    (tree / "containers/leaky/from").write_text(BASE)
    (tree / "containers/leaky/rootfs/etc/key").write_text("hunter2\n")
    (tree / "containers/leaky/commit").write_text("localhost/leaky:1")
    (tree / "containers/leaky").rmdir()
    (layer,) = {os.readlink(tree / "images/localhost/leaky:1/layer").rpartition("/")[2]}
    assert shell("find_secret.sh", tree, "hunter2") == f"{layer[:12]} localhost/leaky:1 /etc/key\n"


def test_build_image_makes_what_podman_runs(tree, podman, btrfs_dir) -> None:
    (btrfs_dir / "add/srv").mkdir(parents=True)
    (btrfs_dir / "add/srv/hello").write_text("hello\n")
    assert "A /srv/hello\n" in shell("build_image.sh", tree, BASE, btrfs_dir / "add", "localhost/built:1")
    assert podman("run", "--rm", "localhost/built:1", "cat", "/srv/hello").stdout == "hello\n"
    assert os.listdir(tree / "containers") == [CONTAINER]


def test_nightly_snapshots_are_the_last_seven(tree) -> None:
    for number in range(9):
        (tree / "containers" / CONTAINER / "rootfs/n").write_text(str(number))
        printed = shell("nightly_snapshot.sh", tree, CONTAINER)
    assert printed == f"{CONTAINER}: 7 nightly snapshots\n"
    kept = sorted((tree / "containers" / CONTAINER / "snapshots").glob("nightly-*"))
    assert [(snapshot / "rootfs/n").read_text() for snapshot in kept] == [str(n) for n in range(2, 9)]


def test_undo_edit_goes_back_to_before_it(tree) -> None:
    hostname = tree / "containers" / CONTAINER / "rootfs/etc/hostname"
    before = hostname.read_text()
    hostname.write_text("broken\n")
    printed = shell("undo_edit.sh", tree, CONTAINER)
    assert "C /etc/hostname\n" in printed
    assert "the edit is kept as pre-rollback-" in printed
    assert hostname.read_text() == before


def test_copy_image_puts_it_into_another_store(tree, skopeo, btrfs_dir) -> None:
    (btrfs_dir / "other").mkdir()
    dirs = StoreDirs(btrfs_dir / "other/g", btrfs_dir / "other/r")
    place = f"containers-storage:[vfs@{dirs.graphroot}+{dirs.runroot}]localhost/copied:1"
    printed = shell("copy_image.sh", tree, TOP, place)
    assert printed == f"copied {(tree / 'images' / TOP / 'digest').read_text()}"
    other = ToolBox(dirs, "vfs", btrfs_dir / "other/conf").podman()
    assert (tree / "images" / TOP / "id").read_text() in other("images", "-q", "--no-trunc").stdout.replace(
        "sha256:", ""
    )
