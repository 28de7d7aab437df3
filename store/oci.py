"""Images from OCI documents and layer archives, written as containers/image writes them (FORMAT 4)."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from drivers import errors as driver_errors
from store import codec
from store.blobs import NO_END, Blob, measured
from store.errors import BadRecord, BadValue, BigDataUnknown, Busy, DuplicateID, Unknown
from store.names import normalize
from store.oci_config import (
    LAYER_TYPE,
    Descriptor,
    build_config,
    build_manifest,
    hex_of,
    host_platform,
    layer_id,
    run_config,
    sha256,
)
from store.options import ImageOptions
from store.state import Intent, State, journal

NEW_LAYER = "new-layer"
"""The kind of intent :func:`put_layer` records."""

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from store.records import Image, Layer
    from store.store import Store

__all__ = [
    "NEW_LAYER",
    "Step",
    "config_document",
    "end_new_layer",
    "history_of",
    "import_rootfs",
    "plain_layer",
    "put_image",
    "put_layer",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an image's making; ``empty`` if it made no layer."""

    created: str
    command: str
    empty: bool


def import_rootfs(
    store: Store,
    archive: BinaryIO,
    name: str = "",
    *,
    config: Mapping[str, Any] | None = None,
    architecture: str = "",
    created: str = "",
    comment: str = "",
    state: State | None = None,
) -> Image:
    """Make a one-layer image of a root filesystem; importing the same again gives the same image.

    Args:
        archive: a tar, plain or compressed with gzip, bzip2, xz or zstd; read to its end.
        name: normalised as podman does it (``web`` is ``localhost/web:latest``); another image that
            has it loses it. Empty for an image without a name.
        config: keys of the image's ``config`` object that differ from the default (``/bin/sh`` with
            a ``PATH``); see :func:`store.oci_config.run_config`.
        architecture: GOARCH; this machine's when not given.
        created: RFC 3339; now when not given.
        comment: goes to the image's history.
        state: the store's state, for its journal; opened for the call when not given.

    Raises:
        BadName, BadValue, MalformedArchive, HostileArchive, OSError; nothing was made then
    """
    names = [normalize(name)] if name else []
    target = host_platform() | ({"architecture": architecture} if architecture else {})
    created = created or codec.now()
    codec.parse_time(created)
    runs = run_config(config or {})
    with measured(archive, store.graphroot) as blob:
        if not blob.size:
            raise BadValue("the archive is empty: a tar of a root filesystem is needed")
        if not blob.ended:
            raise driver_errors.MalformedArchive(NO_END)
        with put_layer(store, blob, parent="", state=state) as layer:
            document = build_config(
                created=created,
                config=runs,
                diff_ids=[blob.diff_digest],
                history=[{"created": created, "created_by": "fsd import", "comment": comment}],
                target=target,
            )
            same = _same_image(store, layer, document)
            if same is not None:
                return _named(store, same, names)
            manifest = build_manifest(document, [plain_layer(blob.diff_digest, blob.diff_size)])
            return put_image(store, config=document, manifest=manifest, layer=layer.id, names=names)


def plain_layer(diff_digest: str, diff_size: int) -> Descriptor:
    """The descriptor of a layer as an uncompressed archive."""
    return Descriptor(media_type=LAYER_TYPE, digest=diff_digest, size=diff_size)


@contextmanager
def put_layer(store: Store, blob: Blob, parent: str, state: State | None = None) -> Iterator[Layer]:
    """The layer of ``blob`` over ``parent`` for the length of a block; it is made if it is not there.

    If the block fails, or the process dies in it, a layer that was made for it goes again.

    Raises:
        MalformedArchive, HostileArchive, LayerUnknown (the parent), OSError
    """
    wanted = layer_id(parent, blob.diff_digest)
    layer = store.catalog().layer(wanted)
    if layer is not None and layer.diff_digest == blob.diff_digest:
        yield layer
        return
    with journal(store.graphroot, state) as opened, opened.intent(NEW_LAYER, {"layer": wanted}):
        yield from _new_layer(store, blob, wanted, parent)


def _new_layer(store: Store, blob: Blob, wanted: str, parent: str) -> Iterator[Layer]:
    try:
        layer, _ = store.put_layer(blob.file, id=wanted, parent=parent or None)
    except DuplicateID:  # another process was faster
        yield store.layer(wanted)
        return
    try:
        if layer.diff_digest != blob.diff_digest:
            raise BadValue("the archive changed while it was read")
        yield layer
    except BaseException:
        _discard(store, layer.id)
        raise


def _discard(store: Store, layer: str) -> None:
    """Delete a layer that was to become an image's, unless somebody else found it useful meanwhile."""
    with suppress(Busy, Unknown):
        store.delete_layer(layer)


def end_new_layer(store: Store, intent: Intent) -> None:
    """After a crash: delete a layer whose image was never made, and a tree whose record was not."""
    layer = str(intent.details["layer"])
    _discard(store, layer)
    with store.transaction(layers="w") as tables, suppress(driver_errors.LayerUnknown):
        if tables.layers.get(layer) is None:
            store.driver.remove(layer)


def put_image(
    store: Store, *, config: bytes, manifest: bytes, layer: str, names: list[str], created: str = ""
) -> Image:
    """Make the image of an OCI or Docker configuration and manifest, or find it, and name it.

    Args:
        layer: ID of the top layer; empty for an image without layers.
        names: normalised; other images lose them.
        created: RFC 3339; the configuration's when not given.
    """
    found = store.catalog().image(hex_of(sha256(config)))
    if found is None:
        found = _create(store, config, manifest, layer, created)
    return _named(store, found, names)


def _create(store: Store, config: bytes, manifest: bytes, layer: str, created: str) -> Image:
    """One record with all its blobs: an image without a manifest breaks ``podman images``."""
    digest, own = sha256(manifest), sha256(config)
    options = ImageOptions(
        created=created or _created(config),
        digest=digest,
        big_data=big_data(config, manifest),
    )
    try:
        return store.create_image(
            id=hex_of(own),
            layer=layer,
            metadata=codec.dumps({"signatures-sizes": {digest: []}}),
            options=options,
        )
    except DuplicateID:  # another process was faster
        return store.image(hex_of(own))


def big_data(config: bytes, manifest: bytes) -> list[tuple[str, bytes]]:
    """Keys and blobs of an image in containers/image's order; unsigned, so the signature is empty."""
    digest = sha256(manifest)
    return [
        (sha256(config), config),
        (f"manifest-{digest}", manifest),
        ("manifest", manifest),
        (f"signature-{hex_of(digest)}", b""),
    ]


def config_document(store: Store, image: Image) -> tuple[bytes, dict[str, Any]]:
    """An image's configuration, as it is and parsed.

    Raises:
        BigDataUnknown: it has none; BadRecord: it is no JSON object
    """
    data = store.image_big_data(image.id, config_key(store, image))
    return data, _object(data, "configuration", image)


def config_key(store: Store, image: Image) -> str:
    """The key of an image's configuration among its big data.

    It is that of the image ID, which is its digest; images that other tools gave an ID of their own name it
    in their manifest.

    Raises:
        BigDataUnknown: it has no manifest; BadRecord: that is no JSON object
    """
    key = f"sha256:{image.id}"
    if key not in image.big_data_names:
        manifest = _object(store.image_big_data(image.id, "manifest"), "manifest", image)
        config = manifest.get("config")
        key = str(config.get("digest")) if isinstance(config, dict) else key
    return key


def history_of(document: Mapping[str, Any]) -> list[Step]:
    """The steps of a configuration's history, oldest first; empty where it has none."""
    steps = document.get("history")
    return [
        Step(
            created=str(step.get("created") or ""),
            command=" ".join(str(step.get("created_by") or step.get("comment") or "").split()),
            empty=bool(step.get("empty_layer")),
        )
        for step in (steps if isinstance(steps, list) else ())
        if isinstance(step, dict)
    ]


def _object(data: bytes, what: str, image: Image) -> dict[str, Any]:
    try:
        document = codec.loads(data)
    except ValueError as error:
        raise BadRecord(f"the {what} of image {image.id[:12]} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRecord(f"the {what} of image {image.id[:12]} is no object")
    return document


def _created(config: bytes) -> str:
    """``created`` of a configuration; now if it has none that is a time."""
    document = codec.loads(config)
    created = document.get("created") if isinstance(document, dict) else None
    try:
        codec.parse_time(str(created))
    except BadValue:
        return codec.now()
    return str(created)


def _named(store: Store, image: Image, names: list[str]) -> Image:
    """Give the image ``names`` beside its own, as a tag: they come last."""
    if not set(names) <= set(image.names):
        store.add_names(image.id, names, last=True)
    return store.image(image.id)


def _same_image(store: Store, layer: Layer, document: bytes) -> Image | None:
    """The image on ``layer`` whose configuration differs from ``document`` in nothing but times."""
    wanted = _without_times(codec.loads(document))
    for image in store.images_by_top_layer(layer.id):
        try:
            if _without_times(config_document(store, image)[1]) == wanted:
                return image
        except (BigDataUnknown, BadRecord):
            continue
    return None


def _without_times(document: dict[str, Any]) -> dict[str, Any]:
    history = [{k: v for k, v in h.items() if k != "created"} for h in document.get("history") or ()]
    return {k: v for k, v in document.items() if k != "created"} | {"history": history}
