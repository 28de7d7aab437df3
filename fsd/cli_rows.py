"""Records as rows: the keys of ``--json``, and the columns of tables."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fsd import output
from store.glance import digests

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from store.catalog import Catalog
    from store.glance import Glance
    from store.history import Snapshot
    from store.records import Container, Image, Layer

    Row = dict[str, Any]
    Relations: TypeAlias = "Glance | OfCatalog"

SHORT = 12
"""Digits of an ID that tables show, as podman's do."""
NONE = "<none>"
RIGHT = ("LAYERS", "SIZE", "MOUNTS", "EXCLUSIVE", "SHARED", "FREED", "USED", "FREE", "COUNT")
"""Columns of numbers."""


def moment(ns: int | None) -> str | None:
    """A time in nanoseconds since the epoch as RFC 3339; ``None`` stays."""
    return None if ns is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // 10**9))


def size(number: int | None) -> str:
    """Bytes for people."""
    return "-" if number is None else output.human_size(number)


def first_name(row: Row) -> str:
    """What to call an object."""
    return str(row["names"][0]) if row["names"] else NONE


def by_name(rows: Iterable[Row]) -> list[Row]:
    """A row for each name of an object, as podman lists images."""
    return [row | {"names": names} for row in rows for names in [[name] for name in row["names"]] or [[]]]


def short_id(row: Row) -> str:
    """The beginning of its ID."""
    return str(row["id"])[:SHORT]


def age(row: Row) -> str:
    """How long ago it was made."""
    return output.human_age(row["created-ns"])


def parsed(record: Layer | Image | Container) -> Row:
    """A record as its table has it, and whether it comes from a store that is only read."""
    from json import loads

    from store.records import encode

    return {**loads(encode(record)), "read-only": record.read_only}


class OfCatalog:
    """The relations of records, asked of the whole library."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.mount_count = catalog.mount_count

    def chain(self, layer_id: str) -> list[str]:
        """IDs of the layer and its ancestors, base first."""
        return [layer.id for layer in self._catalog.chain(layer_id)]

    def containers_of(self, image_id: str) -> list[str]:
        """IDs of the containers made from that image."""
        return [container.id for container in self._catalog.containers_of(image_id)]

    def image_name(self, image_id: str) -> str:
        """The first name of that image; empty if it has none, or is not there."""
        image = self._catalog.image(image_id)
        return image.names[0] if image and image.names else ""


def image_row(relations: Relations, image: Row) -> Row:
    """An image."""
    layer = image.get("layer", "")
    return {
        **_common(image),
        "digests": digests(image),
        "layer": layer,
        "layers": relations.chain(layer) if layer else [],
        "containers": relations.containers_of(image["id"]),
        "read-only": image.get("read-only", False),
    }


def container_row(relations: Relations, container: Row) -> Row:
    """A container."""
    image, layer = container.get("image", ""), container.get("layer", "")
    return {
        **_common(container),
        "image": image,
        "image-name": relations.image_name(image),
        "layer": layer,
        "mount-count": relations.mount_count(layer),
    }


def layer_row(relations: Relations, layer: Row) -> Row:
    """A layer."""
    measured = layer.get("diff-digest") or layer.get("toc-digest")
    return {
        **_common(layer),
        "parent": layer.get("parent", ""),
        "diff-digest": layer.get("diff-digest", ""),
        "size": layer.get("diff-size", 0) if measured else -1,
        "mount-count": relations.mount_count(layer["id"]),
        "read-only": layer.get("read-only", False),
    }


def _common(record: Row) -> Row:
    return {
        "id": record["id"],
        "names": list(record.get("names", ())),
        "created": record["created"],
        "created-ns": _created_ns(record["created"]),
    }


def _created_ns(text: str) -> int:
    """In nanoseconds since the epoch; 0 if it is no time."""
    from store.codec import parse_time
    from store.errors import BadValue

    try:
        return parse_time(text)
    except BadValue:
        return 0


ROWS: dict[str, Callable[[Relations, Row], Row]] = {
    "images": image_row,
    "containers": container_row,
    "layers": layer_row,
}


def snapshot_row(taken: Snapshot) -> Row:
    """A snapshot."""
    return {
        "name": taken.name,
        "container": taken.container_id,
        "created-ns": taken.created_ns,
        "reason": taken.reason,
        "pinned": taken.pinned,
    }


# -- printing --------------------------------------------------------------------------------------


def print_rows(
    args: argparse.Namespace, rows: Sequence[Row], columns: Mapping[str, Callable[[Row], object]]
) -> None:
    """Rows as JSON, or as a table of these columns."""
    if args.json:
        output.print_json(list(rows))
    else:
        cells = [[column(row) for column in columns.values()] for row in rows]
        output.print_table(cells, list(columns), right=RIGHT)


def say(args: argparse.Namespace, row: Mapping[str, Any], text: str = "") -> int:
    """The outcome of a change: as JSON, or as text where there is something to say."""
    if args.json:
        output.print_json(row)
    elif text:
        print(text)
    return 0


def say_all(args: argparse.Namespace, rows: Sequence[Row], texts: Iterable[str]) -> int:
    """The outcomes of a change to several objects."""
    if args.json:
        output.print_json(list(rows))
    else:
        print("".join(f"{text}\n" for text in texts), end="")
    return 0


def object_row(table: str, id_: str, names: Iterable[str]) -> Row:
    """What an object is, in short."""
    return {"kind": table[:-1], "id": id_, "names": list(names)}
