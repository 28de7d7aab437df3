"""Loading images from ``docker-archive`` and ``oci-archive`` files, under the names they carry.

A docker-archive (``docker save``) is a tar whose ``manifest.json`` lists configurations, layers and
tags. An oci-archive is a tar of an OCI image layout (image-layout.md of the specification). Layers
must have the digests their image claims; one that the store has already is not read.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from drivers.errors import MalformedArchive
from store.archive_files import DirectoryFiles, ImageFiles, archive_files, counted, parse_document
from store.blobs import measured
from store.errors import BadName, BadValue
from store.names import DOCKER, LOCAL, normalize
from store.oci import put_image, put_layer
from store.oci_config import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    build_docker_manifest,
    hex_of,
    host_platform,
    layer_id,
    sha256,
)
from store.state import State, journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from store.archive_files import Progress
    from store.records import Image
    from store.store import Store

LAYERS = 1000
"""Most layers of one image."""
REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation with an image's name or tag (annotations.md)."""
FULL_NAME = "io.containerd.image.name"
"""Annotation in which containerd and docker put the full name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One image of an archive.

    ``layers`` are the names of the archive's members, base first, and ``diff_ids`` the digests their
    uncompressed content must have; ``digests`` are those of the members, or empty when not known.
    """

    config: bytes
    manifest: bytes
    layers: tuple[str, ...]
    diff_ids: tuple[str, ...]
    digests: tuple[str, ...]
    names: tuple[str, ...]


def load_archive(store: Store, archive: BinaryIO, *, state: State | None = None) -> list[Image]:
    """Load every image of a docker-archive or oci-archive; nothing is loaded if one of them is bad.

    Args:
        archive: a tar, plain or compressed; read to its end.
        state: the store's state, for its journal; opened for the call when not given.

    Returns:
        the images' records, in the archive's order.

    Raises:
        MalformedArchive, HostileArchive; BadValue: it is a tar of something else; OSError
    """
    with archive_files(archive, store.graphroot) as files:
        return _load(store, files, _contents(files), state)


def load_layout(
    store: Store,
    directory: Path,
    tag: str = "",
    *,
    state: State | None = None,
    progress: Progress | None = None,
) -> list[Image]:
    """Load the images of an OCI image layout in a directory, or the one that is called ``tag`` there.

    Every byte of a layer is told to ``progress`` twice: it is read for its digest, then unpacked.

    Raises:
        MalformedArchive, HostileArchive; BadValue: it is no layout, or has no such image; OSError
    """
    with _layout_files(directory) as files:
        return _load(store, files, _oci_images(files, tag), state, progress)


def layout_size(directory: Path, tag: str = "") -> int:
    """Bytes of the layers that :func:`load_layout` reads; raises as that does."""
    with _layout_files(directory) as files:
        return sum(_plain_size(files, name) for image in _oci_images(files, tag) for name in image.layers)


@contextmanager
def _layout_files(directory: Path) -> Iterator[DirectoryFiles]:
    with DirectoryFiles(directory) as files:
        if "index.json" not in files:
            raise BadValue(f"{directory} has no index.json, so it is no OCI image layout")
        yield files


def _load(
    store: Store,
    files: ImageFiles,
    contents: list[Packed],
    state: State | None,
    progress: Progress | None = None,
) -> list[Image]:
    """Make every image, or none; layers are kept only once all of them are there."""
    with journal(store.graphroot, state) as opened, ExitStack() as kept:
        put = partial(_put_layers, store, files, kept=kept, state=opened, progress=progress)
        images = [(packed, put(packed)) for packed in contents]
        return [
            put_image(
                store, config=packed.config, manifest=packed.manifest, layer=top, names=list(packed.names)
            )
            for packed, top in images
        ]


def _contents(files: ImageFiles) -> list[Packed]:
    if "index.json" in files and "oci-layout" in files:
        return _oci_images(files)
    if "manifest.json" in files:
        return _docker_images(files)
    raise BadValue(
        "the archive has neither index.json nor manifest.json, so it is no image; "
        "a root filesystem is imported, not loaded"
    )


def _put_layers(
    store: Store,
    files: ImageFiles,
    packed: Packed,
    *,
    kept: ExitStack,
    state: State,
    progress: Progress | None,
) -> str:
    """Make the layers that are not there; ``kept`` removes them unless it is left normally."""
    parent = ""
    for name, diff_id, digest in zip(packed.layers, packed.diff_ids, packed.digests, strict=True):
        wanted = layer_id(parent, diff_id)
        known = store.catalog().layer(wanted)
        if known is None or known.diff_digest != diff_id:
            with files.open(name) as file, measured(counted(file, progress), store.graphroot) as blob:
                if blob.diff_digest != diff_id or digest not in ("", blob.digest):
                    raise MalformedArchive(f"layer {name} has digest {blob.diff_digest}, not {diff_id}")
                kept.enter_context(put_layer(store, blob, parent, state))
        parent = wanted
    return parent


# -- docker-archive --------------------------------------------------------------------------------


def _docker_images(files: ImageFiles) -> list[Packed]:
    entries = files.document("manifest.json")
    _expect(isinstance(entries, list) and entries, "manifest.json lists no images")
    return [_docker_image(files, entry) for entry in entries]


def _docker_image(files: ImageFiles, entry: Any) -> Packed:
    _expect(isinstance(entry, dict), "an entry of manifest.json is no object")
    layers = _texts(entry.get("Layers") or [], "Layers of manifest.json")
    tags = _texts(entry.get("RepoTags") or [], "RepoTags of manifest.json")
    _expect(isinstance(entry.get("Config"), str), "Config of manifest.json is no text")
    config = files.read(entry["Config"])
    diff_ids = _diff_ids(config, len(layers))
    descriptors = [
        Descriptor(media_type="", digest=diff_id, size=_plain_size(files, name))
        for name, diff_id in zip(layers, diff_ids, strict=True)
    ]
    return Packed(
        config=config,
        manifest=build_docker_manifest(config, descriptors),
        layers=layers,
        diff_ids=diff_ids,
        digests=("",) * len(layers),
        names=_normalized(tags, DOCKER),
    )


def _plain_size(files: ImageFiles, name: str) -> int:
    with files.open(name) as file:
        return file.seek(0, io.SEEK_END)


# -- oci-archive -----------------------------------------------------------------------------------


def _oci_images(files: ImageFiles, tag: str = "") -> list[Packed]:
    """All images of the index, or those whose annotated name is ``tag``, or has it as its tag."""
    index = files.document("index.json")
    listed = _manifests(files, index)
    _expect(bool(listed), "index.json names no image")
    wanted = [item for item in listed if not tag or tag in _tags(item[0])]
    if not wanted:
        raise BadValue(f"index.json has no image {tag!r:.120}")
    return [_oci_image(files, descriptor, name) for descriptor, name in wanted]


def _tags(descriptor: Any) -> tuple[str, ...]:
    """What a descriptor's image may be called."""
    annotations = descriptor.get("annotations")
    found = annotations if isinstance(annotations, dict) else {}
    full = str(found.get(FULL_NAME) or "")
    return str(found.get(REF_NAME) or ""), full, full.rpartition(":")[2]


def _manifests(files: ImageFiles, index: Any, name: str = "", depth: int = 4) -> list[tuple[Any, str]]:
    """Manifest descriptors with their names; of an index in the index, the one for this machine."""
    _expect(isinstance(index, dict) and isinstance(index.get("manifests"), list), "an index has no manifests")
    found: list[tuple[Any, str]] = []
    for descriptor in index["manifests"]:
        _expect(isinstance(descriptor, dict), "a descriptor is no object")
        own = _annotated_name(descriptor) or name
        if descriptor.get("mediaType") in INDEX_TYPES:
            _expect(depth > 0, "indexes are nested too deeply")
            inner = parse_document(_blob(files, descriptor), "an index")
            found += _for_this_machine(_manifests(files, inner, own, depth - 1))
        elif descriptor.get("mediaType") in (*MANIFEST_TYPES, None):
            found.append((descriptor, own))
    return found


def _annotated_name(descriptor: Any) -> str:
    annotations = descriptor.get("annotations")
    if not isinstance(annotations, dict):
        return ""
    return str(annotations.get(FULL_NAME) or annotations.get(REF_NAME) or "")


def _for_this_machine(manifests: Sequence[tuple[Any, str]]) -> list[tuple[Any, str]]:
    here = host_platform()
    fitting = [
        (d, n)
        for d, n in manifests
        if not isinstance(d.get("platform"), dict)
        or all(d["platform"].get(key) == here[key] for key in ("architecture", "os"))
    ]
    if manifests and not fitting:
        raise BadValue(f"the archive has no image for {here['os']}/{here['architecture']}")
    return fitting[:1]


def _oci_image(files: ImageFiles, descriptor: Any, name: str) -> Packed:
    manifest = _blob(files, descriptor)
    document = parse_document(manifest, "a manifest")
    _expect(
        isinstance(document, dict)
        and isinstance(document.get("config"), dict)
        and isinstance(document.get("layers"), list),
        "a manifest has no config or no layers",
    )
    config = _blob(files, document["config"])
    digests = tuple(_digest(layer) for layer in document["layers"])
    return Packed(
        config=config,
        manifest=manifest,
        layers=tuple(_blob_name(digest) for digest in digests),
        diff_ids=_diff_ids(config, len(digests)),
        digests=digests,
        names=_normalized((name,) if name else (), LOCAL),
    )


def _blob(files: ImageFiles, descriptor: Any) -> bytes:
    digest = _digest(descriptor)
    data = files.read(_blob_name(digest))
    _expect(sha256(data) == digest, f"the blob {digest} has digest {sha256(data)}")
    return data


def _digest(descriptor: Any) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    _expect(isinstance(digest, str) and _is_sha256(digest), f"{digest!r:.100} is no sha256 digest")
    return str(digest)


def _is_sha256(digest: str) -> bool:
    digits = digest.removeprefix("sha256:")
    length = hashlib.sha256().digest_size * 2
    return digest.startswith("sha256:") and len(digits) == length and not digits.strip("0123456789abcdef")


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{hex_of(digest)}"


# -- both ------------------------------------------------------------------------------------------


def _diff_ids(config: bytes, count: int) -> tuple[str, ...]:
    """The ``rootfs.diff_ids`` of a configuration, one for each of ``count`` layers."""
    document = parse_document(config, "an image's configuration")
    rootfs = document.get("rootfs") if isinstance(document, dict) else None
    _expect(isinstance(rootfs, dict), "an image's configuration has no rootfs")
    assert isinstance(rootfs, dict)
    found = _texts(rootfs.get("diff_ids") or [], "diff_ids")
    _expect(len(found) == count, f"an image has {count} layers and {len(found)} diff_ids")
    _expect(count <= LAYERS, f"an image has more than {LAYERS} layers")
    _expect(all(map(_is_sha256, found)), "a diff_id is no sha256 digest")
    return found


def _normalized(names: Sequence[str], registry: str) -> tuple[str, ...]:
    """Full names; what is no image name is left out, and the image has one name less."""
    found = []
    for name in names:
        try:
            found.append(normalize(name, short=registry))
        except BadName:
            continue
    return tuple(found)


def _texts(value: Any, what: str) -> tuple[str, ...]:
    _expect(isinstance(value, list) and all(isinstance(item, str) for item in value), f"{what} are no texts")
    return tuple(value)


def _expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise MalformedArchive(f"the image archive is malformed: {otherwise}")
