"""An image as files other tools read: an OCI image layout, and a docker-archive.

Layers appear as uncompressed archives, rebuilt byte for byte when they are read, because that is what
a store keeps; the manifest shown is the image's own where it says so already, and otherwise one that
names these blobs. The configuration, and so the image ID, is always the image's own.
"""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from drivers.base import Compression
from store import codec
from store.errors import BadRecord, SizeUnknown
from store.names import DOCKER, parse
from store.oci import config_document, plain_layer
from store.oci_config import (
    MANIFEST_TYPE,
    Descriptor,
    build_manifest,
    hex_of,
    sha256,
)
from store.virtual import VirtualFile, concatenated, of_bytes, of_stream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from store.records import Image, Layer
    from store.store import Store

REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Blobs:
    """What an image consists of: its documents, and its layers' archives base first."""

    config: bytes
    manifest: bytes
    layers: tuple[tuple[str, VirtualFile], ...]
    """``sha256:<hex>`` digests and content; one digest may occur twice."""


def image_blobs(store: Store, key: str) -> Blobs:
    """The blobs of an image, given by anything that podman would take for it.

    Raises:
        ImageUnknown, BigDataUnknown
        BadRecord: configuration and layers do not fit together
        SizeUnknown: a layer was not made from an archive, so its bytes are not known
    """
    image = _image(store, key)
    config, document = config_document(store, image)
    layers = tuple(_layer(store, layer) for layer in _chain(store, image, document))
    descriptors = [plain_layer(digest, content.size) for digest, content in layers]
    return Blobs(config=config, manifest=_manifest(store, image, config, descriptors), layers=layers)


def _image(store: Store, key: str) -> Image:
    catalog = store.catalog()
    return catalog.image(key) or catalog.find_image(key) or store.image(key)


def _chain(store: Store, image: Image, document: dict[str, Any]) -> list[Layer]:
    chain = store.catalog().chain(image.layer) if image.layer else []
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if [layer.diff_digest for layer in chain] != (diff_ids or []):
        raise BadRecord(
            f"image {image.id[:12]} has {len(chain)} layers that are not those its configuration names"
        )
    return chain


def _layer(store: Store, layer: Layer) -> tuple[str, VirtualFile]:
    if layer.size < 0 or not os.path.exists(store.tar_split_path(layer.id)):
        raise SizeUnknown(f"layer {layer.id[:12]} was not made from an archive that could be rebuilt")
    opener = partial(store.diff, layer.id, compression=Compression.NONE)
    return layer.diff_digest, of_stream(layer.size, opener)


def _manifest(store: Store, image: Image, config: bytes, layers: list[Descriptor]) -> bytes:
    """The image's own manifest if it is OCI's and names exactly these blobs."""
    own = store.image_big_data(image.id, "manifest")
    document = codec.loads(own)
    wanted = [layer.as_json() for layer in layers]
    if isinstance(document, dict) and document.get("mediaType", MANIFEST_TYPE) == MANIFEST_TYPE:
        found = document.get("layers") or []
        if [{k: layer.get(k) for k in ("mediaType", "digest", "size")} for layer in found] == wanted:
            return own
    return build_manifest(config, layers)


# -- OCI image layout ------------------------------------------------------------------------------


def oci_layout(store: Store, key: str, blobs: Blobs | None = None) -> Mapping[str, VirtualFile]:
    """The files of an OCI image layout by their paths; raises as :func:`image_blobs`.

    ``index.json`` names the one image, with the tag of its first name as ``ref.name``.

    Args:
        blobs: what the image consists of, where that is known already.
    """
    blobs = blobs or image_blobs(store, key)
    manifest = Descriptor(media_type=MANIFEST_TYPE, digest=sha256(blobs.manifest), size=len(blobs.manifest))
    entry = manifest.as_json() | _annotations(_image(store, key))
    index = {"schemaVersion": 2, "manifests": [entry]}
    files = {
        "oci-layout": of_bytes(b'{"imageLayoutVersion":"1.0.0"}'),
        "index.json": of_bytes(codec.dumps(index, sort_keys=False).encode()),
        _blob_path(manifest.digest): of_bytes(blobs.manifest),
        _blob_path(sha256(blobs.config)): of_bytes(blobs.config),
    }
    return files | {_blob_path(digest): content for digest, content in blobs.layers}


def _blob_path(digest: str) -> str:
    return f"blobs/sha256/{hex_of(digest)}"


def _annotations(image: Image) -> dict[str, Any]:
    if not image.names:
        return {}
    name = image.names[0]
    return {"annotations": {FULL_NAME: name, REF_NAME: parse(name).tag or name}}


def oci_archive(store: Store, key: str) -> VirtualFile:
    """The OCI image layout as one tar; raises as :func:`image_blobs`."""
    return _packed(oci_layout(store, key))


# -- docker-archive --------------------------------------------------------------------------------


def docker_archive(store: Store, key: str, blobs: Blobs | None = None) -> VirtualFile:
    """The image as ``docker save`` packs it, with all its names; raises as :func:`image_blobs`.

    Args:
        blobs: what the image consists of, where that is known already.
    """
    blobs = blobs or image_blobs(store, key)
    image = _image(store, key)
    config = f"{hex_of(sha256(blobs.config))}.json"
    entry = {
        "Config": config,
        "RepoTags": [_repo_tag(name) for name in image.names if parse(name).tag],
        "Layers": [f"{hex_of(digest)}.tar" for digest, _ in blobs.layers],
    }
    members = {f"{hex_of(digest)}.tar": content for digest, content in blobs.layers}
    members[config] = of_bytes(blobs.config)
    members["manifest.json"] = of_bytes(codec.dumps([entry], sort_keys=False).encode())
    return _packed(members)


def _repo_tag(name: str) -> str:
    """Docker's own images go by their short names in docker-archives."""
    return name.removeprefix(f"{DOCKER}/library/").removeprefix(f"{DOCKER}/")


def _packed(members: Mapping[str, VirtualFile]) -> VirtualFile:
    """A tar of files by name. Most often only its size is wanted: its parts are made when it is opened."""

    def opened() -> BinaryIO:
        parts = [part for name, content in members.items() for part in _member(name, content)]
        return concatenated([*parts, of_bytes(bytes(2 * BLOCK))]).open()

    return VirtualFile(
        sum(BLOCK + -(-file.size // BLOCK) * BLOCK for file in members.values()) + 2 * BLOCK, opened
    )


def _member(name: str, content: VirtualFile) -> list[VirtualFile]:
    def header() -> BinaryIO:
        made = tarfile.TarInfo(name)
        made.size, made.mode = content.size, 0o444
        return io.BytesIO(made.tobuf(tarfile.GNU_FORMAT))  # one block, as long as the name fits into it

    return [VirtualFile(BLOCK, header), content, of_bytes(bytes(-content.size % BLOCK))]
