"""Overlay stores shared with podman, buildah and containers-storage, both ways."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from drivers.base import MountOptions
from drivers.overlay_mount import is_mounted
from tests.support.overlays import archive, chain, opener
from tests.support.tools import StoreDirs, ToolBox
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from drivers.overlay import OverlayDriver

A, B, C = "a" * 64, "b" * 64, "c" * 64
READ_ONLY = MountOptions(options=("ro",))
BUSYBOX_LAYERS = 3


@pytest.fixture(params=["btrfs_dir", "ext4_dir", "xfs_dir"])
def box(request: pytest.FixtureRequest, require: Callable[[str], None]) -> ToolBox:
    require("overlay")
    require("podman")
    place: Path = request.getfixturevalue(request.param)
    dirs = StoreDirs(place / "g", place / "r")
    dirs.graphroot.mkdir(mode=0o700)
    dirs.runroot.mkdir(mode=0o700)
    return ToolBox(dirs, "overlay", place / "conf")


@pytest.fixture
def opened(box: ToolBox) -> Iterator[Callable[[], OverlayDriver]]:
    with opener() as open_driver:
        try:
            yield lambda: open_driver(box.dirs.graphroot, runroot=str(box.dirs.runroot))
        finally:
            box.podman()("rm", "--all", "--force", check=False)
            box.containers_storage()("shutdown", "--force", check=False)


def test_store_of_the_original_is_read_extended_and_used_again(
    box: ToolBox, opened: Callable[[], OverlayDriver], rootfs_tar: Path
) -> None:
    tool = box.containers_storage()
    tool("import-layer", "-i", A, "-f", rootfs_tar)
    tool("create-layer", "-i", B, A)
    driver = opened()
    assert sorted(driver.layer_ids()) == [A, B]
    with driver.mounted(A, READ_ONLY) as ours, tarfile.open(rootfs_tar) as tar:
        assert {path for path in snapshot_tree(ours) if path != "."} == set(tar.getnames())
    with driver.mounted(B) as tree:
        (tree / "etc" / "hostname").write_text("ours\n")
        (tree / "srv" / "empty").unlink()
        (tree / "srv" / "new").write_text("new")
    theirs = {line.replace('"', "") for line in tool("changes", B).stdout.split("\n") if line}
    ours_changes = driver.changes(B, A)
    mine = {f"{_WORDS[change.kind.value]} {os.fsdecode(change.path)}" for change in ours_changes}
    # The original leaves out a directory above a change if its copy has the size and time of the one below.
    assert theirs <= mine <= theirs | {"Modify /etc"}
    merged = tool("mount", B).stdout.strip()
    try:
        with driver.mounted(B) as tree:
            assert str(tree) == merged
            assert (tree / "srv" / "new").read_text() == "new"
    finally:
        assert is_mounted(driver.home / B / "merged")
        tool("unmount", B)
    assert not is_mounted(driver.home / B / "merged")


def test_mount_made_after_the_original_cleaned_up_is_not_hidden_by_its_next_one(
    box: ToolBox, opened: Callable[[], OverlayDriver]
) -> None:
    """It takes away the bind mount of the driver's home when it ends, and makes it when it begins."""
    tool = box.containers_storage()
    for name in (A, B):
        tool("create-layer", "-i", name)
    driver = opened()
    tool("shutdown")
    assert not is_mounted(driver.home)
    with driver.mounted(A):
        tool("mount", B)
        assert is_mounted(driver.home / A / "merged")
    assert not is_mounted(driver.home / A / "merged")
    tool("delete-layer", A)
    tool("unmount", B)


_WORDS = {"C": "Modify", "A": "Add", "D": "Delete"}


def test_layers_of_ours_are_mounted_and_deleted_by_the_original(
    box: ToolBox, opened: Callable[[], OverlayDriver]
) -> None:
    """The tables are made by the original, the layers' directories by us in their place."""
    tool = box.containers_storage()
    for name, parent in ((A, ""), (B, A), (C, B)):
        tool(*("create-layer", "-i", name, *([parent] if parent else [])))
    driver = opened()
    for name in (C, B, A):
        driver.remove(name)
    chain(driver, A, B, C)
    driver.apply_diff(A, archive("kept", "gone", "dir/", "dir/below"))
    driver.apply_diff(B, archive(".wh.gone", "dir/.wh..wh..opq", "dir/fresh"))
    with driver.mounted(C) as tree:
        (tree / "kept").rename(tree / "renamed")
        (tree / "dir" / "fresh").unlink()
    merged = tool("mount", C).stdout.strip()
    try:
        assert sorted(os.listdir(merged)) == ["dir", "renamed"]
        assert os.listdir(os.path.join(merged, "dir")) == []
    finally:
        tool("unmount", C)
    assert not os.path.lexists(merged)
    for name in (C, B, A):
        tool("delete-layer", name)
    assert list(driver.layer_ids()) == []
    assert os.listdir(driver.home / "l") == []


def test_archives_mean_the_same_to_both(
    box: ToolBox, opened: Callable[[], OverlayDriver], rootfs_tar: Path, tmp_path: Path
) -> None:
    layers = [rootfs_tar.read_bytes(), _archive_bytes("etc/.wh.group", "srv/.wh..wh..opq", "new/", "new/x")]
    tool, driver = box.containers_storage(), opened()
    for number, (name, parent, content) in enumerate(((A, "", layers[0]), (B, A, layers[1]))):
        path = tmp_path / str(number)
        path.write_bytes(content)
        tool(*("import-layer", "-i", name, "-f", path, *([parent] if parent else [])))
    chain(driver, "ours-a", "ours-b")
    for name, content in zip(("ours-a", "ours-b"), layers, strict=True):
        applied = driver.apply_diff(name, io.BytesIO(content))
        assert applied.diff_digest == "sha256:" + hashlib.sha256(content).hexdigest()
    with driver.mounted("ours-b", READ_ONLY) as ours, driver.mounted(B, READ_ONLY) as theirs:
        one, two = _without_directory_times(ours), _without_directory_times(theirs)
        assert one == two
    assert [change.path for change in driver.changes("ours-b", "ours-a")] == [
        change.path for change in driver.changes(B, A)
    ]


def _archive_bytes(*names: str) -> bytes:
    return archive(*names).getvalue()


def _without_directory_times(tree: Path) -> dict[str, tuple[object, ...]]:
    return {
        path: (entry.kind, entry.mode, entry.uid, entry.gid, entry.content, entry.xattrs)
        for path, entry in snapshot_tree(tree).items()
    }


def test_podman_runs_what_we_write_and_we_read_what_it_writes(
    box: ToolBox, opened: Callable[[], OverlayDriver], rootfs_tar: Path
) -> None:
    podman = box.podman()
    podman("import", rootfs_tar, "localhost/base:1")
    driver = opened()
    [image] = driver.layer_ids()
    script = "cat /etc/from-us; echo podman > /etc/from-podman; rm /etc/group"
    podman("create", "--name", "written", "localhost/base:1", "/bin/sh", "-c", script)
    [container] = set(driver.layer_ids()) - {image}
    assert (
        driver.metadata(container)["UpperDir"]
        == podman("inspect", "written", "--format", "{{.GraphDriver.Data.UpperDir}}").stdout.strip()
    )
    with driver.mounted(container) as tree:
        (tree / "etc" / "from-us").write_text("from us\n")
    assert podman("start", "--attach", "written").stdout == "from us\n"
    with driver.mounted(container, READ_ONLY) as tree:
        assert (tree / "etc" / "from-podman").read_text() == "podman\n"
        assert not (tree / "etc" / "group").exists()
    kinds = {change.path: change.kind.value for change in driver.changes(container, image)}
    assert (kinds[b"/etc/from-us"], kinds[b"/etc/from-podman"], kinds[b"/etc/group"]) == ("A", "A", "D")
    listed = set(podman("diff", "written").stdout.splitlines())
    assert {"A /etc/from-us", "A /etc/from-podman", "D /etc/group"} <= listed
    podman("commit", "-q", "written", "localhost/next:1")
    podman("rm", "written")
    assert not driver.exists(container)
    assert podman("run", "--rm", "localhost/next:1", "/bin/cat", "/etc/from-us").stdout == "from us\n"


def test_images_built_in_layers_are_chains_of_ours(
    box: ToolBox, opened: Callable[[], OverlayDriver], rootfs_tar: Path, tmp_path: Path
) -> None:
    podman = box.podman()
    podman("import", rootfs_tar, "localhost/base:1")
    (tmp_path / "Containerfile").write_text("FROM localhost/base:1\nCOPY one /srv/one\nCOPY two /srv/two\n")
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    build = ("build", "-q", "--layers", "--isolation", "chroot", "-t", "localhost/built:1", tmp_path)
    podman(*build)
    driver = opened()
    depths = {name: len(driver.place(name).lower()) for name in driver.layer_ids()}
    top = max(depths, key=lambda name: depths[name])
    assert depths[top] == BUSYBOX_LAYERS - 1
    with driver.mounted(top, READ_ONLY) as tree:
        assert {"one", "two", "owned"} <= set(os.listdir(tree / "srv"))


def test_probes_of_podman_are_believed(box: ToolBox, opened: Callable[[], OverlayDriver]) -> None:
    """The flag files have its names, and neither side repeats what the other has tried."""
    box.containers_storage()("status")
    flags = box.dirs.runroot / "overlay"
    theirs = {path.name: path.stat().st_mtime_ns for path in flags.iterdir()}
    opened()
    assert {path.name: path.stat().st_mtime_ns for path in flags.iterdir()} == theirs


def test_mount_in_another_namespace_does_not_stop_us(
    box: ToolBox, opened: Callable[[], OverlayDriver]
) -> None:
    """A layer may be mounted where we cannot see it; its directory still goes."""
    driver = opened()
    driver.create(A)
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", f"mount --bind /tmp {driver.home}/{A}/merged; echo up; read x"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        driver.remove(A)
        assert not driver.exists(A)
    finally:
        holder.communicate(b"\n")
