"""The interface by which a driver keeps read-only copies of layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivers.base import DEFAULT_CREATION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers.base import Creation


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFacts:
    """When a snapshot was taken (nanoseconds since the epoch), and its :meth:`Snapshots.generation`."""

    created_ns: int
    generation: int


class Snapshots(ABC):
    """Read-only copies of layers, kept outside the directories other tools manage.

    A ``key`` names a snapshot: one or two components joined by ``/``, for example
    ``<container id>/<snapshot name>``. All calls are constant time in the size of the layer.
    """

    @abstractmethod
    def take(self, layer_id: str, key: str) -> None:
        """Copy ``layer_id`` to the read-only snapshot ``key``; ``SnapshotExists``, ``LayerUnknown``."""

    def home(self) -> Path | None:
        """Where one BTRFS_IOC_SNAP_CREATE_V2 takes a snapshot; ``None`` where that is not all.

        The snapshot ``<a>/<b>`` is the read-only copy ``b`` of the layer's own directory, which has to be a
        subvolume, in the directory ``a`` there; whoever needs that makes it, mode 0700.
        """
        return None

    @abstractmethod
    def restore(self, key: str, layer_id: str) -> None:
        """Swap the content of ``layer_id`` for a writable copy of snapshot ``key``, atomically."""

    @abstractmethod
    def create_layer(self, key: str, layer_id: str, creation: Creation = DEFAULT_CREATION) -> None:
        """Make the new layer ``layer_id`` a writable copy of snapshot ``key``."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Delete a snapshot; ``SnapshotUnknown``. Its space returns when the kernel's cleaner ran."""

    @abstractmethod
    def rename(self, key: str, new_key: str) -> None:
        """Give a snapshot another key; ``SnapshotUnknown``, ``SnapshotExists``."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether the snapshot ``key`` is there."""

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Every snapshot's key, in no particular order."""

    @abstractmethod
    def path(self, key: str) -> Path:
        """Directory of a snapshot's content; ``SnapshotUnknown``."""

    @abstractmethod
    def describe(self, key: str) -> SnapshotFacts:
        """When the snapshot was taken, and of which generation of its layer; ``SnapshotUnknown``."""

    @abstractmethod
    def generation(self, layer_id: str, *, settle: bool = True) -> int:
        """A number that grows with every change of the layer, and that a copy of the layer shares.

        Args:
            settle: let everything written so far count first, so that equal numbers mean equal content.
                Without it the call is immediate, and only a *different* number says something.
        """

    @abstractmethod
    def is_copy_of(self, key: str, layer_id: str) -> bool:
        """Whether a snapshot was taken of the tree the layer has now, whatever was written to that since.

        A layer that was swapped or exchanged has another tree, whose generation may be any, even the same.
        Raises ``SnapshotUnknown``, ``LayerUnknown``.
        """
