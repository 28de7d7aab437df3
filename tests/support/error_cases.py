"""One way, at least, to meet each condition that the store and its drivers have an error class for."""

from __future__ import annotations

import fcntl
import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivers import errors as driver
from drivers.idmap import IDMap
from store import errors
from store.config import StoreOptions
from store.fill import fill
from store.options import AutoUserNs, ContainerOptions, LayerOptions
from store.orphans import Orphans
from store.prune import Prune
from store.sizes import Sizes
from store.store import Store
from tests.support import loops

if TYPE_CHECKING:
    from collections.abc import Callable

    from store.history import History
    from store.trash import Trash

BASE_TAR = (Path(__file__).parents[1] / "data" / "tables" / "base.tar").read_bytes()


@dataclass(frozen=True, slots=True)
class Given:
    """A filled store, and a ``second`` one that has the first as its additional one.

    Layers ``base``, its child ``child``, and ``twin``; images ``img`` on ``child``, ``other`` on ``twin``,
    and ``hollow``; containers ``web`` of ``img``, with the snapshot ``one``, and ``empty``.
    """

    home: Path
    store: Store
    history: History
    trash: Trash
    second: Store

    @property
    def subvolumes(self) -> Path:
        """Where the layers are."""
        return self.store.graphroot / "btrfs/subvolumes"

    def layer_of(self, container: str) -> str:
        """The layer of a container."""
        return self.store.container(container).layer


@dataclass(frozen=True, slots=True)
class Case:
    """One way to meet a condition.

    Attributes:
        error: the class that names it.
        call: what raises it.
        says: a part of our text.
        line: a command that meets it in containers-storage, after ``FILL``; empty where none does.
        answer: what that prints, if it is not the class's ``original``.
    """

    error: type[Exception]
    call: Callable[[Given], object]
    says: str
    line: str = ""
    answer: str = ""


def tar_of(name: str, content: bytes = b"") -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return io.BytesIO(buffer.getvalue())


def plain_store(given: Given, driver_name: str, home: str, **others: Any) -> Store:
    """Another store beside the given ones."""
    graph, run = given.home / home, given.home / f"{home}-run"
    return Store(StoreOptions(graphroot=str(graph), runroot=str(run), driver=driver_name, **others))


def with_table(given: Given, text: str) -> Store:
    """A store whose table of images is ``text``."""
    store = plain_store(given, "vfs", "garbage")
    (store.table_directory("images") / "images.json").write_text(text)
    return store


def locked_by_another(given: Given) -> None:
    store = plain_store(given, "vfs", "locked", lock_timeout=0.01)
    with open(store.tables.images.lock.path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        store.create_image()


def pinned(given: Given) -> None:
    image = given.store.image("hollow").id
    given.history.pins.pin("images", image)
    try:
        given.store.delete_image("hollow")
    finally:
        given.history.pins.unpin("images", image)


def mounted(given: Given) -> None:
    given.store.mount("empty")
    try:
        fill(given.store, "empty", "img")
    finally:
        given.store.unmount("empty")


def shut_down(given: Given) -> None:
    given.store.mount("empty")
    try:
        given.store.shutdown()
    finally:
        given.store.unmount("empty")


def mount_below(given: Given, remove: Callable[[], object], layer: str) -> None:
    path = given.store.layer_path(layer)
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        remove()
    finally:
        subprocess.run(["umount", path], check=True)


def without_content(given: Given) -> None:
    layer = given.store.create_layer()
    subprocess.run(["btrfs", "-q", "subvolume", "delete", given.subvolumes / layer.id], check=True)
    try:
        given.store.mount(layer.id)
    finally:
        given.store.delete_layer(layer.id)


def altered(given: Given) -> None:
    layer, _ = given.store.put_layer(tar_of("file", b"before"))
    try:
        (given.subvolumes / layer.id / "file").write_text("behind")
        with given.store.diff(layer.id) as archive:
            archive.read()
    finally:
        given.store.delete_layer(layer.id)


def two_drivers(given: Given) -> None:
    for name in ("overlay", "btrfs"):
        (given.home / "several" / name).mkdir(parents=True, exist_ok=True)
    plain_store(given, "", "several")


def elsewhere(given: Given, driver_name: str, filesystem: str) -> None:
    point = given.home / f"on-{filesystem}"
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", filesystem, "none", point], check=True)
    try:
        plain_store(given, driver_name, f"{point.name}/store")
    finally:
        subprocess.run(["umount", point], check=True)


def without_file_types(given: Given) -> None:
    with loops.loop_mount(
        given.home, "noftype", mkfs=("mkfs.ext4", "-q", "-O", "^filetype"), size=64 << 20
    ) as point:
        options = StoreOptions(graphroot=str(point / "g"), runroot=str(point / "r"), driver="overlay")
        Store(options)


def twice(given: Given) -> None:
    snapshots = given.store.driver.snapshots()
    snapshots.take(given.store.layer("base").id, "once")
    try:
        snapshots.take(given.store.layer("base").id, "once")
    finally:
        snapshots.remove("once")


OVERLAPPING = (IDMap(0, 1000, 5), IDMap(3, 2000, 5))
CASES = [
    Case(errors.LayerUnknown, lambda g: g.store.layer("nosuch"), "no layer is called", "changes nosuch"),
    Case(errors.LayerUnknown, lambda g: g.store.lookup("nosuch"), "nothing in the store", "delete nosuch"),
    Case(errors.LayerUnknown, lambda g: g.store.mount("nosuch"), "no layer is called", "mount nosuch"),
    Case(
        errors.ParentUnknown,
        lambda g: g.store.create_layer(parent="nosuch"),
        "nothing can be made from it",
        "create-layer nosuch",
        errors.LayerUnknown.original,
    ),
    Case(
        errors.ImageUnknown,
        lambda g: g.store.image("nosuch"),
        "no image is called",
        "create-container nosuch",
    ),
    Case(
        errors.ContainerUnknown,
        lambda g: g.store.container("nosuch"),
        "no container is called",
        "get-container-dir nosuch",
    ),
    Case(errors.NotALayer, lambda g: g.store.delete_layer("nosuch"), "no layer", "delete-layer nosuch"),
    Case(errors.NotAnImage, lambda g: g.store.delete_image("nosuch"), "no image", "delete-image nosuch"),
    Case(
        errors.NotAContainer,
        lambda g: g.store.delete_container("nosuch"),
        "no container",
        "delete-container nosuch",
    ),
    Case(
        errors.NotAnID,
        lambda g: g.store.metadata("nosuch"),
        "nothing in the store",
        "set-metadata -m a nosuch",
    ),
    Case(
        errors.BigDataUnknown,
        lambda g: g.store.image_big_data("img", "key"),
        "no big data item 'key'",
        "get-image-data img nokey",
    ),
    Case(
        errors.SizeUnknown,
        lambda g: g.store.image_big_data_size("img", "key"),
        "size of big data item 'key'",
        "get-image-data-size img nokey",
    ),
    Case(
        errors.SizeUnknown,
        lambda g: g.store.container_big_data_size("web", "key"),
        "size of big data item 'key'",
        "get-container-data-size box nokey",
    ),
    Case(
        errors.DigestUnknown,
        lambda g: g.store.image_big_data_digest("img", "key"),
        "digest of big data item 'key'",
        "get-image-data-digest img nokey",
    ),
    Case(
        errors.DigestUnknown,
        lambda g: g.store.container_big_data_digest("web", "key"),
        "digest of big data item 'key'",
        "get-container-data-digest box nokey",
    ),
    Case(
        errors.DigestUnknown,
        lambda g: g.store.set_image_big_data("img", "manifest", b'{"schemaVersion":1,"signatures":[{}]}'),
        "signatures are malformed",
    ),
    Case(errors.SnapshotUnknown, lambda g: g.history.get("web", "nosuch"), "no snapshot 'nosuch'"),
    Case(errors.NoSuchSource, lambda g: fill(g.store, "empty", "nosuch"), "no image, container, layer"),
    Case(errors.TrashUnknown, lambda g: g.trash.purge("nosuch@1"), "trash has no entry"),
    Case(errors.OrphanUnknown, lambda g: Orphans(g.history, g.trash).reap("nosuch"), "no orphan 'nosuch'"),
    Case(
        errors.PlanUnknown,
        lambda g: Prune(g.trash, Orphans(g.history, g.trash), Sizes(g.history, g.trash)).check("nosuch"),
        "no preview gave",
    ),
    Case(
        errors.DuplicateID,
        lambda g: g.store.create_layer(id=g.store.layer("base").id),
        "already in use",
        "create-layer -i {A}",
    ),
    Case(
        errors.DuplicateName,
        lambda g: g.store.create_layer(names=["base"]),
        "already in use by layer",
        "create-layer -n base",
    ),
    Case(
        errors.DuplicateName,
        lambda g: g.store.create_image(names=["img"]),
        "already in use by image",
        "create-image -n img",
    ),
    Case(
        errors.DuplicateName,
        lambda g: g.store.create_container(names=["web"]),
        "already in use by container",
        "create-container -n box img",
    ),
    Case(errors.SnapshotExists, lambda g: g.history.take("web", "one"), "already has a snapshot 'one'"),
    Case(
        errors.LayerHasChildren,
        lambda g: g.store.delete_layer("base"),
        "",
        "delete-layer {A}",
    ),
    Case(
        errors.LayerUsedByImage, lambda g: g.store.delete_layer("twin"), "used by image", "delete-layer {C}"
    ),
    Case(
        errors.LayerUsedByContainer,
        lambda g: g.store.delete_layer(g.layer_of("web")),
        "container",
        "delete-layer {box}",
    ),
    Case(errors.LayerUsedByContainer, shut_down, "a layer is mounted", "shutdown"),
    Case(errors.ImageUsedByContainer, lambda g: g.store.delete_image("img"), "container", "delete-image img"),
    Case(errors.InUse, mounted, "is mounted"),
    Case(errors.Pinned, pinned, "is pinned"),
    Case(errors.BadName, lambda g: g.store.set_names("base", [""]), "cannot be empty"),
    Case(errors.BadValue, lambda g: g.store.mount_image("img", ("rw",)), "read-write"),
    Case(errors.BadID, lambda g: g.store.create_layer(id="short"), "64 lower-case hex digits"),
    Case(
        errors.BadBigDataKey,
        lambda g: g.store.set_image_big_data("img", "", b""),
        "no safe file name",
        "set-image-data -f {text} img ",
    ),
    Case(
        errors.IncompleteOptions,
        lambda g: Store(StoreOptions(graphroot=str(g.home / "g"))),
        "both a graphroot and a runroot",
        "-g= -R= layers",
    ),
    Case(
        errors.InvalidMappings,
        lambda g: g.store.create_layer(options=LayerOptions(uidmap=OVERLAPPING, gidmap=OVERLAPPING)),
        "two ranges map",
    ),
    Case(
        errors.NoAvailableIDs,
        lambda g: g.store.create_container(options=ContainerOptions(auto_userns=AutoUserNs(size=9))),
        "unused IDs are needed",
    ),
    Case(
        errors.ParentIsContainer,
        lambda g: g.store.create_layer(parent=g.layer_of("web")),
        "belongs to container",
        "create-layer {box}",
    ),
    Case(errors.NotPristine, lambda g: fill(g.store, "web", "img"), "filled already"),
    Case(errors.StoreReadOnly, lambda g: g.second.set_metadata("img", "x"), "read-only store"),
    Case(errors.LockTimeout, locked_by_another, "has been locked by"),
    Case(errors.BadRecord, lambda g: with_table(g, "[{").create_image(), "images.json"),
    Case(errors.LayerNotMounted, lambda g: g.store.unmount_image("img"), "not mounted"),
    Case(
        driver.NotSupported,
        lambda g: plain_store(g, "nosuch", "x"),
        "no storage driver 'nosuch'",
        "-s nosuch layers",
        "driver not supported",
    ),
    Case(
        driver.PrerequisitesMissing,
        lambda g: elsewhere(g, "btrfs", "tmpfs"),
        "not on a btrfs",
        "-g {tmpfs} layers",
        "prerequisites for driver not satisfied (wrong filesystem?)",
    ),
    Case(driver.IncompatibleFilesystem, without_file_types, "keeps no file types"),
    Case(
        driver.SeveralDrivers,
        two_drivers,
        "overlay",
        "-s= -g {several} layers",
        "contains several valid graphdrivers",
    ),
    Case(
        driver.BadOption,
        lambda g: plain_store(g, "btrfs", "x", driver_options=("btrfs.nosuch=1",)),
        "unknown option btrfs.nosuch",
        "--storage-opt btrfs.nosuch=1 layers",
        "unknown option btrfs.nosuch",
    ),
    Case(
        driver.BadOption,
        lambda g: g.store.mount_image("img", ("noexec",)),
        "no mount options",
        "mount -r img",
        "does not support mount options",
    ),
    Case(driver.BadLayerID, lambda g: g.store.driver.create("../x"), "not a directory name"),
    Case(driver.LayerUnknown, without_content, "no subvolume"),
    Case(driver.LayerExists, lambda g: g.store.driver.create(g.store.layer("base").id), "exists at"),
    Case(
        driver.LayerMounted,
        lambda g: mount_below(g, lambda: g.store.delete("child"), g.store.layer("child").id),
        "mounted at",
    ),
    Case(
        driver.LayerMounted,
        lambda g: mount_below(g, lambda: g.store.delete_container("web"), g.layer_of("web")),
        "mounted at",
    ),
    Case(driver.SnapshotUnknown, lambda g: g.store.driver.snapshots().path("x/y"), "no snapshot x/y"),
    Case(driver.SnapshotExists, twice, "exists"),
    Case(
        driver.MalformedArchive,
        lambda g: g.store.put_layer(io.BytesIO(b"x" * 600)),
        "",
        "import-layer -f {text}",
        "unexpected EOF exit status 1",
    ),
    Case(driver.HostileArchive, lambda g: g.store.put_layer(tar_of("../../out")), "out"),
    Case(
        driver.IntegrityError,
        altered,
        "differs from the layer's archive",
        "diff -u -f {home}/out child",
        "file integrity checksum failed",
    ),
]
