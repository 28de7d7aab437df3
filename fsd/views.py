"""Which real directories the tree shows, and how: the bridge from nodes to ``fsd.rootfs``.

A :class:`ViewSpec` says which layer (or plain directory) a node shows and whether it may be written.
:class:`Views` turns it into an exported view when it is first looked at and keeps the driver's
``get`` of its layer until the mount ends or the layer goes away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from fsd.handles import identity
from fsd.rootfs import Rootfs, View

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pyfuse3

    from fsd.bursts import Bursts
    from fsd.rootfs_nodes import Gate
    from store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSpec:
    """A real directory tree to show.

    ``key`` is the same for the same place of the tree at every mount. Exactly one of ``layer_id`` and
    ``directory`` is set. ``container`` is the ID of the container whose bursts a write belongs to.
    """

    key: str
    read_only: bool
    layer_id: str = ""
    directory: Path | None = None
    container: str = ""
    shown: str = ""
    """Where in the tree it is shown, for messages; the key if empty."""
    owner: str = ""
    """Key of the object's node, as ``containers:<id>``."""
    refusal: str = ""
    """Why writing is refused, and what to do instead; for read-only views."""


class Views:
    """The exported views of one mount."""

    def __init__(self, store: Store, rootfs: Rootfs, bursts: Bursts) -> None:
        self._store = store
        self._rootfs = rootfs
        self._bursts = bursts
        self._specs: dict[str, ViewSpec] = {}
        self._views: dict[str, tuple[bytes, View]] = {}
        self._held: set[str] = set()

    async def export(self, spec: ViewSpec) -> pyfuse3.EntryAttributes:
        """Attributes of the view's root, with the node number to look it up under.

        A directory that was replaced since (a rollback, a refilled container) becomes a new view: its
        key carries the identity of the directory itself.
        """
        path = spec.directory
        if path is None:
            path = await trio.to_thread.run_sync(self._get, spec.layer_id)
        who = identity(path)
        known = self._views.get(spec.key)
        if known is None or known[0] != who:
            view = View(_key(spec.key, who), path, spec.read_only, self._gate(spec))
            if known is not None:
                self._rootfs.unexport(known[1])
            self._views[spec.key] = (who, view)
            self._specs[view.key] = spec
        return await self._rootfs.export(self._views[spec.key][1])

    async def release(self, layer_ids: Iterable[str]) -> None:
        """Let go of layers that are about to be removed; a view still wanted is exported anew."""
        for layer_id in layer_ids:
            for key in [key for key, (_, view) in self._views.items() if self._shows(view, layer_id)]:
                self._rootfs.unexport(self._views.pop(key)[1])
            if layer_id in self._held:
                self._held.discard(layer_id)
                await trio.to_thread.run_sync(self._store.driver.put, layer_id)

    def _shows(self, view: View, layer_id: str) -> bool:
        return self._specs[view.key].layer_id == layer_id

    def spec_of(self, inode: int) -> ViewSpec | None:
        """The view a node of a real tree belongs to."""
        view = self._rootfs.view_of(inode)
        return self._specs.get(view.key) if view else None

    def close(self) -> None:
        """Give back every layer the driver made available for us."""
        for layer_id in self._held:
            self._store.driver.put(layer_id)
        self._held.clear()

    def _get(self, layer_id: str) -> Path:
        if layer_id in self._held:
            self._store.driver.put(layer_id)
        path = self._store.driver.get(layer_id)
        self._held.add(layer_id)
        return path

    def _gate(self, spec: ViewSpec) -> Gate | None:
        """What a write waits for: a snapshot, where the driver keeps any."""
        if not spec.container or not self._store.driver.capabilities.snapshots:
            return None
        return self._bursts.gate(spec.container)


def _key(key: str, who: bytes) -> str:
    return f"{key}#{hashlib.blake2b(who, digest_size=8).hexdigest()}"
