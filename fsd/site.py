"""What the nodes of one mount share, and the subjects they show.

A :class:`Site` is one mounted store. A subject is a small value that names one thing of the store
(never a copy of its record), so a node stays right while the store changes: the record is looked up
when it is needed, and a subject whose record is gone raises the store's own "unknown" error.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, cast

from fsd.diffs import Differences
from fsd.errnos import ErrorRing
from fsd.events import Events
from fsd.layouts import Layouts
from fsd.live import Live, Now, Table
from fsd.settings import Settings, waits_for_a_start
from fsd.uploads import Uploads
from store.errors import ContainerUnknown, ImageUnknown, LayerUnknown, StoreError
from store.orphans import Orphans
from store.prune import DEFAULT_KINDS, Kind, Prune
from store.sizes import Sizes
from store.timer import Timer
from store.trash import Trash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fsd.plane import Plane
    from store.history import History
    from store.records import Container, Image, Layer
    from store.store import Store

UNKNOWN: dict[Table, type[StoreError]] = {
    "layers": LayerUnknown,
    "images": ImageUnknown,
    "containers": ContainerUnknown,
}


@dataclass(slots=True)
class Site:
    """One store with its history, mounted at ``mountpoint``."""

    store: Store
    history: History
    mountpoint: Path
    live: Live = field(init=False)
    errors: ErrorRing = field(default_factory=ErrorRing)
    started_ns: int = field(default_factory=time.time_ns)
    settings: Settings = field(default_factory=Settings)
    events: Events = field(default_factory=Events)
    prune_kinds: frozenset[Kind] = DEFAULT_KINDS
    """What ``control/prune/preview`` looks for."""
    configure_bursts: Callable[[str, str], object] = lambda container_id, on_write: None
    """Told of a container's ``on-write`` when it is chosen."""
    retimed: list[Callable[[], object]] = field(default_factory=list)
    """Told, in the event loop, that ``settings`` are others now."""
    started_with: Settings = field(init=False)
    entries_held: Callable[[], int] = lambda: 0
    """How many entries of the tree the kernel holds, but for those in real directory trees."""
    trash: Trash = field(init=False)
    orphans: Orphans = field(init=False)
    sizes: Sizes = field(init=False)
    prune: Prune = field(init=False)
    timer: Timer = field(init=False)
    diffs: Differences = field(init=False)
    layouts: Layouts = field(init=False)
    uploads: Uploads = field(default_factory=Uploads)
    prefixes: set[str] = field(default_factory=set)
    """Directories of image names that people made and nothing is in yet."""
    restored: dict[tuple[str, str], str] = field(default_factory=dict)
    """IDs of objects that came back, by table and the name of the trash entry they came under: mv(1) of
    several entries looks again for what it moved."""
    plane: Plane | None = None
    unread_options: str = ""
    unread_settings: str = ""
    """Why storage.conf and fsd.toml as they are now are not in force; empty if they are."""
    pending_options: tuple[str, ...] = ()
    pending_settings: tuple[str, ...] = ()
    """What of them waits for the next start."""

    def __post_init__(self) -> None:
        self.started_with = self.settings
        self.live = Live(self.store)
        self.diffs = Differences(self.store, self.history.state)
        self.layouts = Layouts(self.store)
        self.trash = Trash(self.history, self.settings.trash)
        self.orphans = Orphans(self.history, self.trash)
        self.sizes = Sizes(self.history, self.trash)
        self.prune = Prune(self.trash, self.orphans, self.sizes)
        self.timer = Timer(self.history, self.settings.timer.interval)

    def take_over(self, settings: Settings) -> None:
        """Go by other numbers from now on. In the event loop."""
        self.settings = settings
        self.history.policy = settings.retention
        self.trash.policy = settings.trash
        self.timer.interval = settings.timer.interval
        self.pending_settings = waits_for_a_start(self.started_with, settings)
        for told in self.retimed:
            told()

    @property
    def now(self) -> Now:
        """The store as it is now."""
        return self.live.now()


@dataclass(frozen=True, slots=True)
class Subject:
    """Something a node shows; the site itself for everything that is not an object."""

    site: Site

    def changed_ns(self) -> int:
        """When it last changed, in nanoseconds since the epoch."""
        return self.site.started_ns

    def layer_ids(self) -> tuple[str, ...]:
        """Layers that may go when it is removed."""
        return ()


@dataclass(frozen=True, slots=True)
class ObjectSubject(Subject):
    """A layer, image or container by its full ID."""

    id: str
    table: ClassVar[Table]

    def changed_ns(self) -> int:
        """When its record last changed."""
        live = self.site.live
        return live.once(("changed", self.table, self.id), lambda: live.changed_ns(self.table, self.id))

    def found(self) -> Layer | Image | Container:
        """The record; the table's "unknown" error when it is gone."""
        record = self.site.now.record(self.table, self.id)
        if record is None:
            raise UNKNOWN[self.table](f"{self.table[:-1]} {self.id} is gone")
        return record

    @property
    def path(self) -> str:
        """Where it is listed, relative to the mount point."""
        return f"{self.table}/{self.site.now.places[self.table].paths.get(self.id, self.id)}"


@dataclass(frozen=True, slots=True)
class LayerSubject(ObjectSubject):
    """One layer."""

    table: ClassVar[Table] = "layers"

    @property
    def record(self) -> Layer:
        """Its record; ``LayerUnknown`` when it is gone."""
        return cast("Layer", self.found())

    def layer_ids(self) -> tuple[str, ...]:
        """Itself."""
        return (self.id,)


@dataclass(frozen=True, slots=True)
class ImageSubject(ObjectSubject):
    """One image."""

    table: ClassVar[Table] = "images"

    @property
    def record(self) -> Image:
        """Its record; ``ImageUnknown`` when it is gone."""
        return cast("Image", self.found())

    def layer_ids(self) -> tuple[str, ...]:
        """The whole chain: those no one else uses go with the image."""
        return tuple(layer.id for layer in self.site.now.catalog.chain(self.record.layer))


@dataclass(frozen=True, slots=True)
class ContainerSubject(ObjectSubject):
    """One container."""

    table: ClassVar[Table] = "containers"

    @property
    def record(self) -> Container:
        """Its record; ``ContainerUnknown`` when it is gone."""
        return cast("Container", self.found())

    def layer_ids(self) -> tuple[str, ...]:
        """Its writable layer."""
        return (self.record.layer,)


SUBJECTS: dict[Table, type[LayerSubject | ImageSubject | ContainerSubject]] = {
    "layers": LayerSubject,
    "images": ImageSubject,
    "containers": ContainerSubject,
}


class _Settled:
    """An object whose record and time were looked up, and stay so: for what is asked of it at one moment."""

    __slots__ = ()

    def changed_ns(self) -> int:
        """As it was looked up."""
        return self.settled_ns  # type: ignore[attr-defined, no-any-return]

    def found(self) -> Layer | Image | Container:
        """As it was looked up."""
        return self.record  # type: ignore[attr-defined, no-any-return]


class _SettledLayer(_Settled, LayerSubject):
    __slots__ = ("record", "settled_ns")


class _SettledImage(_Settled, ImageSubject):
    __slots__ = ("record", "settled_ns")


class _SettledContainer(_Settled, ContainerSubject):
    __slots__ = ("record", "settled_ns")


_SETTLED = {"layers": _SettledLayer, "images": _SettledImage, "containers": _SettledContainer}


def settled(subject: ObjectSubject) -> ObjectSubject:
    """The object as it is now, with its record looked up once; to be used at once and then forgotten."""
    made = _SETTLED[subject.table](subject.site, subject.id)
    object.__setattr__(made, "record", subject.found())
    object.__setattr__(made, "settled_ns", subject.changed_ns())
    return made


@dataclass(frozen=True, slots=True)
class NamesSubject(Subject):
    """A directory of names in a table; ``directory`` is empty for the table itself."""

    table: Table
    directory: str = ""

    def changed_ns(self) -> int:
        """When the listing last changed."""
        return self.site.live.listed_ns(self.table, self.directory)

    def join(self, name: str) -> str:
        """The full name of an entry."""
        return f"{self.directory}/{name}" if self.directory else name


@dataclass(frozen=True, slots=True)
class PartSubject(Subject):
    """A named part of an object: a big data item, or one of its snapshots."""

    owner: ObjectSubject
    name: str

    def changed_ns(self) -> int:
        """When the object last changed."""
        return self.owner.changed_ns()


@dataclass(frozen=True, slots=True)
class PathSubject(Subject):
    """A place in the tree that a symlink points at."""

    path: str
    owner: Subject

    def changed_ns(self) -> int:
        """When what lists the link last changed."""
        return self.owner.changed_ns()
