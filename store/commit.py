"""A container's changes as a new image that podman runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drivers.base import Compression
from store import codec
from store.blobs import measured
from store.errors import BadRecord
from store.names import normalize
from store.oci import config_document, plain_layer, put_image, put_layer
from store.oci_config import build_manifest, host_platform, run_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from store.records import Container, Image, Layer
    from store.store import Store


def commit(
    store: Store,
    container: str,
    name: str = "",
    *,
    config: Mapping[str, Any] | None = None,
    author: str = "",
    comment: str = "",
) -> Image:
    """Make an image of a container as it is now: its changes become a layer over its image's.

    Args:
        name: normalised as podman does it; an image that has it loses it. Empty for none.
        config: keys of the image's ``config`` object to change; see
            :func:`store.oci_config.run_config`. Everything else is as in the container's image.

    Raises:
        ContainerUnknown, BadName, BadValue
        BadRecord: the container's image has no usable configuration, or a layer below the container
            was not made from an archive; OSError
    """
    names = [normalize(name)] if name else []
    found = store.container(container)
    base, below = _base(store, found)
    created = codec.now()
    runs = run_config(config or {}, base.get("config") or ({} if found.image else None))
    with (
        store.diff(store.layer(found.layer).id, compression=Compression.NONE) as changes,
        measured(changes, store.graphroot) as blob,
        put_layer(store, blob, parent=below[-1].id if below else "") as layer,
    ):
        entry = {"created": created, "created_by": "fsd commit", "author": author, "comment": comment}
        document = base | {
            "created": created,
            "config": runs,
            "rootfs": {"type": "layers", "diff_ids": [*(b.diff_digest for b in below), blob.diff_digest]},
            "history": [*(base.get("history") or ()), {k: v for k, v in entry.items() if v}],
        }
        document |= {"author": author} if author else {}
        data = codec.dumps(document, sort_keys=False).encode()
        descriptors = [plain_layer(item.diff_digest, item.size) for item in below]
        manifest = build_manifest(data, [*descriptors, plain_layer(blob.diff_digest, blob.diff_size)])
        return put_image(store, config=data, manifest=manifest, layer=layer.id, names=names)


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
