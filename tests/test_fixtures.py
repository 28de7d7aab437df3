"""The fixtures hold what they promise, so that a failing test means a failing product."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import loops
from tests.support.features import PROBES, present
from tests.support.trees import snapshot_tree


def test_podman_run_works_on_this_machine(podman, rootfs_tar):
    podman("import", rootfs_tar, "localhost/small:1")
    said = podman("run", "--name", "one", "localhost/small:1", "sh", "-c", "echo hi > /srv/said; id -u")
    assert said.stdout == "0\n"
    point = Path(podman("mount", "one").stdout.strip())
    assert (point / "srv/said").read_text() == "hi\n"
    assert (point / "bin/su").stat().st_mode & 0o7777 == 0o4755
    assert os.getxattr(point / "srv/labelled", "user.fsd.test") == b"value"
    assert (point / "etc/hostname").stat().st_nlink == 2
    podman("umount", "one")


def test_peers_share_one_store(podman, buildah, skopeo, containers_storage, rootfs_tar):
    podman("import", rootfs_tar, "localhost/small:1")
    container = buildah("from", "localhost/small:1").stdout.strip()
    assert container in podman("ps", "-a", "--external").stdout
    assert '"Layers"' in skopeo("inspect", "containers-storage:localhost/small:1").stdout
    assert "localhost/small:1" in containers_storage("images").stdout


def test_delete_tree_with_subvolumes_and_mounts_leaves_nothing(btrfs_root):
    directory = btrfs_root / "doomed"
    directory.mkdir()
    loops.run("btrfs", "subvolume", "create", directory / "outer")
    loops.run("btrfs", "subvolume", "create", directory / "outer/inner")
    loops.run("btrfs", "subvolume", "snapshot", "-r", directory / "outer", directory / "frozen")
    loops.run("mount", "--bind", directory / "outer", directory / "outer")
    loops.delete_tree(btrfs_root, directory)
    assert not directory.exists()
    assert not loops.mounts_below(directory)


def test_sweep_removes_only_what_a_dead_run_left(run_dir, monkeypatch, require):
    require("btrfs")
    base = run_dir / "base"
    base.mkdir()
    monkeypatch.setattr(loops, "BASE", base)
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, foreign = base / f"{gone.pid}-1", base / f"{gone.pid}-2"
    for home in (dead, foreign):
        home.mkdir()
    (dead / "owner").write_text(dead.name)
    with loops.loop_mount(dead, "m", mkfs=("mkfs.ext4", "-q"), size=16 << 20) as point:
        alive = loops.new_run()
        assert not loops.mounts_below(point)
        assert not loops.loop_devices(dead)
        assert sorted(base.iterdir()) == sorted([foreign, alive])
        point.parent.mkdir()
        (dead / "m.img").touch()
    loops.remove_run(alive)


def test_snapshot_tree_with_any_difference_is_unequal(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for top in (one, two):
        top.mkdir()
        (top / "file").write_text("content")
        os.link(top / "file", top / "link")
    assert snapshot_tree(one, times=False) == snapshot_tree(two, times=False)
    (two / "link").unlink()
    (two / "link").write_text("content")
    assert snapshot_tree(one, times=False) != snapshot_tree(two, times=False)


@pytest.mark.parametrize("feature", PROBES)
def test_probe_of_every_feature_answers(feature):
    assert present(feature) in (True, False)


def test_ext4_and_xfs_are_what_they_say(ext4_dir, xfs_dir):
    kinds = [loops.run("stat", "-f", "-c", "%T", path).strip() for path in (ext4_dir, xfs_dir)]
    assert kinds == ["ext2/ext3", "xfs"]
