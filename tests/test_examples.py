"""The programs in ``examples/`` do what they say, and stay small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))


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
