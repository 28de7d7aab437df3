"""Layers of additional layer stores, which keep the content of layers of ours (FORMAT 8.4)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from drivers.base import Creation
from store import codec
from store.creation import Creations
from store.errors import BadRecord, LayerUnknown
from store.ids import check_id, new_id
from store.names import dedupe
from store.records import Layer, decode

if TYPE_CHECKING:
    from drivers.overlay_layers import AdditionalLayer


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """A layer that a layer store has ready; :meth:`release` it when it was put into the store, or not.

    Attributes:
        digest: what it was asked for.
        record: digests, sizes and compression, as its store tells them.
    """

    digest: str
    record: Layer
    served: AdditionalLayer
    _store: AdditionalLayers

    def put_as(self, *, id: str | None = None, parent: str | None = None, names: Iterable[str] = ()) -> Layer:
        """Make a layer of ours whose content stays where it is; containers/storage's ``PutAs``.

        Raises:
            BadID, DuplicateID, DuplicateName, ParentUnknown, ParentIsContainer, LockTimeout, OSError
        """
        return self._store.put_found(self, new_id() if not id else check_id(id), parent, dedupe(names))

    def blob(self) -> BinaryIO:
        """The layer's archive as it was distributed; ``Blob``."""
        return self.served.blob()

    def release(self) -> None:
        """Let its store forget this use; layers made from it are uses of their own; ``Release``."""
        self.served.release()


class AdditionalLayers(Creations):
    """Methods of :class:`store.store.Store` about additional layer stores."""

    def lookup_additional_layer(self, digest: str, reference: str = "") -> FoundLayer:
        """A layer by the digest of its archive, or of its table of contents; ``LookupAdditionalLayer``.

        Args:
            digest: ``sha256:…``; which one counts is the layer store's choice.
            reference: the image it belongs to, for stores that want to know.

        Raises:
            LayerUnknown: no layer store has it, or none is configured.
            BadRecord: what the layer store tells about it cannot be understood.
            drivers.errors.NotSupported: the graph driver cannot use layer stores.
        """
        served = self.driver.find_additional_layer(digest, reference)
        if served is None:
            raise LayerUnknown(f"no additional layer store has a layer of digest {digest}")
        return self._in_use(digest, served)

    def lookup_additional_layer_by_id(self, key: str) -> FoundLayer:
        """What a layer of ours has its content from; ``LookupAdditionalLayerByID``.

        Raises:
            LayerUnknown: no such layer, or its content is its own.
            BadRecord: what the layer store tells about it cannot be understood.
            drivers.errors.NotSupported: the graph driver cannot use layer stores.
        """
        layer = self.layer(key)
        served = self.driver.served_by(layer.id)
        if served is None:
            raise LayerUnknown(f"the content of layer {layer.id} is in no additional layer store")
        return self._in_use(served.path.name, served)

    def _in_use(self, digest: str, served: AdditionalLayer) -> FoundLayer:
        served.use()
        try:
            record = decode(Layer, {"id": digest, **json.loads(served.info())})
        except (ValueError, TypeError) as error:
            served.release()
            raise BadRecord(f"{served.path}/info: {error}") from None
        except BaseException:
            served.release()
            raise
        return FoundLayer(digest, record, served, self)

    def put_found(
        self, found: FoundLayer, layer_id: str, parent: str | None, names: tuple[str, ...]
    ) -> Layer:
        """Record a found layer; see :meth:`FoundLayer.put_as`."""
        with self.transaction(layers="w", containers="r") as tx, ExitStack() as undo:
            base = self.parent_layer(tx, parent) if parent else None
            tx.layers.check_id_free(layer_id)
            tx.layers.check_names(names)
            above = base.id if base else ""
            made = replace(
                found.record,
                id=layer_id,
                parent=above,
                names=names,
                created=codec.now(),
                in_image_store=self.split is not None,
            )
            how = Creation(in_image_store=made.in_image_store)
            self.driver.adopt(found.served, layer_id, above or None, how)
            undo.callback(self.driver.remove, layer_id)
            self.driver.settle(layer_id)
            tx.layers.add(made)
            tx.layers.flush()
            undo.pop_all()
        return made
