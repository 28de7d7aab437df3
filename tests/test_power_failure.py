"""What the disk holds if the power fails: every completed operation, and nothing half made.

The store lives on a filesystem in a file. Whenever an operation has returned, the file is copied as it is,
without unmounting or syncing: it has what the filesystem has sent to its disk so far, and nothing of what
is still in memory. Such a copy is then mounted (the journal is replayed), and the store opened there.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import stat
import subprocess
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from drivers import btrfs_commits, btrfs_ioctl
from drivers.idmap import IDMap
from store import durable
from store.check import CheckOptions, Kind
from store.config import StoreOptions
from store.fill import fill
from store.history import History
from store.records import Container, Image, Layer, encode
from store.store import BigData, ContainerOptions, ImageOptions, LayerOptions, Store
from store.trash import Trash
from tests.support import loops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MKFS = {"btrfs": ("mkfs.btrfs", "-q"), "ext4": ("mkfs.ext4", "-q")}
SIZE = 320 << 20
UNSEEN = (Kind.UNACCOUNTED_LAYER, Kind.LEFTOVER)
"""Content without a record."""
SCALED = (IDMap(0, 100000, 65536),)
_numbers = itertools.count()


def archive(*names: str) -> io.BytesIO:
    """A layer archive of a few small files, one of several blocks, and a link."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for number, name in enumerate(names):
            entry = tarfile.TarInfo(f"dir/{name}")
            entry.size, entry.uid, entry.mode = 5000 * (number + 1), 7, 0o640
            tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
        entry = tarfile.TarInfo(f"link to {names[0]}")
        entry.type, entry.linkname = tarfile.SYMTYPE, f"dir/{names[0]}"
        tar.addfile(entry)
    return io.BytesIO(made.getvalue())


def steps(store: Store) -> Iterator[str]:
    """Operations one by one; each is complete when its name is given."""
    store.put_layer(archive("etc", "usr"), names=["base"])
    yield "put_layer"
    store.put_layer(archive("more"), parent="base", names=["top"])
    yield "put_layer over another"
    store.create_layer(names=["empty"])
    yield "create_layer without parent"
    store.create_layer(names=["child"], parent="base")
    yield "create_layer with a parent"
    store.create_layer(names=["copy"], parent="base", options=LayerOptions(template="top"))
    yield "create_layer from a template"
    store.apply_diff("child", archive("applied"))
    yield "apply_diff"
    store.create_image(names=["img"], layer="top", options=ImageOptions(big_data=[("manifest", b"{}")]))
    yield "create_image"
    store.create_container(
        names=["web"], image="img", options=ContainerOptions(big_data=[BigData("key", b"value")])
    )
    yield "create_container"
    store.create_container(names=["bare"])
    yield "create_container without an image"
    store.create_container(
        names=["mapped"], image="img", options=ContainerOptions(uidmap=SCALED, gidmap=SCALED)
    )
    yield "create_container with mappings"
    store.set_container_directory_file("web", "sub/file", b"private")
    store.set_image_big_data("img", "later", b"x" * 9000)
    store.set_layer_big_data("base", "data", b"y" * 9000)
    yield "big data and private files"
    store.add_names("img", ["other"])
    store.set_metadata("web", "about")
    yield "names and metadata"
    store.delete_container("web")
    store.delete_layer("copy")
    yield "removals"
    store.delete_container("mapped")
    store.delete_container("bare")
    store.delete_image("img")
    yield "removal of an image"


def contents(store: Store) -> dict[str, object]:
    """Everything a user can see of a store."""
    layers, images, containers = store.multi_list()
    seen: dict[str, object] = {record.id: record for record in (*layers, *images, *containers)}
    for layer in layers:
        with store.driver.mounted(layer.id) as root:
            seen[f"{layer.id} tree"] = tree(root)
        for key in layer.big_data_names:
            seen[f"{layer.id} {key}"] = store.layer_big_data(layer.id, key)
    for image in images:
        for key in image.big_data_names:
            seen[f"{image.id} {key}"] = store.image_big_data(image.id, key)
    for container in containers:
        for key in container.big_data_names:
            seen[f"{container.id} {key}"] = store.container_big_data(container.id, key)
        private = store.table_directory("containers") / container.id
        seen[f"{container.id} private"] = tree(private) if private.exists() else []
    return seen


def tree(root: Path) -> list[tuple[object, ...]]:
    """Names, types, modes, owners and content below a directory, itself included."""
    found = []
    for top, _, files in os.walk(root):
        for path in (Path(top), *(Path(top, name) for name in files)):
            st = path.lstat()
            data = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(st.st_mode) else ""
            found.append((str(path.relative_to(root)), st.st_mode, st.st_uid, st.st_gid, data))
    return sorted(found)


@contextmanager
def mounted_copy(image: Path) -> Iterator[Path]:
    """A copy of the filesystem's file, mounted."""
    point = image.with_suffix("")
    point.mkdir()
    subprocess.run(["btrfs", "device", "scan", "--forget"], check=False, capture_output=True)
    loops.run("mount", "-o", "loop,noatime", image, point)
    try:
        yield point
    finally:
        loops.unmount_below(point)
        point.rmdir()
        image.unlink()


def opened(home: Path, driver: str) -> Store:
    return Store(
        StoreOptions(graphroot=str(home / "g"), runroot=str(home / "r"), driver=driver, lock_timeout=10)
    )


@pytest.mark.parametrize(
    ("driver", "filesystem"),
    [("btrfs", "btrfs"), ("vfs", "btrfs"), ("vfs", "ext4"), ("overlay", "ext4"), ("overlay", "btrfs")],
)
def test_disk_at_power_failure_has_every_completed_operation(
    run_dir: Path, driver: str, filesystem: str, require: Callable[[str], None]
) -> None:
    require("overlay" if driver == "overlay" else "btrfs")
    copies: list[tuple[str, Path, dict[str, object]]] = []
    name = f"power{next(_numbers)}"
    with loops.loop_mount(run_dir, name, mkfs=MKFS[filesystem], size=SIZE, options="noatime") as point:
        store = opened(point, driver)
        for number, step in enumerate(steps(store)):
            copy = run_dir / f"{name}.{filesystem}.{number}.img"
            loops.run("cp", "--sparse=always", "--reflink=auto", run_dir / f"{name}.img", copy)
            copies.append((step, copy, contents(store)))
        store.shutdown(force=True)
    lost = []
    for step, copy, expected in copies:
        with mounted_copy(copy) as home:
            survivor = opened(home, driver)
            lost += [f"after {step}: {text}" for text in differences(survivor, expected)]
            survivor.shutdown(force=True)
    assert not lost, "\n".join(lost)


def differences(store: Store, expected: dict[str, object]) -> list[str]:
    """What a store does not have, or has wrong; content without a record is allowed, nobody sees it."""
    found = [str(p) for p in store.check(CheckOptions(digests=True)) if p.kind not in UNSEEN]
    try:
        actual = contents(store)
    except Exception as error:  # whatever is wrong, it belongs into the list
        return [*found, repr(error)]
    return [*found, *unlike(actual, expected)]


def making_steps(store: Store) -> None:
    """Every way to a container that takes several names."""
    store.create_container(names=["bare"])
    store.create_container(names=["web"], image="img")
    store.create_container(names=["mapped"], image="img", options=ContainerOptions(uidmap=SCALED))
    fill(store, "bare", "img")


@contextmanager
def at_each_name(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` before every rename and commit in the block, by an audit hook (which can never go)."""
    state = {"busy": False, "over": False}

    def hook(event: str, args: tuple[object, ...]) -> None:
        commits = event == "fcntl.ioctl" and args[1] == btrfs_commits.START_SYNC
        if state["busy"] or state["over"] or not (event == "os.rename" or commits):
            return
        state["busy"] = True
        act()
        state["busy"] = False

    sys.addaudithook(hook)
    try:
        yield
    finally:
        state["over"] = True


@pytest.mark.parametrize("driver", ["btrfs", "vfs"])
def test_disk_has_nothing_half_made_whoever_syncs_in_between(
    run_dir: Path, driver: str, require: Callable[[str], None]
) -> None:
    """fsync(2) of a table's directory, by anybody, gets neither a record without its tree to the disk nor a
    name without content, at whatever moment."""
    require("btrfs")
    name = f"power{next(_numbers)}"
    copies: list[Path] = []
    with loops.loop_mount(run_dir, name, mkfs=MKFS["btrfs"], size=SIZE, options="noatime") as point:
        store = opened(point, driver)
        store.put_layer(archive("etc"), names=["base"])
        store.create_image(names=["img"], layer="base")
        before = contents(store)

        def sync_and_copy() -> None:
            for table in (store.tables.layers, store.tables.containers):
                durable.sync_directory(table.directory)
            copies.append(run_dir / f"{name}.between.{len(copies)}.img")
            loops.run("cp", "--sparse=always", "--reflink=auto", run_dir / f"{name}.img", copies[-1])

        with at_each_name(sync_and_copy):
            making_steps(store)
        store.shutdown(force=True)
    assert len(copies) > 10
    wrong = []
    for copy in copies:
        with mounted_copy(copy) as home:
            survivor = opened(home, driver)
            found = [str(p) for p in survivor.check(CheckOptions(digests=True)) if p.kind not in UNSEEN]
            lost = before.keys() - contents(survivor).keys()
            wrong += [f"{copy.name}: {text}" for text in (*found, *lost)]
            survivor.shutdown(force=True)
    assert not wrong, "\n".join(wrong)


def test_container_is_never_on_the_disk_without_its_layer_whenever_the_kernel_commits(
    run_dir: Path, require: Callable[[str], None]
) -> None:
    """A commit between the making of a tree and the first name leaves each name to be logged by itself."""
    require("btrfs")
    name = f"power{next(_numbers)}"
    copies: list[Path] = []
    with loops.loop_mount(run_dir, name, mkfs=MKFS["btrfs"], size=SIZE, options="noatime") as point:
        store = opened(point, "btrfs")

        def commit_then_sync_one() -> None:
            if not copies:
                btrfs_ioctl.commit(point)
            durable.sync_directory(store.tables.containers.directory)
            copies.append(run_dir / f"{name}.one.{len(copies)}.img")
            loops.run("cp", "--sparse=always", "--reflink=auto", run_dir / f"{name}.img", copies[-1])

        with at_each_name(commit_then_sync_one):
            store.create_container(names=["bare"])
        store.shutdown(force=True)
    wrong = []
    for copy in copies:
        with mounted_copy(copy) as home:
            survivor = opened(home, "btrfs")
            wrong += [str(p) for p in survivor.check() if p.kind not in UNSEEN]
            survivor.shutdown(force=True)
    assert not wrong, "\n".join(wrong)


def history_steps(history: History, trash: Trash) -> Iterator[str]:
    """Operations on snapshots and the trash, one by one; each is complete when its name is given."""
    store = history.store
    store.put_layer(archive("etc", "usr"), names=["base"])
    store.create_image(names=["img"], layer="base", options=ImageOptions(big_data=[("manifest", b"{}")]))
    web = store.create_container(names=["web"], image="img")
    store.create_container(names=["bare"])
    fill(store, "bare", "img", state=history.state)
    yield "fill"  # the empty layer it had may be back: the intent tells that it should not be
    history.take("web", "first")
    yield "take"
    root = store.driver.path_of(web.layer)
    (root / "written").write_bytes(os.urandom(9000))
    (root / "dir" / "etc").unlink()
    subprocess.run(["sync", "-f", root], check=True)  # a program's own data is the program's affair
    history.take("web", "second")
    yield "take after changes"
    history.rollback("web", "first")
    yield "rollback"
    history.rollback("web", "second")
    yield "rollback to the later one"
    history.rename("web", "second", "other")
    yield "rename"
    history.pin("web", "other")
    history.pin("web", "other", pinned=False)
    history.remove("web", "first")
    subprocess.run(["sync", "-f", root], check=True)  # until then it may come back; nothing is lost by that
    yield "removal of a snapshot"
    entry = trash.remove_container("web")
    assert entry is not None
    yield "removal of a container to the trash"
    trash.restore(entry.id)
    yield "return from the trash"
    entry = trash.remove_container("web")
    assert entry is not None
    trash.purge(entry.id)
    yield "purge"
    store.delete_container("bare")
    entry = trash.remove_image("img")
    assert entry is not None
    yield "removal of an image to the trash"
    trash.restore(entry.id)
    yield "return of an image"


def kept_contents(history: History, trash: Trash) -> dict[str, str]:
    """What a user can see of a store, its snapshots and its trash, as text."""
    seen = contents(history.store)
    for container in history.store.containers():
        for snapshot in history.list(container.id):
            seen[f"snapshot {snapshot.name}"] = tree(history.path(container.id, snapshot.name))
    for entry in trash.list():
        seen[f"trash {entry.id}"] = (entry.kind, encode(entry.record), tree(trash.path(entry.id)))
    records = (Layer, Image, Container)
    return {
        key: str(encode(value)) if isinstance(value, records) else repr(value) for key, value in seen.items()
    }


def history_copies(point: Path, image: Path) -> list[tuple[str, Path, dict[str, str]]]:
    """Go through the steps; each with a copy of the disk and what is to be found on it."""
    copies: list[tuple[str, Path, dict[str, str]]] = []
    store = opened(point, "btrfs")
    with closing((history := History(store)).state):
        trash = Trash(history)
        for number, step in enumerate(history_steps(history, trash)):
            copy = image.with_suffix(f".history.{number}.img")
            loops.run("cp", "--sparse=always", "--reflink=auto", image, copy)
            copies.append((step, copy, kept_contents(history, trash)))
    store.shutdown(force=True)
    return copies


def test_disk_at_power_failure_has_completed_rollbacks_and_trash(
    run_dir: Path, require: Callable[[str], None]
) -> None:
    require("btrfs")
    name = f"power{next(_numbers)}"
    with (
        loops.loop_mount(run_dir, name, mkfs=MKFS["btrfs"], size=SIZE, options="noatime") as point,
        # a process that is dead afterwards, as after a power failure: what it had begun is ended then
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker,
    ):
        copies = worker.submit(history_copies, point, run_dir / f"{name}.img").result()
    lost = []
    for step, copy, expected in copies:
        with mounted_copy(copy) as home:
            survivor = opened(home, "btrfs")
            with closing((history := History(survivor)).state):
                actual = kept_contents(history, Trash(history))
            lost += [f"after {step}: {text}" for text in unlike(actual, expected)]
            survivor.shutdown(force=True)
    assert not lost, "\n".join(lost)


def unlike(actual: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """What differs between two stores' contents."""
    keys = sorted(expected.keys() | actual.keys())
    wrong = [key for key in keys if actual.get(key) != expected.get(key)]
    return [f"{key} is {actual.get(key)!r:.400}, not {expected.get(key)!r:.400}" for key in wrong]
