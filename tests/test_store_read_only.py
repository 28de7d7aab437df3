"""A btrfs store on media that cannot be written: all of it can be looked at, and nothing changes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from store.config import StoreOptions
from store.errors import StoreReadOnly
from store.options import ImageOptions
from store.store import Store
from tests.conftest import StoreDirs
from tests.support import loops
from tests.support.daemon import fsd, running

BASE_TAR = (Path(__file__).parent / "data" / "tables" / "base.tar").read_bytes()


@contextlib.contextmanager
def bound(home: Path):
    subprocess.run(["mount", "--bind", home, home], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", home], check=True)
        yield
    finally:
        subprocess.run(["umount", "--recursive", home], check=True)


@contextlib.contextmanager
def remounted(home: Path):
    subprocess.run(["mount", "-o", "remount,ro", home], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", home], check=True)


@pytest.fixture(params=[bound, remounted])
def media(request, run_dir, require, tmp_path):
    """A filled store on btrfs that became read-only; the runroot is elsewhere."""
    require("btrfs")
    with loops.loop_mount(run_dir, "ro", mkfs=("mkfs.btrfs", "-q"), size=256 << 20) as point:
        options = StoreOptions(graphroot=str(point / "g"), runroot=str(tmp_path / "r"), driver="btrfs")
        with Store(options) as store:
            layer, _ = store.put_layer(io.BytesIO(BASE_TAR), names=["base"])
            data = ImageOptions(big_data=[("manifest", b"{}")])
            store.create_image(names=["localhost/img:1"], layer=layer.id, options=data)
            store.create_container(names=["web"], image="localhost/img:1")
            store.shutdown()
        with request.param(point):
            yield options


def entries(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_everything_can_be_looked_at_on_read_only_media(media):
    with Store(media) as store:
        try:
            assert store.read_only
            image, layer = store.image("localhost/img:1"), store.layer("base")
            assert [c.names for c in store.containers()] == [("web",)]
            assert store.image_big_data(image.id, "manifest") == b"{}"
            with store.diff(layer.id) as archive:
                assert archive.read() == BASE_TAR
            assert list(store.changes("web")) == []
            assert store.image_size(image.id) > 0
            assert store.check() == []
            assert store.status()
            assert [i.id for i in store.images_by_digest(image.digest)] == [image.id]
        finally:
            store.shutdown()


def test_images_and_containers_are_mounted_on_read_only_media(media):
    with Store(media) as store:
        try:
            expected = entries(store.layer_path("base"))
            for path in (store.mount_image("localhost/img:1"), store.mount("web"), store.mount("base")):
                assert entries(path) == expected
                with pytest.raises(OSError, match="Read-only"):
                    (path / "new").touch()
            assert store.unmount_image("localhost/img:1") is False
            assert store.unmount("web") is False
        finally:
            assert store.shutdown() == []
    point = Path(media.graphroot) / "btrfs"
    assert not os.path.ismount(point)


def changes(store: Store) -> dict[str, object]:
    return {
        "create_layer": store.create_layer,
        "put_layer": lambda: store.put_layer(io.BytesIO(BASE_TAR)),
        "create_image": lambda: store.create_image(layer=store.layer("base").id),
        "create_container": lambda: store.create_container(image="localhost/img:1"),
        "set_names": lambda: store.set_names("localhost/img:1", []),
        "set_metadata": lambda: store.set_metadata("web", "text"),
        "set_image_big_data": lambda: store.set_image_big_data("localhost/img:1", "key", b""),
        "set_layer_big_data": lambda: store.set_layer_big_data("base", "key", b""),
        "set_container_big_data": lambda: store.set_container_big_data("web", "key", b""),
        "set_container_directory_file": lambda: store.set_container_directory_file("web", "file", b""),
        "image_directory": lambda: store.image_directory("localhost/img:1"),
        "apply_diff": lambda: store.apply_diff("base", io.BytesIO(BASE_TAR)),
        "delete": lambda: store.delete("web"),
        "delete_image": lambda: store.delete_image("localhost/img:1"),
        "delete_layer": lambda: store.delete_layer("base"),
        "delete_container": lambda: store.delete_container("web"),
        "wipe": store.wipe,
        "garbage_collect": store.garbage_collect,
        "repair": lambda: store.repair(store.check()),
    }


def test_every_change_is_refused_clearly_on_read_only_media(media):
    with Store(media) as store:
        try:
            before = store.catalog().stamp
            for name, change in changes(store).items():
                with pytest.raises(StoreReadOnly) as caught:
                    change()
                assert "read-only" in str(caught.value), name
            assert store.catalog().stamp == before
        finally:
            store.shutdown()


def test_tree_shows_everything_on_read_only_media_and_refuses_by_name(media, tmp_path, require):
    require("fuse")
    dirs = StoreDirs(Path(media.graphroot), Path(media.runroot))
    point = tmp_path / "mnt"
    point.mkdir()
    with running(dirs, point, "--no-pool") as daemon:
        assert entries(daemon / "containers/web/rootfs") == entries(daemon / "images/localhost/img:1/rootfs")
        assert "warn media" in (daemon / "control/health").read_text()
        for change in (
            lambda: (daemon / "containers/new").mkdir(),
            lambda: (daemon / "containers/web").rmdir(),
            lambda: (daemon / "containers/web/pinned").touch(),
            lambda: (daemon / "containers/web/rootfs/file").touch(),
            lambda: (daemon / "containers/web/on-write").write_text("none"),
            lambda: (daemon / "containers/web/metadata").write_text("text"),
            lambda: (daemon / "containers/web/snapshots/one").mkdir(),
        ):
            with pytest.raises(OSError, match="Read-only") as caught:
                change()
            assert caught.value.errno == errno.EROFS
        assert "read-only media" in daemon.errors()
    kept = list((dirs.runroot / "fsd/read-only").iterdir())
    with running(dirs, point, "--no-pool"):
        assert kept[0] not in (dirs.runroot / "fsd/read-only").iterdir()


def test_command_lines_look_at_read_only_media(media):
    dirs = StoreDirs(Path(media.graphroot), Path(media.runroot))
    for words in ("images", "containers", "layers", "show web", "check", "snapshots web"):
        done = fsd(dirs, "-s", "btrfs", *words.split(), check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    for words in ("create new", "rm web", "pin web", "tag img:1 localhost/img:2"):
        done = fsd(dirs, "-s", "btrfs", *words.split(), check=False)
        assert done.returncode == 125, (words, done.stdout, done.stderr)
        assert "read-only" in done.stderr.lower(), (words, done.stderr)
        assert "Traceback" not in done.stderr
    archive = fsd(dirs, "-s", "btrfs", "storage", "layers")
    assert archive.stdout.split()[0] == Store(replace(media), lazy=True).layer("base").id
