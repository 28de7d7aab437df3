"""``trash/``, ``orphans/``, ``broken/`` and ``control/`` of a mounted tree."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ET

from tests.support.filled import BASE, CONTAINER, TOP, errname_of, eventually, write
from tests.support.mounted import mounted
from tests.support.trees import snapshot_tree

# -- trash, orphans, broken --------------------------------------------------------------------


def test_rmdir_puts_a_container_into_the_trash_and_mv_brings_it_back(tree, containers_storage):
    container, trash = tree.path / "containers" / CONTAINER, tree.path / "trash"
    (container / "rootfs/mine").write_text("kept\n")
    identity, before = (container / "id").read_text(), snapshot_tree(container / "rootfs")
    container.rmdir()
    assert not container.exists()
    assert CONTAINER not in containers_storage("containers").stdout
    (name,) = os.listdir(trash)
    assert re.fullmatch(rf"{CONTAINER}@\d{{8}}T\d{{6}}Z", name)
    assert (trash / name / "what").read_text() == f"container {identity}{CONTAINER}\n"
    assert (trash / name / "expires").read_text() > (trash / name / "removed").read_text()
    assert snapshot_tree(trash / name / "rootfs") == before
    assert errname_of(write, trash / name / "rootfs/mine", "x") == "EROFS"
    assert errname_of(os.rename, trash / name, tree.path / "images/x:1") == "EPERM"
    os.rename(trash / name, tree.path / "containers/back")
    assert os.listdir(trash) == []
    back = tree.path / "containers/back"
    assert (back / "id").read_text() == identity
    assert snapshot_tree(back / "rootfs") == before
    assert "back" in containers_storage("containers").stdout


def test_mv_brings_several_entries_back_under_the_names_they_had(tree):
    containers, trash = tree.path / "containers", tree.path / "trash"
    before = sorted(os.listdir(containers))
    for name in ("one", "two"):
        (containers / name).mkdir()
        (containers / name).rmdir()
    entries = sorted(trash.iterdir())
    subprocess.run(["mv", *entries, f"{containers}/"], check=True)
    assert os.listdir(trash) == []
    assert sorted(os.listdir(containers)) == sorted([*before, "one", "two"])
    assert os.readlink(containers / entries[0].name) == "one"


def test_container_that_comes_back_is_whole_although_its_removed_directory_is_held_open(tree):
    """The kernel keeps a removed directory that somebody has open, and finds nothing in it any more."""
    container = tree.path / "containers" / CONTAINER
    held = os.open(container, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rmdir(container)
        (name,) = os.listdir(tree.path / "trash")
        os.rename(tree.path / "trash" / name, container)
        assert (container / "names").read_text() == f"{CONTAINER}\n"
        assert "rootfs" in os.listdir(container)
        assert os.listdir(container / "rootfs")
    finally:
        os.close(held)


def test_image_returns_from_the_trash_under_its_names(tree, podman):
    (tree.path / "containers" / CONTAINER).rmdir()
    (tree.path / "images" / TOP).rmdir()
    assert podman("image", "exists", TOP, check=False).returncode == 1
    (name,) = [entry for entry in os.listdir(tree.path / "trash") if "top" in entry]
    os.rename(tree.path / "trash" / name, tree.path / "images" / TOP)
    podman("run", "--rm", TOP, "true")


def test_rmdir_of_a_trash_entry_purges_it_unless_it_is_pinned(tree):
    (tree.path / "containers" / CONTAINER).rmdir()
    (name,) = os.listdir(tree.path / "trash")
    entry = tree.path / "trash" / name
    (entry / "pinned").touch()
    assert (entry / "expires").read_text() == "never\n"
    assert errname_of(os.rmdir, entry) == "EBUSY"
    (entry / "pinned").unlink()
    entry.rmdir()
    assert os.listdir(tree.path / "trash") == []


def test_orphans_are_listed_with_a_reason_and_reaped_by_rmdir(tree, podman):
    container = tree.path / "containers" / CONTAINER
    identity = (container / "id").read_text().strip()
    (container / "snapshots/precious").mkdir()
    podman("rm", CONTAINER)
    (orphan,) = list((tree.path / "orphans").iterdir())
    assert orphan.name == identity
    assert "another tool" in (orphan / "reason").read_text()
    assert sorted(os.listdir(orphan)) == ["reason", "since", "size"]
    assert (orphan / "since").read_text() > "2020"
    orphan.rmdir()
    assert os.listdir(tree.path / "orphans") == []
    assert errname_of(os.rmdir, tree.path / "orphans/nothing") == "ENOENT"


def test_broken_records_are_shown_with_why(filled, btrfs_dir, require):
    require("fuse")
    table = filled.graphroot / "btrfs-containers" / "containers.json"
    records = json.loads(table.read_bytes())
    table.write_text(json.dumps([*records, {"id": "ff" * 32, "layer": 7}]))
    with mounted(filled, btrfs_dir / "mnt", expect_trouble=True) as serving:
        (name,) = os.listdir(serving.path / "broken")
        text = (serving.path / "broken" / name).read_text()
        assert "table: containers" in text
        assert "why: " in text
        assert os.listdir(serving.path / "containers") == [CONTAINER]


# -- control -----------------------------------------------------------------------------------


def test_sizes_are_measured_in_the_background(tree):
    layer = tree.path / "images" / BASE / "layer"
    container = tree.path / "containers" / CONTAINER
    assert eventually(lambda: (layer / "exclusive").read_text() != "", 40)
    assert eventually(lambda: (container / "size").read_text() != "", 40)
    assert int((layer / "size").read_text()) > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\n", (layer / "measured").read_text())


def test_prune_removes_what_its_preview_listed_and_no_more(tree, podman):
    control = tree.path / "control/prune"
    podman("rm", CONTAINER)
    podman("untag", TOP, TOP)
    preview = (control / "preview").read_text()
    (token,) = re.findall(r"^token: (\S+)$", preview, re.MULTILINE)
    assert "dangling-images" in preview
    images = len(os.listdir(tree.path / "images"))
    with open(tree.path / "control/events", "rb", buffering=0) as events:
        write(control / "run", token)
        found = b""
        while b'"prune"' not in found:
            found += events.read(1 << 16)
    (told,) = [event for event in map(json.loads, found.splitlines()) if event["table"] == "prune"]
    assert (told["removed"], told["spared"]) == (1, [])
    assert len(os.listdir(tree.path / "images")) == images - 1
    assert podman("image", "exists", BASE).returncode == 0
    assert errname_of(write, control / "run", token) == "ENOENT"
    assert errname_of(write, control / "preview", "everything") == "EINVAL"
    write(control / "preview", "unused-images")
    assert BASE in (control / "preview").read_text()


def test_health_says_ok_or_warn_and_metrics_parse(tree):
    health = (tree.path / "control/health").read_text().splitlines()
    assert len(health) > 6
    assert all(re.match(r"(ok  |warn) [a-z]+: ", line) for line in health)
    assert any(line.startswith("ok   driver: btrfs") for line in health)
    assert any(line.startswith("ok   passthrough: o") for line in health)
    metrics = (tree.path / "control/metrics").read_text()
    sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+')
    assert all(line.startswith("#") or sample.fullmatch(line) for line in metrics.splitlines())
    assert 'fsd_objects{table="images"} 2' in metrics.splitlines()


def test_health_warns_of_what_is_wrong_and_says_what_to_do(tree, filled, btrfs_dir):
    layer = (tree.path / "images" / BASE / "layer/id").read_text().strip()
    left = filled.graphroot / "btrfs/subvolumes" / layer
    subprocess.run(["mount", "--bind", left, left], check=True)
    subprocess.run(["btrfs", "quota", "enable", btrfs_dir], check=True)
    try:
        lines = (tree.path / "control/health").read_text().splitlines()
    finally:
        subprocess.run(["btrfs", "quota", "disable", btrfs_dir], check=True)
        subprocess.run(["umount", left], check=True)
    assert any(
        line.startswith(f"warn leaked: mounted, though nothing counts it: {left}; umount") for line in lines
    )
    assert any(re.match("warn quota: full qgroups: .*; btrfs quota disable", line) for line in lines)
    assert "warn" not in (tree.path / "control/health").read_text()


def test_locks_name_who_holds_them(tree, filled):
    from store.lockfile import LockFile

    path = filled.graphroot / "btrfs-layers/layers.lock"
    assert f"{path}: free" in (tree.path / "control/locks").read_text()
    with LockFile(path).writing():
        text = (tree.path / "control/locks").read_text()
        assert re.search(rf"{re.escape(str(path))}: held by .*\b{os.getpid()} ", text)


def _reads_events(pid: int) -> bool:
    fds = f"/proc/{pid}/fd"
    with contextlib.suppress(FileNotFoundError):  # one was closed meanwhile
        return any(os.readlink(f"{fds}/{fd}").endswith("/control/events") for fd in os.listdir(fds))
    return False


def test_events_tell_what_podman_and_the_mount_do(tree, podman):
    reader = subprocess.Popen(["cat", tree.path / "control/events"], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    lines: list[dict[str, object]] = []
    wanted = {("images", "rename"), ("snapshots", "create"), ("containers", "create")}
    following = threading.Thread(target=lambda: lines.extend(map(json.loads, reader.stdout)))
    following.start()
    try:
        assert eventually(lambda: _reads_events(reader.pid))
        podman("tag", BASE, "localhost/event:1")
        (tree.path / "containers" / CONTAINER / "snapshots/one").mkdir()
        (tree.path / "containers/new").mkdir()
        assert eventually(lambda: wanted <= {(line["table"], line["action"]) for line in lines})
    finally:
        began = time.monotonic()
        reader.send_signal(signal.SIGINT)
        reader.wait(10)
        following.join()
        reader.stdout.close()
    assert time.monotonic() - began < 5
    assert (tree.path / "control/events").stat().st_mode & 0o777 == 0o400


def test_graph_is_a_picture_of_every_object(tree):
    svg = (tree.path / "control/graph.svg").read_text()
    root = ET.fromstring(svg)
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(os.listdir(tree.path / "layers")) + 3
    assert any(CONTAINER in title for title in titles)
    boxes = [
        tuple(float(box.get(key)) for key in ("x", "y", "width", "height"))
        for box in root.iter("{http://www.w3.org/2000/svg}rect")
    ]
    for n, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[n + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    dot = (tree.path / "control/graph.dot").read_text()
    assert dot.startswith("digraph")
    assert dot.count("->") == len(titles) - 1


# -- settings ----------------------------------------------------------------------------------


def test_settings_of_a_file_are_in_force_and_shown(filled, btrfs_dir, require, monkeypatch):
    require("fuse")
    (btrfs_dir / "fsd.toml").write_text('[trash]\nlifetime = 0\n[on-write]\ncontainers = "none"\n')
    monkeypatch.setenv("FSD_CONF", str(btrfs_dir / "fsd.toml"))
    with mounted(filled, btrfs_dir / "mnt") as serving:
        config = (serving.path / "control/config").read_text()
        assert re.search(r"^lifetime = 0 +# fsd.toml$", config, re.MULTILINE)
        assert re.search(r"^quiet = 60 +# built-in$", config, re.MULTILINE)
        assert f"# fsd.toml: {btrfs_dir}/fsd.toml\n" in config
        assert f"# graphroot: {filled.graphroot}\n" in config
        container = serving.path / "containers" / CONTAINER
        (container / "rootfs/x").write_text("x")
        assert os.listdir(container / "snapshots") == []
        write(container / "on-write", "snapshot")
        (container / "rootfs/y").write_text("y")
        assert len(os.listdir(container / "snapshots")) == 1
        container.rmdir()
        assert os.listdir(serving.path / "trash") == []


def test_on_write_of_one_container_is_remembered(filled, btrfs_dir, require):
    require("fuse")
    for expected in ("snapshot\n", "none\n"):
        with mounted(filled, btrfs_dir / "mnt") as serving:
            container = serving.path / "containers" / CONTAINER
            assert (container / "on-write").read_text() == expected
            write(container / "on-write", "none\n")
            (container / "rootfs/x").write_text(expected)
            assert os.listdir(container / "snapshots") == []
            assert errname_of(write, container / "on-write", "sometimes") == "EINVAL"
