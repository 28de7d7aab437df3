"""A container's changes as a new image that podman runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drivers.base import Compression
from store import codec
from store.blobs import measured
from store.errors import BadRecord, ContainerUnknown
from store.names import normalize
from store.oci import config_document, plain_layer, put_image, put_layer
from store.oci_config import build_manifest, host_platform, run_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from store.records import Container, Image, Layer
    from store.state import State
    from store.store import Store


def commit(
    store: Store,
    container: str,
    name: str = "",
    *,
    config: Mapping[str, Any] | None = None,
    author: str = "",
    comment: str = "",
    state: State | None = None,
) -> Image:
    """Make an image of a container as it is now: its changes become a layer over its image's.

    Args:
        name: normalised as podman does it; an image that has it loses it. Empty for none.
        config: keys of the image's ``config`` object to change; see
            :func:`store.oci_config.run_config`. Everything else is as in the container's image.
        state: the store's state, for its journal; opened for the call when not given.

    Raises:
        ContainerUnknown, BadName, BadValue
        BadRecord: the container's image has no usable configuration, or a layer below the container
            was not made from an archive; OSError
    """
    names = [normalize(name)] if name else []
    found = store.container(container)
    base, below = _base(store, found)
    runs = run_config(config or {}, base.get("config") or ({} if found.image else None))
    entry = {"created": codec.now(), "created_by": "fsd commit", "author": author, "comment": comment}
    with (
        store.diff(found.id, compression=Compression.NONE) as changes,
        measured(changes, store.graphroot) as blob,
    ):
        _check_kept(store, found)
        with put_layer(store, blob, parent=below[-1].id if below else "", state=state) as layer:
            diff_ids = [*(item.diff_digest for item in below), blob.diff_digest]
            data = _document(base, runs, diff_ids, {key: value for key, value in entry.items() if value})
            descriptors = [plain_layer(item.diff_digest, item.size) for item in (*below, layer)]
            manifest = build_manifest(data, descriptors)
            return put_image(store, config=data, manifest=manifest, layer=layer.id, names=names)


def _check_kept(store: Store, container: Container) -> None:
    """Refuse what was read of a container that went meanwhile: it may not have been all."""
    if store.container(container.id).layer != container.layer:
        raise ContainerUnknown(f"container {container.id[:12]} was filled anew while it was read")


def _document(
    base: dict[str, Any], runs: dict[str, Any], diff_ids: list[str], entry: dict[str, str]
) -> bytes:
    """The configuration: ``base`` with one layer and one entry of history more."""
    document = base | {
        "created": entry["created"],
        "config": runs,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [*(base.get("history") or ()), entry],
    }
    document |= {"author": entry["author"]} if "author" in entry else {}
    return codec.dumps(document, sort_keys=False).encode()


def _base(store: Store, container: Container) -> tuple[dict[str, Any], list[Layer]]:
    """The configuration to start from, and the image layers below the container's, base first."""
    catalog = store.catalog()
    parent = store.layer(container.layer).parent
    image = catalog.image(container.image) if container.image else None
    top = image.layer if image is not None else parent
    below = catalog.chain(top) if top else []
    missing = [layer.id[:12] for layer in below if layer.size < 0]
    if missing:
        raise BadRecord(f"layer {missing[0]} was not made from an archive, so no image can build on it")
    if image is None:
        return dict(host_platform()), below
    return config_document(store, image)[1], below
