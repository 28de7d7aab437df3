"""The interface by which a driver sets layers aside and takes them back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Aside(ABC):
    """Layers set aside: no longer layers, out of the sight of other tools, and as they were.

    A ``key`` is two components joined by ``/``: a group, and the ID of the layer. All calls but
    :meth:`discard` are a rename, atomic and constant time in the size of the layer.
    """

    @abstractmethod
    def put(self, layer_id: str, key: str) -> None:
        """Set a layer aside; ``LayerUnknown``, ``LayerMounted``, ``LayerExists`` (the key)."""

    @abstractmethod
    def take_back(self, key: str, layer_id: str) -> None:
        """Make what was set aside the layer ``layer_id``; ``LayerUnknown`` (the key), ``LayerExists``."""

    @abstractmethod
    def discard(self, key: str) -> None:
        """Delete what was set aside; ``LayerUnknown``."""

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Every key, in no particular order."""

    @abstractmethod
    def path(self, key: str) -> Path:
        """Directory of the content; the key need not exist. ``BadLayerID``."""
