"""Records as rows: the keys of ``--json``, and the columns of tables."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fsd import output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from store.catalog import Catalog
    from store.history import Snapshot
    from store.records import Container, Image, Layer

    Row = dict[str, Any]

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


def short_id(row: Row) -> str:
    """The beginning of its ID."""
    return str(row["id"])[:SHORT]


def age(row: Row) -> str:
    """How long ago it was made."""
    return output.human_age(row["created-ns"])


def image_row(catalog: Catalog, image: Image) -> Row:
    """An image."""
    return {
        "id": image.id,
        "names": list(image.names),
        "digests": list(image.digests),
        "created": image.created,
        "created-ns": image.created_ns,
        "layer": image.layer,
        "layers": [layer.id for layer in catalog.chain(image.layer)] if image.layer else [],
        "containers": [container.id for container in catalog.containers_of(image.id)],
        "read-only": image.read_only,
    }


def container_row(catalog: Catalog, container: Container) -> Row:
    """A container."""
    image = catalog.image(container.image)
    return {
        "id": container.id,
        "names": list(container.names),
        "created": container.created,
        "created-ns": container.created_ns,
        "image": container.image,
        "image-name": image.names[0] if image and image.names else "",
        "layer": container.layer,
        "mount-count": catalog.mount_count(container.layer),
    }


def layer_row(catalog: Catalog, layer: Layer) -> Row:
    """A layer."""
    return {
        "id": layer.id,
        "names": list(layer.names),
        "parent": layer.parent,
        "created": layer.created,
        "created-ns": layer.created_ns,
        "diff-digest": layer.diff_digest,
        "size": layer.size,
        "mount-count": catalog.mount_count(layer.id),
        "read-only": layer.read_only,
    }


ROWS: dict[str, Callable[[Catalog, Any], Row]] = {
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
