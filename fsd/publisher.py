"""Lets the data plane answer for objects of the tree: renders them when they are listed, and a few ahead.

Who walks through a table opens its objects in the order of the listing, or sorted. So the objects that come
next in either order are rendered together with the one that is opened, more of them as long as the guess was
right. What is published holds as long as nothing has changed (``fsd/plane/published.c``), and for
:data:`LASTS` seconds at most, which bounds what nobody tells of.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import trio

from fsd.live import TABLES
from fsd.nodes import KEEP_SECONDS, Node
from fsd.rendering import rendered
from fsd.site import SUBJECTS
from fsd.tables import directory_key
from fsd.tree import CONTAINER, IMAGE, LAYER
from fsd.views import PRIVATE, owner_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from fsd.inodes import Inodes
    from fsd.live import Table as TableName
    from fsd.naming import Places
    from fsd.nodes import Directory
    from fsd.plane import Plane
    from fsd.rendering import Rendered
    from fsd.site import Site

log = logging.getLogger("fsd")

_KINDS: dict[TableName, Directory] = {"layers": LAYER, "images": IMAGE, "containers": CONTAINER}
LASTS = KEEP_SECONDS
AHEAD = 2
"""How many times as many are rendered by the time somebody who goes on gets to the first of them."""
TOGETHER = 32
"""How many objects are rendered at once at most."""
KEPT = 256
"""How many objects stay published; each takes some 4 KiB."""


class _Walk:
    """The objects of a table in the orders people go through them, and where somebody who does is."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self._first = ""
        self._orders: list[Sequence[str]] = []
        self._at: list[dict[str, int]] = []
        self._expected = [-1, -1]
        """Which place comes next, by order; only one is left once it is known which order it is."""
        self._together = 1

    def next(self, path: str) -> Sequence[str]:
        """The object opened now, and those that follow it if it was expected."""
        if not self._first:
            self._first = path
            return [path]
        if not self._orders:  # which costs some milliseconds where there are many
            self._orders = [sorted(self.places.objects), list(self.places.objects)]
            self._at = [{path: at for at, path in enumerate(order)} for order in self._orders]
            self._expected = self._after(self._first)
        after = self._after(path)
        chosen = next((n for n in (0, 1) if after[n] == self._expected[n] + 1), None)
        if chosen is None:
            self._together, self._expected = 1, after
            return [path]
        return self._go_on(chosen)

    def ahead(self) -> Sequence[str]:
        """Those that follow the last ones; none where it is not known in which order."""
        chosen = next((n for n in (0, 1) if self._expected[n] >= 0), 0)
        return self._go_on(chosen) if -1 in self._expected and self._orders else []

    def _after(self, path: str) -> list[int]:
        return [at.get(path, -3) + 1 for at in self._at]

    def _go_on(self, chosen: int) -> Sequence[str]:
        self._together = min(self._together * 2, TOGETHER)
        start = self._expected[chosen]
        self._expected = [-1, -1]
        self._expected[chosen] = start + self._together
        return self._orders[chosen][start : start + self._together]


@dataclass(slots=True)
class _Published:
    """What the plane answers for: its number, and until when."""

    number: int
    generation: int
    until: float


@dataclass(slots=True)
class _Batch:
    """Objects being rendered by a thread; ``outdated`` are those others changed meanwhile."""

    nodes: list[Node]
    thread: int = 0
    outdated: set[str] = field(default_factory=set)
    done: trio.Event = field(default_factory=trio.Event)


class Publisher:
    """What of one mount is published. Belongs to the event loop, but for what says that it may be called from
    any thread."""

    def __init__(self, site: Site, inodes: Inodes) -> None:
        self._site = site
        self._inodes = inodes
        self._published: OrderedDict[str, _Published] = OrderedDict()
        self._walks: dict[str, _Walk] = {}
        self._batches: list[_Batch] = []
        self._more, self._asked_for = trio.open_memory_channel[str](len(TABLES))
        self._stores: object = None
        self._plane = self._follow()
        site.history.state.followers.append(self._state_changed)
        site.diffs.changed = self._layer_measured

    def _follow(self) -> Plane | None:
        """The plane, once it notices every change of the store."""
        plane = self._site.plane
        self._stores = self._site.store.additional
        try:
            for directory, pattern in followed(self._site):
                if plane is not None:
                    plane.follow(directory, pattern)
        except OSError as exc:
            log.warning("listings of objects are slow: %s", exc)
            return None
        return plane

    # -- what has changed ----------------------------------------------------------------------

    def outdate(self) -> None:
        """Something that objects show has changed. From any thread."""
        if self._plane is not None:
            self._plane.outdate()

    def outdate_object(self, key: str) -> None:
        """Something that the object of that key shows has changed. From any thread."""
        for batch in list(self._batches):
            if batch.thread != threading.get_ident():
                batch.outdated.add(key)
        known = self._published.get(key)
        if known is not None and self._plane is not None:
            known.until = 0.0
            self._plane.expire(known.number)

    def _state_changed(self, obj: str) -> None:
        """A row about an object, as ``containers/<id>``."""
        table, _, rest = obj.partition("/")
        self.outdate_object(f"{table}:{rest.partition('/')[0]}")

    def _layer_measured(self, layer_id: str) -> None:
        """The size of a layer's changes."""
        self.outdate_object(f"layers:{layer_id}")
        catalog = self._site.now.catalog
        for image in catalog.images_on(layer_id):
            self.outdate_object(f"images:{image.id}")
        for container in catalog.containers_on(layer_id):
            self.outdate_object(f"containers:{container.id}")

    # -- publishing ----------------------------------------------------------------------------

    async def opened(self, node: Node) -> None:
        """A directory is being listed: publish the object it belongs to, and those that come next."""
        table, _, rest = node.key.partition(":")
        id_ = rest.partition("/")[0]
        if self._plane is None or table not in TABLES:
            return
        for batch in list(self._batches):
            if any(node.key == f"{table}:{id_}" for node in batch.nodes):
                await batch.done.wait()
        if not self._is_published(f"{table}:{id_}", self._plane.generation()):
            path = self._site.now.places[table].paths.get(id_)
            if path is None:
                return
            paths = self._walk(table).next(path)
            await self._show(table, paths)
            for _ in range(AHEAD if len(paths) > 1 else 0):
                self._ask_for_more(table)
        elif not rest.partition("/")[2]:
            self._ask_for_more(table)

    def reached(self, number: int) -> None:
        """Somebody lists the first of the objects that were rendered together."""
        with contextlib.suppress(KeyError):
            table = self._inodes.node(number).key.partition(":")[0]
            if table in TABLES:
                self._ask_for_more(table)

    def _ask_for_more(self, table: TableName) -> None:
        with contextlib.suppress(trio.WouldBlock):
            self._more.send_nowait(table)

    async def serve(self) -> None:
        """Render what comes next while the last ones are being looked at, until cancelled."""
        async for table in self._asked_for:
            await self._show(table, self._walk(table).ahead())

    async def _show(self, table: str, paths: Sequence[str]) -> None:
        """Render and publish the objects at these places of a table."""
        if self._site.store.additional is not self._stores:
            self._plane = self._follow()
        if self._plane is None or not paths or self._site.store.saving:
            return
        generation = self._plane.generation()
        if self._site.store.saving:  # what is being saved shows when it is, and no event tells of that
            return
        batch = _Batch(self._nodes(table, paths, generation))
        places = [(node, *self._place(node)) for node in batch.nodes]
        self._batches.append(batch)
        try:
            made = await trio.to_thread.run_sync(self._render, batch, places)
            if made and len(paths) > 1:
                made[0].tell()  # whoever gets there wants the next ones soon
            for one in made:
                self._publish(one, generation, batch)
        except OSError as exc:
            log.info("%s/%s is not published: %s", table, paths[0], exc)  # whoever lists it is told
        except Exception:
            log.exception("%s/%s is not published", table, paths[0])
        finally:
            self._batches.remove(batch)
            batch.done.set()
        while len(self._published) > KEPT:
            self.retract(next(iter(self._published)))
        self.give_back()

    def _place(self, node: Node) -> tuple[int, int]:
        number = self._inodes.number(node)
        return number, self._inodes.generation(number)

    def _render(self, batch: _Batch, places: Sequence[tuple[Node, int, int]]) -> list[Rendered]:
        """In a thread: what the objects show, all of one moment."""
        batch.thread = threading.get_ident()
        site = self._site
        try:
            with site.store.held(), site.live.held(), site.history.state.reading():
                made = [rendered(*place) for place in places]
        finally:
            batch.thread = 0  # what else it does is not of this batch
        return [one for one in made if one is not None]

    def _publish(self, made: Rendered, generation: int, batch: _Batch) -> None:
        key = made.node.key
        self.retract(key)
        if key in batch.outdated or self._plane is None:
            return
        number = self._inodes.publish(made.node)
        for at, item in made.items:
            made.set_number(at, self._inodes.publish(item))
        table, _, path = made.node.path.partition("/")
        parent = self._inodes.find(directory_key(cast("TableName", table), path.rpartition("/")[0]))
        published = self._plane.publish(
            made.entries,
            bytes(made.text),
            parent=parent or 0,
            owner=owner_number(f"{PRIVATE}{key}") if table == "containers" else 0,
            generation=generation,
            lasts=LASTS,
            guard=made.guard,
        )
        if published:
            self._published[key] = _Published(number, generation, time.monotonic() + LASTS)

    def retract(self, key: str) -> None:
        """Publish an object no more."""
        known = self._published.pop(key, None)
        if known is not None and self._plane is not None:
            self._plane.retract(known.number)

    def give_back(self) -> None:
        """Let go of the nodes of what was published and is not held any more."""
        if self._plane is not None:
            self._inodes.release(self._plane.released())

    # -- what comes next -----------------------------------------------------------------------

    def _nodes(self, table: str, paths: Sequence[str], generation: int) -> list[Node]:
        """The objects there, but for those that are published."""
        site, name = self._site, cast("TableName", table)
        objects = site.now.places[name].objects
        ids = [(path, objects[path]) for path in paths if path in objects]
        return [
            Node(_KINDS[name], SUBJECTS[name](site, id_), f"{table}:{id_}", f"{table}/{path}")
            for path, id_ in ids
            if not self._is_published(f"{table}:{id_}", generation)
        ]

    def _is_published(self, key: str, generation: int) -> bool:
        known = self._published.get(key)
        return known is not None and known.generation == generation and time.monotonic() < known.until

    def _walk(self, table: str) -> _Walk:
        places = self._site.now.places[cast("TableName", table)]
        walk = self._walks.get(table)
        if walk is None or walk.places is not places:
            walk = self._walks[table] = _Walk(places)
        return walk


def followed(site: Site) -> Iterator[tuple[Path, str]]:
    """Directories and patterns of the files in them that objects are made of."""
    store = site.store
    for tables in (store.tables, *store.additional):
        for table in (tables.layers, tables.images, tables.containers):
            if table.directory.is_dir():
                yield table.directory, "*.json"
    for kind in ("layers", "containers"):
        if store.run_directory(kind).is_dir():
            yield store.run_directory(kind), "*.json"
    state = site.history.state.path
    yield state.parent, f"{state.name}*"
