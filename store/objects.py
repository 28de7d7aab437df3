"""What people call an object, and changing what it is called.

A text names a layer, image or container in any form :class:`~store.catalog.Catalog` finds. Where it may be
of several kinds, ``images/X``, ``containers/X`` and ``layers/X`` say which one is meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from store.errors import BadName, BadValue, DuplicateName, ImageUnknown, NotAnID, SnapshotUnknown
from store.names import candidates, normalize

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from store.catalog import Catalog
    from store.queries import Queries
    from store.records import Container, Image, Layer
    from store.store import Store

Table = Literal["images", "containers", "layers"]
TABLES: Final[tuple[Table, ...]] = get_args(Table)
"""In the order in which a bare name is looked for."""

_CONTAINER_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_ID: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Found:
    """An object and the table it is in."""

    table: Table
    record: Image | Container | Layer

    @property
    def id(self) -> str:
        """Its full ID."""
        return self.record.id

    @property
    def label(self) -> str:
        """What to call it: its first name, or the beginning of its ID."""
        return self.record.names[0] if self.record.names else self.record.id[:12]


# -- finding ---------------------------------------------------------------------------------------


def find(catalog: Catalog, table: Table, text: str) -> Image | Container | Layer | None:
    """Whatever podman would accept ``text`` for in one table."""
    if table == "layers":
        return catalog.find_layer(text)
    return catalog.find_image(text) if table == "images" else catalog.find_container(text)


def find_object(store: Queries, text: str, tables: Sequence[Table] = TABLES) -> Found:
    """The object ``text`` names, in one of ``tables``.

    A container's own layer is never meant where the container is found too.

    Raises:
        NotAnID: nothing is called so
        BadName: objects of several kinds are
    """
    catalog = store.catalog()
    kind, slash, rest = text.partition("/")
    if slash and kind in tables:
        chosen: Table = kind  # type: ignore[assignment]
        record = find(catalog, chosen, rest)
        if record is not None:
            return Found(chosen, record)
    hits = [Found(t, record) for t in tables if (record := find(catalog, t, text)) is not None]
    if len(hits) > 1:
        hits = _exact(hits, text) or hits
        held = {hit.record.layer for hit in hits if hit.table == "containers"}  # type: ignore[union-attr]
        hits = [hit for hit in hits if hit.id not in held]
    if not hits:
        kinds = " or ".join(t[:-1] for t in tables)
        raise NotAnID(f"no {kinds} is called {text!r:.120}")
    if len(hits) > 1:
        ways = " or ".join(f"{hit.table}/{text}" for hit in hits)
        raise BadName(f"{text!r:.120} may mean several objects; say {ways}")
    return hits[0]


def _exact(hits: list[Found], text: str) -> list[Found]:
    """Those that have ``text`` as their full ID or as a name, as it is or as podman completes it."""
    spellings = {text, *candidates(text)}
    return [hit for hit in hits if text == hit.id or spellings & set(hit.record.names)]


# -- names -----------------------------------------------------------------------------------------


def check_container_name(name: str) -> None:
    """Raise ``BadName`` unless podman could use the name too."""
    if not _CONTAINER_NAME.match(name):
        raise BadName(
            f"{name!r} cannot name a container: use letters, digits, '_', '.' and '-', "
            "a letter or digit first"
        )


def make_layer(store: Store, name: str, parent: str | None = None) -> Layer:
    """A new layer, empty or on top of ``parent``: 64 hex digits are its ID, anything else its name.

    Raises:
        BadName, and what :meth:`Store.create_layer` raises
    """
    if _ID.match(name):
        return store.create_layer(id=name, parent=parent)
    if not name or "/" in name or name.startswith("."):
        raise BadName(f"{name!r} cannot name a layer: it must not be empty, begin with '.' or have a '/'")
    return store.create_layer(names=[name], parent=parent)


def make_container(store: Store, name: str) -> Container:
    """A new, empty container with its private directories; ``BadName``, and as ``create_container``."""
    check_container_name(name)
    container = store.create_container(names=[name])
    store.container_directory(container.id)
    store.container_run_directory(container.id)
    return container


def rename(store: Store, table: Table, id_: str, old: str, new: str) -> str:
    """Replace the name ``old`` of an object, which comes first then; other names stay.

    Returns:
        the new name as it was stored: names of images are completed as podman does it.

    Raises:
        BadName, DuplicateName
    """
    name = _checked(table, new)
    _refuse_taken(store.catalog(), table, id_, name)
    record = store.catalog().by_id(table).get(id_)
    names = record.names if record else ()
    store.set_names(id_, [name, *(other for other in names if other not in (old, name))])
    return name


def tag(store: Store, image: str, names: Iterable[str]) -> Image:
    """Give an image further names.

    Raises:
        ImageUnknown, BadName
        DuplicateName: another image has one of them; nothing was changed then
    """
    catalog = store.catalog()
    found = catalog.find_image(image)
    if found is None:
        raise ImageUnknown(f"{image!r:.120} is no image, so it cannot get a name")
    full = [normalize(name) for name in names]
    for name in full:
        owner = next((other.id for other in catalog.images if name in other.names), found.id)
        if owner != found.id:
            raise DuplicateName(f"the name {name!r} belongs to image {owner[:12]}; remove that first")
    store.add_names(found.id, full, last=True)
    return store.image(found.id)


def untag(store: Store, names: Iterable[str]) -> list[Image]:
    """Take names of images away; an image may be left without any.

    Returns:
        the images' records as they are now.

    Raises:
        ImageUnknown: one is no image's own name; nothing was changed then
    """
    catalog, owners = store.catalog(), {}
    for name in names:
        full = name if any(name in image.names for image in catalog.images) else normalize(name)
        owner = next((image for image in catalog.images if full in image.names), None)
        if owner is None:
            raise ImageUnknown(f"no image has the name {full!r:.120}")
        owners[full] = owner.id
    for name, image_id in owners.items():
        store.remove_names(image_id, [name])
    return [store.image(image_id) for image_id in dict.fromkeys(owners.values())]


def check_names(
    catalog: Catalog, table: Table, id_: str, names: Sequence[str], append: bool = False
) -> list[str]:
    """The names as they are stored: new ones of images are completed as podman does it.

    Raises:
        BadName, BadValue, DuplicateName: the object cannot be called so
    """
    if not names and not append and table == "containers":
        raise BadValue("a container keeps at least one name")
    record = catalog.by_id(table).get(id_)
    own = record.names if record else ()
    checked = [name if name in own else _checked(table, name) for name in names]
    for name in checked:
        _refuse_taken(catalog, table, id_, name)
    return checked


def change_names(store: Store, found: Found, names: Sequence[str], append: bool = False) -> list[str]:
    """Set an object's names, or add to them; returns what it has then.

    Raises:
        BadName, BadValue, DuplicateName
    """
    checked = check_names(store.catalog(), found.table, found.id, names, append)
    kept = list(found.record.names) if append else []
    store.set_names(found.id, list(dict.fromkeys([*kept, *checked])))
    return store.names(found.id)


def _checked(table: Table, name: str) -> str:
    if table == "containers":
        check_container_name(name)
    return normalize(name) if table == "images" else name


def _refuse_taken(catalog: Catalog, table: Table, id_: str, name: str) -> None:
    owner = find(catalog, table, name)
    if owner is not None and owner.id != id_:
        text = f"the name {name!r} belongs to {table[:-1]} {owner.id}; rename or remove that first"
        raise DuplicateName(text, holder=owner.id)


# -- snapshots -------------------------------------------------------------------------------------


def split_snapshot(text: str) -> tuple[str, str]:
    """Container and snapshot of ``CONTAINER@SNAPSHOT`` or ``CONTAINER/snapshots/SNAPSHOT``.

    Raises:
        SnapshotUnknown: it has neither form
    """
    owner, slash, name = text.rpartition("/snapshots/")
    if not slash:
        owner, _, name = text.partition("@")
    if not owner or not name:
        raise SnapshotUnknown(f"{text!r:.120} names no snapshot; write CONTAINER@SNAPSHOT")
    return owner.removeprefix("containers/"), name
