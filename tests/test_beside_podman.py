"""fsd and podman, buildah and skopeo on one store at the same time, and a store of real size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import traceback
from typing import TYPE_CHECKING

import pytest

from tests.support.bigtree import build_big_tar
from tests.support.mounted import mounted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.tools import StoreDirs, Tool

IMAGE = "localhost/base:1"
OPERATIONS = {"podman": 200, "buildah": 200, "skopeo": 100, "fsd": 200}
"""How many each does, at least, beside the others."""
BIG_TREE_ENTRIES = 50_000


def _podman_round(podman: Tool, number: int) -> int:
    """Eight podman operations; returns how many."""
    name = f"pod{number}"
    podman("create", "--name", name, IMAGE, "true")
    podman("mount", name)
    podman("umount", name)
    podman("tag", IMAGE, f"localhost/{name}:1")
    _list_external(podman)
    podman("images")
    podman("untag", IMAGE, f"localhost/{name}:1")
    podman("rm", name)
    return 8


def _list_external(podman: Tool) -> None:
    """``podman ps --external``, which fails where a container it has just listed is removed meanwhile."""
    while (done := podman("ps", "-a", "--external", check=False)).returncode:
        missing = re.search(r"for container ([0-9a-f]{64}): container not known", done.stderr)
        assert missing, done.stderr
        assert missing[1] not in podman("ps", "-aq", "--external", "--no-trunc", check=False).stdout


def _buildah_round(buildah: Tool, number: int) -> int:
    """Five buildah operations; returns how many."""
    name = f"work{number}"
    buildah("from", "--pull-never", "--name", name, IMAGE)
    buildah("config", "--label", f"number={number}", name)
    buildah("mount", name)
    buildah("umount", name)
    buildah("rm", name)
    return 5


def _skopeo_round(skopeo: Tool, directory: Path, number: int) -> int:
    """Three skopeo operations; returns how many."""
    layout = f"oci:{directory}/layout:{number}"
    skopeo("copy", "-q", f"containers-storage:{IMAGE}", layout)
    for image in (f"containers-storage:{IMAGE}", layout):
        assert len(json.loads(skopeo("inspect", image).stdout)["Layers"]) == 1
    return 3


def _fsd_round(tree: Path, number: int) -> int:
    """Eight file operations on the tree, each a whole command; returns how many."""
    container = tree / "containers" / f"fsd{number}"
    container.mkdir()
    (container / "from").write_text(f"{IMAGE}\n")
    (container / "rootfs/etc/hostname").write_text(f"{number}\n")
    assert len(os.listdir(container / "snapshots")) == 1
    (container / "snapshots/mine").mkdir()
    (container / "rollback").write_text("mine\n")
    renamed = container.with_name(f"renamed{number}")
    container.rename(renamed)
    assert (renamed / "rootfs/etc/hostname").read_text() == f"{number}\n"
    (renamed / "names").write_text(f"renamed{number}\nextra{number}\n")
    renamed.rmdir()
    return 8


def test_fsd_and_the_other_tools_use_one_store_at_once(
    podman: Tool,
    buildah: Tool,
    skopeo: Tool,
    containers_storage: Tool,
    rootfs_tar: Path,
    store_dirs: StoreDirs,
    btrfs_dir: Path,
    require: Callable[[str], None],
):
    require("fuse")
    podman("import", rootfs_tar, IMAGE)
    podman("create", "--name", "stays", IMAGE, "true")
    before = {kind: _listed(containers_storage, kind) for kind in ("layers", "images", "containers")}
    failures: list[str] = []

    def loop(tool: str, one_round: Callable[[int], int]) -> None:
        done = number = 0
        try:
            while done < OPERATIONS[tool] and not failures:
                done += one_round(number)
                number += 1
        except BaseException:
            failures.append(traceback.format_exc())

    with mounted(store_dirs, btrfs_dir / "mnt") as serving:
        rounds: dict[str, Callable[[int], int]] = {
            "podman": lambda number: _podman_round(podman, number),
            "buildah": lambda number: _buildah_round(buildah, number),
            "skopeo": lambda number: _skopeo_round(skopeo, btrfs_dir, number),
            "fsd": lambda number: _fsd_round(serving.path, number),
        }
        workers = [threading.Thread(target=loop, args=one) for one in rounds.items()]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not failures, "\n".join([*failures, serving.errors()])
        assert os.listdir(serving.path / "containers") == ["stays"]
    after = {kind: _listed(containers_storage, kind) for kind in ("layers", "images", "containers")}
    assert after == before
    subvolumes = os.listdir(store_dirs.graphroot / "btrfs" / "subvolumes")
    assert sorted(subvolumes) == after["layers"]


def _listed(containers_storage: Tool, kind: str) -> list[str]:
    return sorted(entry["id"] for entry in json.loads(containers_storage(kind, "--json").stdout or "[]"))


@pytest.fixture(scope="session")
def big_tar(run_dir: Path) -> Path:
    """A rootfs tar of at least 50,000 entries."""
    path = run_dir / "big.tar"
    assert build_big_tar(path, BIG_TREE_ENTRIES) >= BIG_TREE_ENTRIES
    return path


def test_store_of_real_size_is_listed_and_copied_without_a_difference(
    podman: Tool,
    buildah: Tool,
    big_tar: Path,
    rootfs_tar: Path,
    store_dirs: StoreDirs,
    btrfs_dir: Path,
    require: Callable[[str], None],
):
    require("fuse")
    podman("import", big_tar, "localhost/big:1")
    podman("import", rootfs_tar, IMAGE)
    for name, image in (("big:2", "localhost/big:1"), ("base:2", IMAGE)):
        work = buildah("from", image).stdout.strip()
        buildah("copy", work, rootfs_tar, "/added.tar")
        buildah("commit", "--rm", work, f"localhost/{name}")
    for number, image in enumerate(("localhost/big:2", "localhost/base:2", IMAGE)):
        podman("create", "--name", f"c{number}", image, "true")
    with mounted(store_dirs, btrfs_dir / "mnt") as serving:
        rootfs = serving.path / "images/localhost/big:2/rootfs"
        real = f"{serving.path}/images/localhost/big:2/layer/path/"
        listing = _run(
            "ls", "-lR", serving.path / "images/localhost/base:2", serving.path / "containers/c0", rootfs
        )
        assert listing.count("\n") > 2 * BIG_TREE_ENTRIES
        _run("cp", "-a", rootfs, btrfs_dir / "copy")
        assert _run("diff", "-r", "--no-dereference", btrfs_dir / "copy", real) == ""
        assert _entries(btrfs_dir / "copy") == _entries(rootfs) == _entries(real) > BIG_TREE_ENTRIES


def _run(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, errors="surrogateescape")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""
    return done.stdout


def _entries(path: Path | str) -> int:
    return len(_run("find", f"{path}", "-printf", "."))
