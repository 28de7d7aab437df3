"""Removing one big data item; containers/storage only ever replaces them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from store import bigdata
from store.errors import BigDataUnknown, InUse, StoreError
from store.oci import config_key
from store.records import Container, Image, Layer

if TYPE_CHECKING:
    from store.store import Store


def _needed(store: Store, image: Image) -> set[str]:
    keys = {"manifest", f"manifest-{image.digest}"}
    with suppress(StoreError):
        keys.add(config_key(store, image))
    return keys


def remove_big_data(store: Store, record: Layer | Image | Container, key: str) -> None:
    """Remove an item: the record forgets it first, so that it never names a file that is not there.

    Raises:
        BigDataUnknown; LayerUnknown, ImageUnknown, ContainerUnknown: the object is gone; OSError
        InUse: an image's manifest or configuration, without which no tool can use the image
    """
    if isinstance(record, Image) and key in _needed(store, record):
        label = record.names[0] if record.names else record.id[:12]
        raise InUse(f"image {label} cannot be used without {key!r}; replace it, or remove the image itself")
    table = {Layer: "layers", Image: "images", Container: "containers"}[type(record)]
    modes: dict[str, Literal["w"]] = {table: "w"}
    with store.transaction(**modes) as tx:
        draft: Any = getattr(tx, table)
        current = draft.existing(record.id)
        if key not in current.big_data_names:
            raise BigDataUnknown(f"{record.id} has no big data item {key!r}")
        changed: dict[str, Any] = {"big_data_names": tuple(n for n in current.big_data_names if n != key)}
        if not isinstance(current, Layer):
            for field in ("big_data_sizes", "big_data_digests"):
                changed[field] = {
                    name: value for name, value in getattr(current, field).items() if name != key
                }
        draft.put(replace(current, **changed))
        draft.flush()
        with suppress(FileNotFoundError):
            (store.data_directory(current) / bigdata.file_name(key)).unlink()
