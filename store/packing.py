"""Images out of a store and into one: archives, OCI image layouts, and other stores.

A :class:`Place` is written as other tools write it: ``oci:DIRECTORY[:TAG]``, ``oci-archive:FILE[:NAME]``,
``docker-archive:FILE``, ``docker://REGISTRY/NAME``, and ``containers-storage:[DRIVER@GRAPHROOT+RUNROOT]NAME``
for another store; what has no such beginning is an image of the store at hand.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from drivers.errors import NotSupported
from store import codec, durable
from store.archive_files import counted
from store.archives import layout_size, load_archive, load_layout
from store.config import StoreOptions
from store.errors import BadValue
from store.layout import REF_NAME, docker_archive, oci_archive, oci_layout
from store.objects import tag as add_tag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from store.archive_files import Progress
    from store.records import Image
    from store.store import Store
    from store.virtual import VirtualFile

REGISTRY: Final = "docker"
STORE: Final = "containers-storage"
OCI: Final = "oci"
OCI_ARCHIVE: Final = "oci-archive"
DOCKER_ARCHIVE: Final = "docker-archive"
ARCHIVES: Final = (DOCKER_ARCHIVE, OCI_ARCHIVE)
_KINDS: Final = (REGISTRY, STORE, OCI, *ARCHIVES)
_OTHER_STORE: Final = re.compile(
    r"\[(?:(?P<driver>\w+)@)?(?P<graph>/[^\]+]*)(?:\+(?P<run>/[^\]]*))?\](?P<name>.*)"
)
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an image is, or should go.

    Attributes:
        kind: ``containers-storage``, ``oci``, ``oci-archive``, ``docker-archive`` or ``docker``.
        location: directory, file, name in a registry; of a store its graphroot, or empty for the one at hand.
        name: the image's name or tag there; empty for all there are.
        driver, runroot: of another store.
    """

    kind: str
    location: str = ""
    name: str = ""
    driver: str = ""
    runroot: str = ""

    @property
    def here(self) -> bool:
        """Whether it is the store at hand."""
        return self.kind == STORE and not self.location


def parse_place(text: str) -> Place:
    """The place a text names; ``BadValue``."""
    kind, colon, rest = text.partition(":")
    if not colon or kind not in _KINDS:
        return Place(kind=STORE, name=text)
    if kind == REGISTRY:
        if not rest.startswith("//") or not rest[2:]:
            raise BadValue(f"{text!r:.120}: an image in a registry is docker://REGISTRY/NAME")
        return Place(kind=kind, location=rest[2:])
    if kind == STORE:
        return _store_place(rest)
    location, _, name = rest.partition(":")
    if not location:
        raise BadValue(f"{text!r:.120} names no {'directory' if kind == OCI else 'file'}")
    return Place(kind=kind, location=location, name=name)


def _store_place(rest: str) -> Place:
    match = _OTHER_STORE.fullmatch(rest)
    if match is None:
        if rest.startswith("["):
            raise BadValue(f"{rest!r:.120}: another store is [DRIVER@GRAPHROOT+RUNROOT]NAME")
        return Place(kind=STORE, name=rest)
    return Place(
        kind=STORE,
        location=match["graph"],
        name=match["name"],
        driver=match["driver"] or "",
        runroot=match["run"] or "",
    )


# -- out -------------------------------------------------------------------------------------------


def packed(store: Store, key: str, kind: str) -> VirtualFile:
    """An image as one file of that kind.

    Raises:
        BadValue: there is no such kind; and what :func:`store.layout.image_blobs` raises
    """
    if kind not in ARCHIVES:
        raise BadValue(f"{kind!r:.80} is no kind of archive; there are {' and '.join(ARCHIVES)}")
    return docker_archive(store, key) if kind == DOCKER_ARCHIVE else oci_archive(store, key)


def write_file(content: VirtualFile, path: Path, progress: Progress | None = None) -> int:
    """Write ``content`` to a file, which has it whole or is as it was; returns the bytes written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "xb") as file:
            _pour(content, file, progress)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError) and error.filename == os.fspath(draft):  # nobody asked for that
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    return content.size


def pour(content: VirtualFile, file: BinaryIO, progress: Progress | None = None) -> int:
    """Write ``content`` to an open file; returns the bytes written."""
    _pour(content, file, progress)
    return content.size


def _pour(content: VirtualFile, file: BinaryIO, progress: Progress | None) -> None:
    with content.open() as stream:
        while piece := stream.read(_PIECE):
            file.write(piece)
            if progress is not None:
                progress(len(piece))


def write_layout(
    store: Store, key: str, directory: Path, tag: str = "", progress: Progress | None = None
) -> int:
    """Add an image to the OCI image layout in ``directory``, which is made if there is none.

    Blobs that are there already are kept; the index names the image last, when all of it is there, and
    another image of the same tag leaves it.

    Args:
        tag: what the index calls the image; the tag of its first name if not given.

    Returns:
        the bytes written.

    Raises:
        BadValue: the directory holds something else; and what :func:`store.layout.image_blobs` raises
    """
    files = dict(oci_layout(store, key))
    index = codec.loads(files.pop("index.json").read())
    entries = _entries(directory)
    written = 0
    for path, content in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.stat().st_size != content.size:
            written += write_file(content, target, progress)
        elif progress is not None:
            progress(content.size)
    (entry,) = index["manifests"]
    if tag:
        entry["annotations"] = {**entry.get("annotations", {}), REF_NAME: tag}
    index["manifests"] = [*(other for other in entries if _ref(other) != _ref(entry)), entry]
    durable.write_atomic(directory / "index.json", codec.to_bytes(codec.dumps(index, sort_keys=False)))
    return written


def _entries(directory: Path) -> list[Any]:
    """What the layout's index lists already."""
    try:
        text = (directory / "index.json").read_bytes()
    except FileNotFoundError:
        if directory.is_dir() and any(directory.iterdir()):
            raise BadValue(f"{directory} holds something that is no OCI image layout") from None
        return []
    try:
        entries = codec.loads(text)["manifests"]
    except (ValueError, KeyError, TypeError):
        raise BadValue(f"{directory}/index.json is no index of an OCI image layout") from None
    return [entry for entry in entries if isinstance(entry, dict)]


def _ref(entry: dict[str, Any]) -> object:
    """What two images of one layout cannot share."""
    annotations = entry.get("annotations")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name or entry.get("digest")


def size_of(store: Store, key: str, place: Place) -> int:
    """Bytes that copying an image to ``place`` moves."""
    if place.kind == OCI:
        return sum(content.size for content in oci_layout(store, key).values())
    return packed(store, key, place.kind if place.kind in ARCHIVES else OCI_ARCHIVE).size


def size_of_source(place: Place) -> int:
    """Bytes that copying from ``place`` reads once; 0 where only reading tells."""
    if place.kind == OCI:
        return layout_size(Path(place.location), place.name)
    if place.kind in ARCHIVES and os.path.isfile(place.location):
        return os.path.getsize(place.location)
    return 0


# -- both ways -------------------------------------------------------------------------------------


def copy_out(store: Store, key: str, place: Place, progress: Progress | None = None) -> None:
    """Copy an image of the store to another place.

    Raises:
        BadValue: it cannot go there; and what :func:`store.layout.image_blobs` and loading raise
    """
    if place.kind == OCI:
        write_layout(store, key, Path(place.location), place.name, progress)
    elif place.kind in ARCHIVES:
        write_file(packed(store, key, place.kind), Path(place.location), progress)
    elif place.kind == STORE:
        with other_store(store, place) as other, packed(store, key, OCI_ARCHIVE).open() as archive:
            images = load_archive(other, counted(archive, progress))
            if place.name:
                add_tag(other, images[0].id, [place.name])
    else:
        raise BadValue("copying to a registry is another tool's work")


def copy_in(store: Store, place: Place, progress: Progress | None = None) -> list[Image]:
    """Copy the images of another place into the store, under the names they have there.

    Raises:
        BadValue: nothing can be copied from there; and what loading raises
    """
    if place.kind == OCI:
        return load_layout(store, Path(place.location), place.name, progress=progress)
    if place.kind in ARCHIVES:
        with open(place.location, "rb") as archive:
            return load_archive(store, counted(archive, progress))
    if place.kind == STORE:
        with other_store(store, place) as other, packed(other, place.name, OCI_ARCHIVE).open() as archive:
            return load_archive(store, counted(archive, progress))
    raise BadValue("copying from a registry is another tool's work")


@contextmanager
def other_store(store: Store, place: Place) -> Iterator[Store]:
    """The other store of a :class:`Place`, open.

    Raises:
        NotSupported: it is the store at hand; what opening a store raises
    """
    from store.store import Store as AnyStore

    if Path(place.location).resolve() == store.graphroot.resolve():
        raise NotSupported(f"{place.location} is this very store; give the image another name with tag")
    runroot = place.runroot or f"{place.location}.run"
    options = replace(StoreOptions(graphroot=place.location, runroot=runroot), driver=place.driver)
    with AnyStore(options) as other:
        yield other
