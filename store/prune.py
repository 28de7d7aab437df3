"""Pruning in two steps: a preview lists what would go, and running it by its token removes no more.

A plan is kept in fsd's state under its token, a digest of what it lists, for a day. Running it removes each
object that is still as it was listed, and says of every other why it was spared. What is pruned is gone at
once: it does not pass through the trash, since space is what pruning is for.
"""

from __future__ import annotations

import enum
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from drivers.errors import DriverError
from store.durable import remove_tree
from store.errors import BadValue, PlanUnknown, StoreError
from store.retention import SECOND

if TYPE_CHECKING:
    from store.catalog import Catalog
    from store.orphans import Orphans
    from store.records import Container, Image
    from store.sizes import Sizes
    from store.trash import Trash


class Kind(enum.Enum):
    """What can be pruned; the value is what people write."""

    STOPPED_CONTAINERS = "stopped-containers"
    DANGLING_IMAGES = "dangling-images"
    UNUSED_IMAGES = "unused-images"
    EXPIRED_TRASH = "expired-trash"
    ORPHANS = "orphans"
    TEMPORARY_FILES = "temporary-files"


DEFAULT_KINDS: Final = frozenset({Kind.DANGLING_IMAGES, Kind.EXPIRED_TRASH, Kind.TEMPORARY_FILES})
"""What goes unless somebody says otherwise: nothing anybody can miss."""
LEFTOVER_AGE: Final = 3600.0
"""Seconds before a file without a record counts as left behind."""
PLAN_LIFE: Final = 24 * 3600.0
"""Seconds a token is good for."""
_PLAN: Final = "plan"


def parse_kinds(words: Collection[str]) -> frozenset[Kind]:
    """Kinds by their values; ``all`` is every one. ``BadValue``."""
    known = {kind.value: kind for kind in Kind}
    for word in words:
        if word not in known and word != "all":
            raise BadValue(f"{word!r:.80} cannot be pruned; {', '.join(known)} and all can")
    return frozenset(Kind) if "all" in words else frozenset(known[word] for word in words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing to remove.

    Attributes:
        id: full ID of the object, ID of the entry or orphan, or path of the file.
        version: what is different once the object is not the one that was listed.
        frees: bytes its removal alone would free, as last measured; ``None`` if not known.
    """

    kind: Kind
    id: str
    name: str
    why: str
    version: str = ""
    frees: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A preview.

    Attributes:
        pinned: what would be listed were it not pinned.
        frees: bytes that come back if all of it goes together; ``None`` if nobody measured it. At least
            the sum over the items, since what they share with each other comes on top.
    """

    token: str
    kinds: frozenset[Kind]
    items: tuple[Item, ...]
    pinned: tuple[Item, ...]
    made_ns: int
    frees: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run did: items removed, and items spared with the reason."""

    removed: tuple[Item, ...]
    spared: tuple[tuple[Item, str], ...]


class Prune:
    """Pruning of one store; safe to use from any thread. Methods may raise ``OSError``."""

    def __init__(self, trash: Trash, orphans: Orphans, sizes: Sizes) -> None:
        self._store = trash.store
        self._history = trash.history
        self._state = trash.history.state
        self._pins = trash.pins
        self._trash = trash
        self._orphans = orphans
        self._sizes = sizes

    # -- the two steps -------------------------------------------------------------------------

    def preview(
        self,
        kinds: Collection[Kind] = DEFAULT_KINDS,
        *,
        measure: bool = False,
        now_ns: int | None = None,
        keep: bool = True,
    ) -> Plan:
        """List what may go now, with the token that removes it.

        The same list has the same token, so that looking twice is harmless.

        Args:
            measure: also tell what all of it together frees, which may take a while.
            keep: whether the token is to work; who only looks need not write.
        """
        now = time.time_ns() if now_ns is None else now_ns
        pins = self._pins.all()
        found = list(self._candidates(frozenset(kinds), now))
        items = tuple(item for item in found if (_pin_kind(item), item.id) not in pins)
        pinned = tuple(item for item in found if item not in items)
        plan = Plan(
            token=_token(kinds, items),
            kinds=frozenset(kinds),
            items=items,
            pinned=pinned,
            made_ns=now,
            frees=self._together(items) if measure else None,
        )
        if keep:
            self._keep(plan)
        return plan

    def run(
        self, token: str, *, progress: Callable[[Item], None] | None = None, now_ns: int | None = None
    ) -> Outcome:
        """Remove what the preview of that token listed, and nothing else; a token works once.

        What is pinned, in use, or not as it was listed any more stays. A failure ends nothing but the
        removal of that item.

        Args:
            progress: told of each item before it is removed.

        Raises:
            PlanUnknown: no preview gave that token within a day, or it was run before
        """
        now = time.time_ns() if now_ns is None else now_ns
        kinds, items = self._kept(token, now)
        self._state.set_setting(_object(token), _PLAN, None)
        current = {(item.kind, item.id): item for item in self._candidates(kinds, now)}
        removed, spared = [], []
        for item in items:
            if progress is not None:
                progress(item)
            why = self._remove(item, current.get((item.kind, item.id)), now)
            if why:
                spared.append((item, why))
            else:
                removed.append(item)
        return Outcome(removed=tuple(removed), spared=tuple(spared))

    def check(self, token: str) -> None:
        """Raise what :meth:`run` would for the token alone; ``PlanUnknown``."""
        self._kept(token, time.time_ns())

    def _remove(self, item: Item, current: Item | None, now_ns: int) -> str:
        """Why it was spared, or nothing."""
        if current is None:
            return "it is gone, or needed now"
        if current.version != item.version or not self._is_as_listed(item):
            return "it changed since the preview"
        if (_pin_kind(item), item.id) in self._pins.all():
            return "it is pinned"
        ways: dict[Kind, Callable[[str], object]] = {
            Kind.STOPPED_CONTAINERS: self._history.delete_container,
            Kind.DANGLING_IMAGES: self._store.delete_image,
            Kind.UNUSED_IMAGES: self._store.delete_image,
            Kind.EXPIRED_TRASH: self._trash.purge,
            Kind.ORPHANS: lambda orphan_id: self._orphans.reap(orphan_id, now_ns),
            Kind.TEMPORARY_FILES: self._remove_file,
        }
        try:
            ways[item.kind](item.id)
        except (StoreError, DriverError, OSError) as error:
            return str(error)
        return ""

    def _is_as_listed(self, item: Item) -> bool:
        """Whether a record is so now: a run may take long, in which an image gets a name."""
        table, catalog = _pin_kind(item), self._store.catalog()
        if table not in ("containers", "images"):
            return True
        found = catalog.container(item.id) if table == "containers" else catalog.image(item.id)
        return found is not None and _version(found) == item.version

    def _remove_file(self, path: str) -> None:
        with self._store.transaction(layers="w", images="w", containers="w"):
            if Path(path) not in {left for _, left in self._store.leftover_paths()}:
                raise PlanUnknown(f"{path} belongs to something now")
            remove_tree(Path(path))

    # -- what may go ---------------------------------------------------------------------------

    def _candidates(self, kinds: frozenset[Kind], now_ns: int) -> Iterator[Item]:
        """In the order of removal, pinned or not."""
        catalog = self._store.catalog()
        going: set[str] = set()
        if Kind.STOPPED_CONTAINERS in kinds:
            stopped = list(self._stopped(catalog))
            pins = self._pins.all()
            going = {item.id for item in stopped if ("containers", item.id) not in pins}
            yield from stopped
        if kinds & {Kind.DANGLING_IMAGES, Kind.UNUSED_IMAGES}:
            yield from self._images(catalog, Kind.UNUSED_IMAGES in kinds, going)
        if Kind.EXPIRED_TRASH in kinds:
            yield from self._expired(now_ns)
        if Kind.ORPHANS in kinds:
            yield from self._orphaned(now_ns)
        if Kind.TEMPORARY_FILES in kinds:
            yield from self._files(now_ns)

    def _stopped(self, catalog: Catalog) -> Iterator[Item]:
        for container in catalog.containers:
            if not catalog.mount_count(container.layer):
                yield self._item(Kind.STOPPED_CONTAINERS, "containers", container, "it is not mounted")

    def _images(self, catalog: Catalog, unused: bool, going: set[str]) -> Iterator[Item]:
        """Images no container uses that stays: those without a name, or all of them."""
        for image in catalog.images:
            if image.read_only or any(c.id not in going for c in catalog.containers_of(image.id)):
                continue
            if image.names and unused:
                yield self._item(Kind.UNUSED_IMAGES, "images", image, "no container uses it")
            elif not image.names and (unused or not _is_intermediate(catalog, image)):
                yield self._item(Kind.DANGLING_IMAGES, "images", image, "it has no name and no user")

    def _item(self, kind: Kind, table: str, record: Image | Container, why: str) -> Item:
        figures = self._sizes.get(table, record.id)
        return Item(
            kind=kind,
            id=record.id,
            name=record.names[0] if record.names else record.id[:12],
            why=why,
            version=_version(record),
            frees=figures.freed if figures else None,
        )

    def _expired(self, now_ns: int) -> Iterator[Item]:
        for entry in self._trash.expired(now_ns):
            figures = self._sizes.get("trash", entry.id)
            yield Item(
                kind=Kind.EXPIRED_TRASH,
                id=entry.id,
                name=entry.id,
                why=f"{entry.kind[:-1]}, removed {_ago(now_ns - entry.removed_ns)} ago",
                version=str(entry.removed_ns),
                frees=figures.freed if figures else None,
            )

    def _orphaned(self, now_ns: int) -> Iterator[Item]:
        for orphan in self._orphans.list(now_ns):
            yield Item(
                kind=Kind.ORPHANS,
                id=orphan.id,
                name=orphan.id,
                why=orphan.reason,
                version=str(orphan.born_ns),
                frees=orphan.size,
            )

    def _files(self, now_ns: int) -> Iterator[Item]:
        for table, path in self._store.leftover_paths():
            with suppress(FileNotFoundError):
                status = path.lstat()
                if now_ns - status.st_mtime_ns >= LEFTOVER_AGE * SECOND:
                    yield Item(
                        kind=Kind.TEMPORARY_FILES,
                        id=str(path),
                        name=path.name,
                        why=f"it belongs to no record of the {table}",
                        version=f"{status.st_ino} {status.st_mtime_ns}",
                    )

    def _together(self, items: Collection[Item]) -> int | None:
        ids: dict[Kind, list[str]] = {kind: [i.id for i in items if i.kind is kind] for kind in Kind}
        orphans = [orphan for orphan in self._orphans.list() if orphan.id in ids[Kind.ORPHANS]]
        return self._sizes.together(
            images=[*ids[Kind.DANGLING_IMAGES], *ids[Kind.UNUSED_IMAGES]],
            containers=ids[Kind.STOPPED_CONTAINERS],
            trash=ids[Kind.EXPIRED_TRASH],
            orphans=orphans,
        )

    # -- plans in the state --------------------------------------------------------------------

    def _keep(self, plan: Plan) -> None:
        """Remember a plan, and forget those nobody ran in time."""
        for obj, text in self._state.settings_of(_PLAN).items():
            if plan.made_ns - json.loads(text)["made"] >= PLAN_LIFE * SECOND:
                self._state.set_setting(obj, _PLAN, None)
        items = [asdict(item) | {"kind": item.kind.value} for item in plan.items]
        value = {"made": plan.made_ns, "kinds": sorted(k.value for k in plan.kinds), "items": items}
        self._state.set_setting(_object(plan.token), _PLAN, json.dumps(value))

    def _kept(self, token: str, now_ns: int) -> tuple[frozenset[Kind], list[Item]]:
        text = self._state.settings(_object(token.strip())).get(_PLAN)
        value: Any = json.loads(text) if text else {"made": 0}
        if now_ns - value["made"] >= PLAN_LIFE * SECOND:
            raise PlanUnknown(f"no preview gave the token {token!r:.80} today; look at a preview again")
        items = [Item(**item | {"kind": Kind(item["kind"])}) for item in value["items"]]
        return parse_kinds(value["kinds"]), items


def _version(record: Image | Container) -> str:
    return json.dumps([record.created, record.layer, *record.names])


def _object(token: str) -> str:
    return f"prune/{token}"


def _token(kinds: Collection[Kind], items: Collection[Item]) -> str:
    listed = [[item.kind.value, item.id, item.version] for item in items]
    text = json.dumps([sorted(kind.value for kind in kinds), listed])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _pin_kind(item: Item) -> str:
    kinds = {Kind.STOPPED_CONTAINERS: "containers", Kind.EXPIRED_TRASH: "trash"}
    images = item.kind in (Kind.DANGLING_IMAGES, Kind.UNUSED_IMAGES)
    return "images" if images else kinds.get(item.kind, "")


def _is_intermediate(catalog: Catalog, image: Image) -> bool:
    """Whether other images were built on this one: it makes their next build fast."""
    return any(not catalog.containers_on(child.id) for child in catalog.children(image.layer))


def _ago(nanoseconds: int) -> str:
    hours = nanoseconds // (3600 * SECOND)
    return f"{hours} hours" if hours < 72 else f"{hours // 24} days"
