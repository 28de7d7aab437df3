"""The tree of a real store, seen through a real mount, beside real podman."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.filled import BASE, TOP, errno_of, write
from tests.support.mounted import Mounted, mounted
from tests.support.trees import snapshot_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.tools import StoreDirs, Tool

BACKGROUND = ("/size", "/exclusive", "/measured")
"""Attributes the daemon may measure between two looks."""


@pytest.fixture
def filled(filled: StoreDirs, podman: Tool) -> StoreDirs:
    """The filled store; its second image has a further name."""
    podman("tag", TOP, "quay.io/someone/other:2")
    return filled


@pytest.fixture
def empty(store_dirs: StoreDirs, btrfs_dir: Path, require: Callable[[str], None]) -> Iterator[Mounted]:
    """A mounted store with nothing in it."""
    require("fuse")
    with mounted(store_dirs, btrfs_dir / "mnt") as serving:
        yield serving


# -- what is there -----------------------------------------------------------------------------


def test_tree_lists_each_object_once(tree, podman):
    top = tree.path
    assert sorted(os.listdir(top)) == [
        "README",
        "broken",
        "containers",
        "control",
        "diff",
        "images",
        "layers",
        "orphans",
        "trash",
    ]
    assert os.listdir(top / "images") == ["localhost"]
    assert sorted(os.listdir(top / "images" / "localhost")) == ["base:1", "top:1"]
    assert os.listdir(top / "containers") == ["made-by-podman"]
    ids = [record["Id"] for record in json.loads(podman("inspect", "made-by-podman").stdout)]
    assert (top / "containers/made-by-podman/id").read_text() == f"{ids[0]}\n"
    assert len(os.listdir(top / "layers")) == 3


def test_tree_other_spellings_are_relative_symlinks_to_the_listed_entry(tree):
    images = tree.path / "images"
    image_id = (images / TOP / "id").read_text().strip()
    for text in (image_id, image_id[:12], image_id[:3], "top:1"):
        assert os.readlink(images / text) == "localhost/top:1"
    assert os.readlink(images / "quay.io/someone/other:2") == "../../localhost/top:1"
    assert os.readlink(images / "localhost" / "base:1" / "layer").startswith("../../../layers/")
    digest = (images / TOP / "digest").read_text().strip()
    assert os.path.samefile(images / digest, images / TOP)
    container = (tree.path / "containers/made-by-podman/id").read_text().strip()
    assert os.readlink(tree.path / "containers" / container[:5]) == "made-by-podman"
    for missing in ("nothing", "zz", image_id[:2], "quay.io/nobody"):
        assert errno_of(os.stat, images / missing) == errno.ENOENT


def test_tree_every_attribute_has_its_true_size_and_can_be_read_at_an_offset(tree):
    seen = 0
    for directory, names, files in os.walk(tree.path):
        names[:] = [n for n in names if n not in ("rootfs", "userdata", "rundata")]
        for name in files:
            path = os.path.join(directory, name)
            if path.endswith("/control/events"):
                continue  # it blocks until something happens
            with open(path, "rb") as file:
                content = file.read()
            if directory.endswith("/control"):
                continue  # what is said there may change from one look to the next
            if not path.endswith(BACKGROUND):
                assert os.stat(path).st_size == len(content), path
            with open(path, "rb") as file:
                assert os.pread(file.fileno(), 100, 5) == content[5:105], path
            seen += 1
    assert seen > 80


def test_tree_attributes_say_what_podman_says(tree, podman):
    image = tree.path / "images" / TOP
    (inspected,) = json.loads(podman("image", "inspect", TOP).stdout)
    assert (image / "id").read_text().strip() == inspected["Id"]
    assert (image / "digest").read_text().strip() == inspected["Digest"]
    assert (image / "names").read_text().split() == [TOP, "quay.io/someone/other:2"]
    config = json.loads((image / "config.json").read_bytes())
    assert config["config"]["Labels"]["made"] == "by-buildah"
    manifest = json.loads((image / "manifest.json").read_bytes())
    assert len(manifest["layers"]) == len(os.listdir(image / "layers")) == 2
    diffs = [
        (image / "layers" / n / "diff-digest").read_text().strip()
        for n in sorted(os.listdir(image / "layers"))
    ]
    assert diffs == inspected["RootFS"]["Layers"]
    assert len((image / "history").read_text().splitlines()) == len(inspected["History"])
    assert os.path.samefile(tree.path / "containers/made-by-podman/image", image)
    assert (tree.path / "containers/made-by-podman/from").read_text() == "localhost/top:1\n"
    children = tree.path / "images" / BASE / "layer" / "children"
    assert len(os.listdir(children)) == 1


def test_tree_big_data_items_are_byte_for_byte(tree, filled):
    big_data = tree.path / "images" / BASE / "big-data"
    names = os.listdir(big_data)
    assert "manifest" in names
    assert len(names) == 4
    for name in names:
        assert (big_data / name).stat().st_size == len((big_data / name).read_bytes())


def test_ls_of_the_whole_tree_works(tree):
    done = subprocess.run(["ls", "-lR", tree.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_rootfs_copy_equals_the_real_path(tree, btrfs_dir):
    rootfs = tree.path / "images" / TOP / "rootfs"
    real = tree.path / "images" / TOP / "layer" / "path"
    subprocess.run(["cp", "-a", rootfs, btrfs_dir / "copy"], check=True)
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", btrfs_dir / "copy", f"{real}/"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    through, direct = snapshot_tree(rootfs), snapshot_tree(os.path.realpath(real))
    assert len(through) > 20
    assert through == direct


# -- what cannot be written --------------------------------------------------------------------


def test_image_layer_and_snapshot_views_are_read_only(tree):
    container = tree.path / "containers/made-by-podman"
    (container / "snapshots" / "one").mkdir()
    views = [
        tree.path / "images" / TOP / "rootfs",
        tree.path / "images" / TOP / "layer" / "rootfs",
        container / "snapshots" / "one" / "rootfs",
    ]
    for view, instead in zip(views, ("cannot be written", "cannot be written", "never change"), strict=True):
        assert errno_of(write, view / "etc" / "hostname", "x") == errno.EROFS
        assert errno_of(os.mkdir, view / "new") == errno.EROFS
        assert errno_of(os.unlink, view / "etc" / "hostname") == errno.EROFS
        assert errno_of(os.chmod, view / "etc" / "hostname", 0o600) == errno.EROFS
        for place in (view / "etc", view / "etc" / "hostname"):
            assert instead in os.getxattr(place, "user.fsd.error").decode()
    told = tree.errors()
    for operation in ("open", "mkdir", "unlink", "setattr"):
        assert re.search(rf"op={operation} path=\S* EROFS: ", told), operation


def test_attribute_files_refuse_unlink_and_foreign_writes(tree):
    container = tree.path / "containers/made-by-podman"
    assert errno_of(os.unlink, container / "id") == errno.EPERM
    assert errno_of(write, container / "id", "x") == errno.EPERM
    assert errno_of(os.rename, container / "id", container / "di") == errno.EPERM
    for place in (container, container / "id"):
        assert "'id' cannot be renamed" in os.getxattr(place, "user.fsd.error").decode()
    assert errno_of(write, container / "new-file", "x") == errno.EPERM
    assert "files can be made below a rootfs only" in os.getxattr(container, "user.fsd.error").decode()
    assert errno_of(os.mkdir, tree.path / "images" / "x:1") == errno.EINVAL


def test_refused_removal_and_rename_leave_their_text_on_the_entry_itself(tree):
    container = tree.path / "containers/made-by-podman"
    (container / "pinned").touch()
    assert errno_of(os.rmdir, container) == errno.EBUSY
    assert "pinned" in os.getxattr(container, "user.fsd.error").decode()
    assert os.listxattr(container) == ["user.fsd.error"]
    assert errno_of(os.rename, container, container.with_name("..x")) == errno.EINVAL
    assert "name" in os.getxattr(container, "user.fsd.error").decode()
    below = tree.path / "images" / TOP / "rootfs" / "etc" / "hostname"
    assert errno_of(os.unlink, below) == errno.EROFS
    assert "cannot be written" in os.getxattr(below, "user.fsd.error").decode()
    (container / "pinned").unlink()


def test_rm_r_of_a_container_leaves_its_rootfs_whole(tree):
    container = tree.path / "containers/made-by-podman"
    before = snapshot_tree(container / "rootfs")
    done = subprocess.run(["rm", "-r", "-f", container], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert snapshot_tree(container / "rootfs") == before
    done = subprocess.run(["find", container, "-delete"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert snapshot_tree(container / "rootfs") == before
    os.unlink(container / "rootfs" / "etc" / "group")  # this process was refused nothing
    assert not (container / "rootfs" / "etc" / "group").exists()


# -- commands ----------------------------------------------------------------------------------


def test_main_job_make_fill_edit_and_find_the_state_before(tree, podman, containers_storage):
    image = tree.path / "images" / TOP
    before = snapshot_tree(image / "rootfs")
    web = tree.path / "containers" / "web"
    script = f"mkdir {web} && echo {TOP} > {web}/from && echo x >> {web}/rootfs/etc/hostname"
    subprocess.run(["sh", "-ec", script], check=True)
    assert (web / "rootfs/etc/hostname").read_text() == "fsd-test\nx\n"
    (snapshot,) = os.listdir(web / "snapshots")
    assert (web / "snapshots" / snapshot / "reason").read_text() == "write\n"
    assert re.fullmatch(r"\d{8}T\d{6}Z", snapshot)
    assert snapshot_tree(web / "snapshots" / snapshot / "rootfs") == before
    assert snapshot_tree(image / "rootfs") == before
    assert (web / "from").read_text() == f"{TOP}\n"
    assert "web" in podman("ps", "-a", "--external", "--format", "{{.Names}}").stdout.split()
    assert "web" in containers_storage("containers").stdout
    (web).rmdir()
    assert "web" not in podman("ps", "-a", "--external", "--format", "{{.Names}}").stdout.split()
    assert "web" not in containers_storage("containers").stdout
    assert not web.exists()


def test_mkdir_container_has_its_attributes_and_an_empty_rootfs(empty):
    web = empty.path / "containers" / "web"
    web.mkdir()
    assert (web / "names").read_text() == "web\n"
    assert (web / "from").read_text() == ""
    assert os.listdir(web / "rootfs") == []
    assert {"userdata", "rundata", "snapshots", "rollback", "created"} <= set(os.listdir(web))
    (web / "userdata" / "note").write_text("kept\n")
    assert (web / "userdata" / "note").read_text() == "kept\n"


@pytest.mark.parametrize("name", ["-x", ".hidden", "with space", "sl\u00e4sh", "a@b"])
def test_mkdir_container_with_a_name_podman_refuses_is_einval(empty, name):
    assert errno_of(os.mkdir, empty.path / "containers" / name) == errno.EINVAL
    assert name in empty.errors()
    assert os.listdir(empty.path / "containers") == []


def test_mkdir_container_with_a_taken_or_overlong_name_fails(tree):
    assert errno_of(os.mkdir, tree.path / "containers" / "made-by-podman") == errno.EEXIST
    assert errno_of(os.mkdir, tree.path / "containers" / ("x" * 256)) == errno.ENAMETOOLONG


def test_from_every_kind_of_source(tree):
    containers = tree.path / "containers"
    layer = os.path.basename(os.readlink(tree.path / "images" / TOP / "layer"))
    (containers / "made-by-podman/rootfs/etc/hostname").write_text("changed\n")
    (containers / "made-by-podman/snapshots/old").mkdir()
    (containers / "made-by-podman/rootfs/etc/hostname").write_text("changed again\n")
    expected = {
        "top:1": "fsd-test\n",
        layer[:12]: "fsd-test\n",
        "made-by-podman": "changed again\n",
        "made-by-podman/snapshots/old": "changed\n",
        "containers/made-by-podman/snapshots/old": "changed\n",
    }
    for number, (source, content) in enumerate(expected.items()):
        container = containers / f"c{number}"
        container.mkdir()
        write(container / "from", f"{source}\n")
        assert (container / "rootfs/etc/hostname").read_text() == content, source


def test_command_is_done_once_and_whole_although_other_processes_flush_the_file(tree):
    """A child that inherits the descriptor flushes it when it execs, also in the middle of a write."""
    container = tree.path / "containers" / "web"
    ended = threading.Event()

    def fork() -> None:
        while not ended.is_set():
            subprocess.run(["true"], check=True)

    forking = threading.Thread(target=fork)
    forking.start()
    try:
        for _ in range(12):
            container.mkdir()
            write(container / "from", f"{TOP}\n")
            assert (container / "rootfs/etc/hostname").read_text() == "fsd-test\n"
            container.rmdir()
    finally:
        ended.set()
        forking.join()


def test_from_unknown_source_fails_in_write_and_changes_nothing(empty):
    web = empty.path / "containers" / "web"
    web.mkdir()
    layer = (web / "json").read_text()
    assert errno_of(write, web / "from", "no-such-image\n") == errno.ENOENT
    assert (web / "json").read_text() == layer
    assert "no-such-image" in empty.errors()
    assert "no-such-image" in os.getxattr(web / "from", "user.fsd.error").decode()


def test_from_on_a_container_with_content_is_refused(tree):
    web = tree.path / "containers" / "web"
    web.mkdir()
    (web / "rootfs" / "mine").write_text("x")
    assert errno_of(write, web / "from", TOP) == errno.ENOTEMPTY
    assert os.listdir(web / "rootfs") == ["mine"]


def test_rename_container_changes_its_name_only(tree, containers_storage):
    containers = tree.path / "containers"
    identity = (containers / "made-by-podman/id").read_text()
    os.rename(containers / "made-by-podman", containers / "renamed")
    assert os.listdir(containers) == ["renamed"]
    assert (containers / "renamed/id").read_text() == identity
    assert "renamed" in containers_storage("containers").stdout
    (containers / "other").mkdir()
    assert errno_of(os.rename, containers / "other", containers / "renamed") in (
        errno.EEXIST,
        errno.ENOTEMPTY,
    )
    assert errno_of(os.rename, containers / "other", tree.path / "images" / "other") == errno.EPERM


def test_names_are_set_and_added(tree, podman):
    names = tree.path / "images" / BASE / "names"
    write(names, "localhost/extra:1\n", "a")
    write(names, "more\n", "a")
    assert names.read_text().split() == [BASE, "localhost/extra:1", "localhost/more:latest"]
    podman("inspect", "more")
    assert podman("image", "exists", "localhost/extra:1").returncode == 0
    assert errno_of(write, names, f"{TOP}\n", "a") == errno.EEXIST


def test_rmdir_of_an_image_in_use_is_ebusy_and_says_by_whom(tree, podman):
    assert errno_of(os.rmdir, tree.path / "images" / TOP) == errno.EBUSY
    assert re.search(r"op=rmdir path=images/localhost/top:1 EBUSY", tree.errors())
    assert podman("image", "exists", TOP).returncode == 0
    base = tree.path / "images" / BASE / "layer"
    assert errno_of(os.rmdir, tree.path / "layers" / os.path.basename(os.readlink(base))) in (
        errno.EBUSY,
        errno.ENOTEMPTY,
    )


def test_rmdir_of_an_unused_image_removes_it_for_podman(tree, podman):
    (tree.path / "containers/made-by-podman").rmdir()
    (tree.path / "images" / TOP).rmdir()
    assert podman("image", "exists", TOP, check=False).returncode == 1
    assert podman("image", "exists", BASE).returncode == 0
    assert len(os.listdir(tree.path / "layers")) == 1


def test_snapshots_are_taken_listed_renamed_and_removed(tree):
    container = tree.path / "containers/made-by-podman"
    snapshots = container / "snapshots"
    (snapshots / "first").mkdir()
    (container / "rootfs/new").write_text("x")
    (snapshots / "second").mkdir()
    assert not (snapshots / "first/rootfs/new").exists()
    assert (snapshots / "second/rootfs/new").read_text() == "x"
    os.rename(snapshots / "first", snapshots / "1st")
    assert (snapshots / "1st/reason").read_text() == "manual\n"
    assert "1st" in os.listdir(snapshots)
    assert "first" not in os.listdir(snapshots)
    assert not (snapshots / "1st/rootfs/new").exists()
    (snapshots / "1st").rmdir()
    assert "1st" not in os.listdir(snapshots)
    assert errno_of(os.mkdir, snapshots / "second") == errno.EEXIST
    assert errno_of(os.mkdir, snapshots / ".dot") == errno.EINVAL


def test_rollback_brings_the_state_back_and_keeps_the_one_before(tree):
    container = tree.path / "containers/made-by-podman"
    (container / "snapshots/good").mkdir()
    (container / "rootfs/etc/hostname").write_text("bad edit\n")
    write(container / "rollback", "good\n")
    assert (container / "rootfs/etc/hostname").read_text() == "fsd-test\n"
    (before,) = [name for name in os.listdir(container / "snapshots") if name.startswith("pre-rollback-")]
    assert (container / "snapshots" / before / "rootfs/etc/hostname").read_text() == "bad edit\n"
    assert errno_of(write, container / "rollback", "nothing\n") == errno.ENOENT
    (container / "rootfs/etc/hostname").write_text("again\n")
    assert (container / "path/etc/hostname").read_text() == "again\n"


def test_rollback_of_a_mounted_container_is_refused_and_shells_see_it(tree, podman):
    """They look at how a write went, and not at the close after it."""
    container = tree.path / "containers/made-by-podman"
    (container / "snapshots/good").mkdir()
    podman("mount", "made-by-podman")
    try:
        assert errno_of(write, container / "rollback", "good\n") == errno.EBUSY
        for shell in ("bash", "dash"):
            asked = subprocess.run([shell, "-c", f"echo good > {container}/rollback"], check=False)
            assert asked.returncode, shell
        assert errno_of(os.rmdir, container) == errno.EBUSY
    finally:
        podman("umount", "made-by-podman")
    write(container / "rollback", "good\n")


def test_burst_takes_one_snapshot_and_reading_takes_none(tree):
    container = tree.path / "containers/made-by-podman"
    shutil.copytree(container / "rootfs/etc", container.parent.parent.parent / "read-only-copy")
    assert os.listdir(container / "snapshots") == []
    for number in range(20):
        (container / f"rootfs/file{number}").write_text("x")
    assert len(os.listdir(container / "snapshots")) == 1


# -- other processes ---------------------------------------------------------------------------


def test_changes_podman_makes_appear_without_remounting(tree, podman):
    containers = tree.path / "containers"
    listed = containers.stat().st_mtime_ns
    for _ in range(3):  # the kernel keeps the listing
        assert "later" not in os.listdir(containers)
    podman("create", "--name", "later", BASE, "true")
    assert "later" in os.listdir(containers)
    assert containers.stat().st_mtime_ns > listed
    podman("rm", "later")
    assert "later" not in os.listdir(containers)
    podman("rename", "made-by-podman", "other-name")
    podman("tag", BASE, "localhost/third:3")
    assert (tree.path / "images/third:3/id").exists()


def test_write_on_the_real_path_shows_in_the_view(tree):
    container = tree.path / "containers/made-by-podman"
    assert (container / "rootfs/etc/hostname").read_text() == "fsd-test\n"
    (container / "path/etc/hostname").write_text("from outside\n")
    assert (container / "rootfs/etc/hostname").read_text() == "from outside\n"


# -- robustness --------------------------------------------------------------------------------


def test_defect_in_a_handler_is_eio_and_the_mount_lives_on(filled, btrfs_dir, require):
    require("fuse")
    with mounted(filled, btrfs_dir / "mnt", "--fail", "lookup:boom", expect_trouble=True) as serving:
        assert errno_of(os.stat, serving.path / "containers" / "boom") == errno.EIO
        assert os.listdir(serving.path / "containers") == ["made-by-podman"]
        assert "KeyError" in serving.errors()
        assert "Traceback" in serving.log.read_text()


def test_malformed_table_leaves_the_rest_usable(filled, btrfs_dir, require):
    require("fuse")
    table = filled.graphroot / "btrfs-containers" / "containers.json"
    good = table.read_bytes()
    table.write_bytes(good[: len(good) // 2])
    with mounted(filled, btrfs_dir / "mnt", expect_trouble=True) as serving:
        assert sorted(os.listdir(serving.path / "images/localhost")) == ["base:1", "top:1"]
        assert (serving.path / "images" / TOP / "rootfs/etc/hostname").read_text() == "fsd-test\n"
        assert errno_of(os.mkdir, serving.path / "containers/web") == errno.EIO
        assert "broken: 1" in (serving.path / "control/status").read_text()
    assert table.read_bytes() == good[: len(good) // 2]


def test_inode_numbers_are_stable_across_remounts_and_unique(filled, btrfs_dir, require):
    require("fuse")

    def numbers() -> dict[str, int]:
        with mounted(filled, btrfs_dir / "mnt") as serving:
            found = {}
            for directory, _, files in os.walk(serving.path):
                for name in [".", *files]:
                    path = os.path.join(directory, name)
                    info = os.lstat(path)
                    if info.st_nlink == 1 or name == ".":
                        found[os.path.relpath(path, serving.path)] = info.st_ino
            return found

    first = numbers()
    assert len(first) > 100
    assert len(set(first.values())) == len(first)
    assert numbers() == first
