"""Which real directories the tree shows, and how: the bridge from nodes to ``fsd.exports``.

A :class:`ViewSpec` says which layer (or plain directory) a node shows and whether it may be written.
:class:`Views` turns it into an exported view when it is first looked at and keeps the driver's
``get`` of its layer until the mount ends or the layer goes away.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict, defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from fsd.exports import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from drivers.idmap import IDMappings
    from fsd.bursts import Bursts
    from fsd.exports import Exports, Gate
    from fsd.plane import Preparation
    from store.store import Store

PRIVATE = "private:"
"""Begins the owner of a directory of which there are no snapshots."""


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
    """Key of the object's node, as ``containers:<id>``, or :data:`PRIVATE` and that key."""
    ids_of: str = ""
    """The layer whose ID mappings the owners on disk are in, if it is not ``layer_id``."""
    keeps_place: bool = True
    """Whether the same view is shown in the same place until a command there changes that."""
    begin: Callable[[], ViewSpec] | None = None
    """For views that the first write turns into another: makes that, in a thread. What is shown until then
    never changes."""
    refusal: str = ""
    """Why writing is refused, and what to do instead; for read-only views."""


class Views:
    """The exported views of one mount."""

    def __init__(self, store: Store, exports: Exports, bursts: Bursts, *, container_ids: bool = True) -> None:
        """``container_ids``: show owners as a container with ID mappings sees them, not as on disk."""
        self._container_ids = container_ids
        self.exports = exports
        self._store = store
        self.bursts = bursts
        self._specs: dict[str, ViewSpec] = {}
        self._of_container: defaultdict[str, set[str]] = defaultdict(set)
        self.shown: Callable[[str], object] = lambda container: None
        """Told, in a thread, of a container that can be written from now on."""
        self._held: set[str] = set()
        self._beginning = trio.Lock()
        self._changing = threading.Lock()
        """Held while what a key shows is found out, and while that changes."""
        self.refused: OrderedDict[tuple[int, int, str], None] = OrderedDict()
        """Processes, by pid and start time, that must not empty the object of that key."""

    async def export(self, make: Callable[[], ViewSpec]) -> int:
        """Node id of the root of the view that ``make`` describes; it is called in a thread.

        A directory that was replaced since (a rollback, a refilled container) becomes a new view.

        Raises:
            OSError: the directory cannot be opened.
            DriverError: the driver cannot make the layer available.
        """
        return await trio.to_thread.run_sync(self._export, make)

    def _export(self, make: Callable[[], ViewSpec]) -> int:
        with self._changing:
            spec = make()
            if spec.container and not spec.read_only:
                with suppress(OSError):  # the first write asks again, and tells
                    self.bursts.recall(spec.container)
            path = self._get(spec.layer_id) if spec.directory is None else spec.directory
            self._know(spec)
            node = self.exports.export(self._view(spec, path))
        if spec.container and not spec.read_only and not self.exports.is_prepared(spec.key):
            self.shown(spec.container)
        return node

    def _know(self, spec: ViewSpec) -> None:
        self._specs[spec.key] = spec
        if spec.container:
            self._of_container[spec.container].add(spec.key)

    def _view(self, spec: ViewSpec, path: Path) -> View:
        gate = self._gate(spec)
        return View(
            key=spec.key,
            path=path,
            read_only=spec.read_only,
            frozen=spec.read_only and self._is_final(spec),
            sealed=spec.begin is not None,
            gate=gate,
            window=functools.partial(self.bursts.window, spec.container) if gate and spec.container else None,
            hastened=functools.partial(self.bursts.hastened, spec.container)
            if gate and spec.container
            else None,
            owner=owner_number(spec.owner),
            ids=self._ids(spec),
        )

    def _ids(self, spec: ViewSpec) -> IDMappings | None:
        """How owners are mapped on disk; ``None`` when they are not, or are to be shown as they are."""
        layer_id = spec.ids_of or spec.layer_id
        layer = self._store.catalog().layer(layer_id) if layer_id and self._container_ids else None
        return layer.mappings if layer else None

    def _is_final(self, spec: ViewSpec) -> bool:
        """Whether nobody writes there any more: a snapshot, or a layer that others are built on."""
        if spec.directory is not None:
            return True
        catalog = self._store.catalog()
        used = catalog.children(spec.layer_id) or catalog.images_on(spec.layer_id)
        return bool(used) and not catalog.containers_on(spec.layer_id)

    def ask_again(self, container: str = "") -> None:
        """Let the next write to a container, or to any, be judged anew. From any thread."""
        for key in self._keys(container) if container else list(self._specs):
            self.exports.arm(key)

    def prepare(self, container: str, preparation: Preparation | None) -> None:
        """Lay the next snapshot of a container ready, or take back what was. From any thread."""
        for key in self._keys(container):
            self.exports.prepare(key, preparation)

    def writers(self, container: str) -> int:
        """How many files of a container are open for writing here. From any thread."""
        return sum(self.exports.writers(key) for key in self._keys(container))

    def _keys(self, container: str) -> list[str]:
        keys = list(self._of_container.get(container, ()))
        return [key for key in keys if (spec := self._specs.get(key)) and spec.container == container]

    async def release(self, layer_ids: Iterable[str]) -> None:
        """Let go of layers that are about to be removed; a view still wanted is exported anew."""
        for layer_id in layer_ids:
            for key in [key for key, spec in list(self._specs.items()) if spec.layer_id == layer_id]:
                self.exports.unexport(key)
            if layer_id in self._held:
                self._held.discard(layer_id)
                await trio.to_thread.run_sync(self._store.driver.put, layer_id)

    def keeps_place(self, inode: int) -> bool:
        """Whether the kernel may remember where it met a node of a real tree."""
        spec = self.spec_of(inode)
        return spec is not None and spec.keeps_place

    async def sweep(self) -> None:
        """Let go of what was deleted, by us or behind our back."""
        catalog = self._store.catalog()
        await self.release([layer_id for layer_id in list(self._held) if catalog.layer(layer_id) is None])
        gone = await self.exports.sweep()
        if gone:
            await trio.to_thread.run_sync(self._forget, gone)

    def _forget(self, keys: Iterable[str]) -> None:
        """Keep nothing about views nobody holds, unless they are shown anew."""
        with self._changing:
            for key in keys:
                spec = None if self.exports.shows(key) else self._specs.pop(key, None)
                if spec is not None and spec.container:
                    self._of_container[spec.container].discard(key)
                    if not self._of_container[spec.container]:
                        del self._of_container[spec.container]

    def spec_of(self, inode: int) -> ViewSpec | None:
        """The view a node of a real tree belongs to."""
        view = self.exports.view_of(inode)
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

    async def _begin(self, key: str, name: bytes | None) -> None:
        """The gate of a view that its first write turns into another: that, then the gate of the other."""
        async with self._beginning:
            spec = self._specs[key]
            if spec.begin is not None:
                await trio.to_thread.run_sync(self._exchange, spec, spec.begin)
        gate = self._gate(self._specs[key])
        if gate is not None:
            await gate(name)

    def _exchange(self, spec: ViewSpec, begin: Callable[[], ViewSpec]) -> None:
        with self._changing:
            spec = replace(begin(), key=spec.key, shown=spec.shown, keeps_place=False)
            self.exports.exchange(self._view(spec, self._get(spec.layer_id)))
            self._know(spec)

    def _gate(self, spec: ViewSpec) -> Gate | None:
        """What a write waits for: a snapshot, where the driver keeps any, or what the first write begins."""
        if spec.begin is not None:
            return functools.partial(self._begin, spec.key)
        if not spec.container or not self._store.driver.capabilities.snapshots:
            return None
        return self.bursts.gate(spec.container)


def owner_number(owner: str) -> int:
    """An object's key as the plane knows it; 0 for none."""
    if not owner:
        return 0
    return int.from_bytes(hashlib.blake2b(owner.encode(), digest_size=8).digest(), "little") or 1
