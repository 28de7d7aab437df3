"""The store's whole API in one class."""

from __future__ import annotations

from store.additional_layers import AdditionalLayers
from store.check import Checks
from store.dedup import Dedups
from store.options import (
    AutoUserNs,
    BigData,
    ContainerOptions,
    ImageOptions,
    LayerOptions,
)
from store.reloading import Reloads

__all__ = ["AutoUserNs", "BigData", "ContainerOptions", "ImageOptions", "LayerOptions", "Store"]


class Store(AdditionalLayers, Checks, Dedups, Reloads):
    """A containers/storage store: layers, images and containers over one graph driver.

    Method by method the ``Store`` interface of containers/storage (``store/README.md`` maps the names).
    Every method is a whole transaction: it takes the locks it needs, and either everything it does is
    saved or nothing. No lock is held between calls. Safe to use from several threads.

    ::

        with Store(StoreOptions(graphroot="/srv/g", runroot="/run/g", driver="btrfs")) as store:
            layer, size = store.put_layer(open("rootfs.tar", "rb"))
            image = store.create_image(names=["localhost/web:1"], layer=layer.id)
            container = store.create_container(names=["web"], image=image.id)
            store.delete_container(container.id)

    Besides the errors each method names, any may raise :class:`~store.errors.LockTimeout`,
    :class:`~store.errors.StoreReadOnly` (those that write), :class:`~store.errors.BadRecord` (a table that
    cannot be parsed), and ``OSError``.
    """
