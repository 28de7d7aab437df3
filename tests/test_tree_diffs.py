"""Differences, image archives, ``commit``, ``pinned`` and ``limit`` in a mounted tree."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile

import pytest

from drivers import btrfs_ioctl
from tests.support.filled import BASE, CONTAINER, TOP, errname_of, eventually, write
from tests.support.mounted import mounted
from tests.support.tools import StoreDirs, ToolBox


def _edit(container):
    (container / "rootfs/etc/passwd").write_text("edited\n")
    (container / "rootfs/new file").write_text("new\n")
    (container / "rootfs/etc/group").unlink()


def _grow(path, size):
    with open(path, "wb", buffering=0) as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())


def test_changes_of_a_container_are_those_podman_reports(tree, podman):
    container = tree.path / "containers" / CONTAINER
    assert (container / "changes").stat().st_size == 0
    assert (container / "changes").read_text() == ""
    _edit(container)
    changes = (container / "changes").read_text()
    assert changes == "C /etc\nD /etc/group\nC /etc/passwd\nA /new file\n"
    assert (container / "changes").stat().st_size == len(changes)
    assert sorted(changes.splitlines()) == sorted(podman("diff", CONTAINER).stdout.splitlines())


def test_changes_show_a_write_that_is_not_on_disk_yet(tree):
    """Appending to one file changes no metadata of the subvolume until it is written back."""
    web = tree.path / "containers" / "web"
    web.mkdir()
    write(web / "from", TOP)
    with open(web / "rootfs/etc/passwd", "a") as file:
        file.write("more\n")
    assert (web / "changes").read_text() == "C /etc\nC /etc/passwd\n"
    with tarfile.open(web / "diff.tar") as archive:
        assert [member.name for member in archive] == ["etc", "etc/passwd"]


def test_changes_show_a_write_made_after_their_size_was_asked(tree):
    container = tree.path / "containers" / CONTAINER
    real = (container / "path").readlink()
    expected = []
    for name in ("group", "passwd"):
        with open(real / "etc" / name, "r+b", buffering=0) as file:
            file.write(b"other")
            expected.append(f"C /etc/{name}\n")
            assert (container / "changes").read_text() == "".join(["C /etc\n", *expected])
            assert (container / "changes").stat().st_size == len("C /etc\n") + sum(map(len, expected))


def test_changes_are_compared_once_for_their_size_and_their_text(tree):
    container = tree.path / "containers" / CONTAINER
    assert (container / "changes").read_text() == ""  # what the kernel can is tried by then, in a subvolume
    _edit(container)
    home = (container / "path").readlink().parent

    def made() -> int:
        """How many subvolumes there were up to now, this one included."""
        btrfs_ioctl.create_subvolume(home, "probe")
        number = btrfs_ioctl.subvolume_id(home / "probe")
        btrfs_ioctl.destroy(home, "probe")
        return number

    before = made()
    size = (container / "changes").stat().st_size
    assert len((container / "changes").read_text()) == size
    assert made() - before == 3  # a copy of each side, and the probe


def test_changes_sizes_survive_a_remount_and_follow_writes(filled, btrfs_dir, require):
    require("fuse")
    changes = f"containers/{CONTAINER}/changes"
    with mounted(filled, btrfs_dir / "mnt") as serving:
        _edit(serving.path / "containers" / CONTAINER)
        size = (serving.path / changes).stat().st_size
        assert size == len("C /etc\nD /etc/group\nC /etc/passwd\nA /new file\n")
    with mounted(filled, btrfs_dir / "mnt") as serving:
        assert (serving.path / changes).stat().st_size == size
        (serving.path / f"containers/{CONTAINER}/rootfs/x").write_text("")
        assert (serving.path / changes).stat().st_size == size + len("A /x\n")


def test_changes_of_a_layer_without_parent_get_their_size_in_the_background(tree):
    layer = tree.path / "images" / BASE / "layer"
    assert eventually(lambda: (layer / "changes").stat().st_size > 0)
    text = (layer / "changes").read_text()
    assert len(text.encode()) == (layer / "changes").stat().st_size
    assert {line[0] for line in text.splitlines()} == {"A"}


def test_changes_of_a_snapshot_are_those_since_then(tree):
    container = tree.path / "containers" / CONTAINER
    (container / "snapshots/first").mkdir()
    (container / "rootfs/later").write_text("x")
    assert (container / "snapshots/first/changes").read_text() == "A /later\n"


def test_diff_tar_of_an_image_layer_is_the_archive_it_was_made_from(tree):
    for layer in (tree.path / "images" / TOP / "layers").iterdir():
        digest = (layer / "diff-digest").read_text().strip()
        data = (layer / "diff.tar").read_bytes()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
        assert (layer / "diff.tar").stat().st_size == len(data)


def test_diff_tar_can_be_read_at_any_offset(tree):
    path = tree.path / "images" / TOP / "layer" / "diff.tar"
    data = path.read_bytes()
    with open(path, "rb", buffering=0) as file:
        for offset in (len(data) - 10, 0, len(data) // 2, 512, len(data), len(data) + 5):
            assert os.pread(file.fileno(), 1000, offset) == data[offset : offset + 1000]


def test_diff_tar_of_a_container_has_its_changes(tree, podman):
    container = tree.path / "containers" / CONTAINER
    assert (container / "diff.tar").stat().st_size == 1024
    assert (container / "diff.tar").read_bytes() == bytes(1024)
    _edit(container)
    size = (container / "diff.tar").stat().st_size
    data = (container / "diff.tar").read_bytes()
    assert len(data) == size
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["etc", "etc/.wh.group", "etc/passwd", "new file"]
        assert archive.extractfile("etc/passwd").read() == b"edited\n"
    with open(container / "diff.tar", "rb", buffering=0) as file:
        (container / "rootfs/new file").write_text("changed while it is read\n")
        assert os.pread(file.fileno(), 100, 0) == data[:100]
        assert os.pread(file.fileno(), size, 0)[-3000:] == data[-3000:]
        assert os.pread(file.fileno(), 700, 512) == data[512:1212]


def test_diff_of_two_objects_is_resolved_on_lookup(tree):
    container = tree.path / "containers" / CONTAINER
    _edit(container)
    (container / "snapshots/s1").mkdir()
    (container / "rootfs/after").write_text("x")
    diff = tree.path / "diff"
    assert os.listdir(diff) == []
    top = TOP.replace("/", "%2F")
    assert sorted(os.listdir(diff / f"{top}..{CONTAINER}")) == ["changes", "diff.tar"]
    assert "A /after" in (diff / f"{top}..{CONTAINER}/changes").read_text()
    assert (diff / f"{CONTAINER}@s1..{CONTAINER}/changes").read_text() == "A /after\n"
    assert (diff / f"{CONTAINER}..{CONTAINER}@s1/changes").read_text() == "D /after\n"
    assert "D /srv" in (diff / "top:1..base:1/changes").read_text()
    base = os.path.basename(os.readlink(tree.path / "images" / BASE / "layer"))
    assert "A /srv" in (diff / f"{base[:12]}..top:1/changes").read_text()
    archive = (diff / f"base:1..{CONTAINER}@s1/diff.tar").read_bytes()
    assert len(archive) == (diff / f"base:1..{CONTAINER}@s1/diff.tar").stat().st_size
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        assert {"srv/rootfs.tar", "new file", "etc/.wh.group"} <= set(found.getnames())
    assert errname_of(os.stat, diff / "nothing..top:1") == "ENOENT"
    assert "nothing" in tree.errors()
    assert errname_of(os.stat, diff / "top:1") == "ENOENT"
    assert errname_of(os.mkdir, diff / "top:1..base:1x") == "EPERM"


def test_oci_directory_is_a_layout_skopeo_copies(tree, skopeo, btrfs_dir):
    image = tree.path / "images" / TOP
    assert json.loads((image / "oci/oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    blobs = list((image / "oci/blobs/sha256").iterdir())
    assert len(blobs) == 4
    for blob in blobs:
        data = blob.read_bytes()
        assert hashlib.sha256(data).hexdigest() == blob.name
        assert blob.stat().st_size == len(data)
    skopeo("copy", f"oci:{image}/oci", f"dir:{btrfs_dir}/copied")  # "1/oci" is a tag of "top" to skopeo
    skopeo("copy", f"oci:{image}", f"oci:{btrfs_dir}/again:1")
    skopeo("copy", f"oci:{image}/oci:1", f"dir:{btrfs_dir}/tagged")
    skopeo("copy", f"oci:{image.parent}/top%3A1/oci:1", f"dir:{btrfs_dir}/spelled")
    assert (image.parent / "top/rootfs").exists() is False
    assert errname_of(os.stat, image.parent / "to") == "ENOENT"
    manifest = json.loads((btrfs_dir / "copied/manifest.json").read_bytes())
    assert len(manifest["layers"]) == 2
    config = manifest["config"]["digest"].removeprefix("sha256:")
    assert config == (image / "id").read_text().strip()


def test_image_tar_is_an_archive_podman_loads(tree, podman):
    archive = tree.path / "images" / TOP / "image.tar"
    identity = (tree.path / "images" / TOP / "id").read_text().strip()
    data = archive.read_bytes()
    assert archive.stat().st_size == len(data)
    with open(archive, "rb", buffering=0) as file:
        for offset in (len(data) - 700, 3, len(data) // 2):
            assert os.pread(file.fileno(), 600, offset) == data[offset : offset + 600]
    podman("rm", CONTAINER)
    copy = tree.path.parent / "image.tar"
    subprocess.run(["cp", archive, copy], check=True)
    podman("rmi", TOP)
    assert eventually(lambda: not (tree.path / "images" / TOP).exists())
    podman("load", "-i", copy)
    assert (tree.path / "images" / TOP / "id").read_text().strip() == identity


def test_archives_show_other_users_nothing_a_rootfs_keeps_from_them(filled, btrfs_dir):
    with mounted(filled, btrfs_dir / "mnt", "--allow-other", "yes") as tree:
        image, container = tree.path / "images" / TOP, tree.path / "containers" / CONTAINER
        secret = container / "rootfs/etc/secret"
        secret.write_text("secret")
        secret.chmod(0o600)

        def as_nobody(place):
            argv = ["runuser", "-u", "nobody", "--", "cat", place.relative_to(tree.path)]
            return subprocess.run(argv, cwd=tree.path, capture_output=True, check=False)

        assert as_nobody(image / "rootfs/etc/hostname").stdout == b"fsd-test\n"
        blobs = sorted((image / "oci/blobs/sha256").iterdir())
        archives = [image / "image.tar", image / "layer/diff.tar", container / "diff.tar", *blobs]
        between = tree.path / f"diff/{TOP.rpartition('/')[2]}..{CONTAINER}"
        for place in (secret, *archives, container / "changes", between / "diff.tar"):
            done = as_nobody(place)
            assert (done.stdout, b"Permission denied" in done.stderr) == (b"", True), place


@pytest.mark.parametrize("spelling", ["{id}/image.tar", "localhost/top%3A1/image.tar", "{id}/oci"])
def test_another_store_loads_an_image_right_from_the_tree(tree, btrfs_dir, spelling):
    """podman splits the path of an archive at a colon, so that the image must be named without one."""
    identity = (tree.path / "images" / TOP / "id").read_text().strip()
    (btrfs_dir / "other").mkdir()
    dirs = StoreDirs(btrfs_dir / "other/g", btrfs_dir / "other/r")
    other = ToolBox(dirs, "vfs", btrfs_dir / "other/conf").podman()
    done = other("load", "-i", tree.path / "images" / spelling.format(id=identity[:12]))
    assert "Loaded image: localhost/" in done.stdout
    assert identity in other("images", "-q", "--no-trunc").stdout


def test_commit_makes_an_image_podman_runs(tree, podman):
    container = tree.path / "containers" / CONTAINER
    _edit(container)
    write(container / "commit", "localhost/edited:2\n")
    image = tree.path / "images/localhost/edited:2"
    assert (image / "rootfs/etc/passwd").read_text() == "edited\n"
    assert len(os.listdir(image / "layers")) == 3
    done = podman("run", "--rm", "localhost/edited:2", "cat", "/etc/passwd", "/new file")
    assert done.stdout.endswith("new\n")
    assert errname_of(write, container / "commit", "Not A Name") == "EINVAL"


def test_pinned_objects_stay(tree):
    container, image = tree.path / "containers" / CONTAINER, tree.path / "images" / BASE
    for place in (container, image):
        assert "pinned" not in os.listdir(place)
        subprocess.run(["touch", place / "pinned"], check=True)
        assert "pinned" in os.listdir(place)
        subprocess.run(["touch", place / "pinned"], check=True)
    assert errname_of(os.rmdir, container) == "EBUSY"
    assert "pinned" in tree.errors()
    (container / "pinned").unlink()
    assert "pinned" not in os.listdir(container)
    assert errname_of(os.unlink, container / "pinned") == "ENOENT"
    container.rmdir()


def test_pinned_snapshots_stay(tree):
    snapshot = tree.path / "containers" / CONTAINER / "snapshots/keep"
    snapshot.mkdir()
    (snapshot / "pinned").touch()
    assert errname_of(os.rmdir, snapshot) == "EBUSY"
    (snapshot / "pinned").unlink()
    snapshot.rmdir()


def _space(path):
    """Size of the filesystem, and what is free there, in bytes."""
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def test_limit_bounds_what_a_container_may_write(tree):
    container = tree.path / "containers" / CONTAINER
    assert (container / "limit").read_text() == "0\n"
    write(container / "limit", "24M\n")
    assert (container / "limit").read_text() == f"{24 << 20}\n"
    assert _space(container / "rootfs/etc")[0] == 24 << 20
    assert errname_of(_grow, container / "rootfs/big", 64 << 20) == "EDQUOT"
    os.sync()  # figures of quotas are those of the last commit
    assert _space(container / "rootfs")[1] < 2 << 20
    write(container / "limit", "64M\n")
    size, left = _space(container / "rootfs")
    assert size == 64 << 20
    assert 40 << 20 <= left < 44 << 20
    write(container / "limit", "0\n")
    assert _space(container / "rootfs") > (1 << 30, 1 << 30)
    assert (container / "limit").read_text() == "0\n"
    for wrong in ("much", "-1", "1Q"):
        assert errname_of(write, container / "limit", wrong) == "EINVAL"
