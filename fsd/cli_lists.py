"""Verbs that look at layers, images and containers: tables, trees, files, differences."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fsd import output
from fsd.cli_rows import (
    NONE,
    ROWS,
    SHORT,
    OfCatalog,
    age,
    by_name,
    first_name,
    parsed,
    print_rows,
    short_id,
    size,
)
from fsd.cli_store import at_a_glance, open_reading, open_session, store_exists, store_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from drivers.base import Compared
    from fsd.cli_rows import Row
    from store.catalog import Catalog
    from store.comparison import Side
    from store.store import Store


TOLD_BY = {
    "images": ("layers", "images", "containers"),
    "containers": ("images", "containers"),
    "layers": ("layers",),
}
"""The tables that the rows of one are made from."""


def images(args: argparse.Namespace) -> int:
    """``fsd images``."""
    columns = {
        "NAME": first_name,
        "IMAGE ID": short_id,
        "CREATED": age,
        "LAYERS": lambda row: len(row["layers"]),
    }
    return _listing(args, "images", columns)


def containers(args: argparse.Namespace) -> int:
    """``fsd containers``."""
    columns = {
        "NAME": first_name,
        "CONTAINER ID": short_id,
        "CREATED": age,
        "IMAGE": lambda row: row["image-name"] or row["image"][:SHORT] or NONE,
        "MOUNTS": lambda row: row["mount-count"],
    }
    return _listing(args, "containers", columns)


def layers(args: argparse.Namespace) -> int:
    """``fsd layers``."""
    columns = {
        "LAYER ID": short_id,
        "NAME": first_name,
        "PARENT": lambda row: row["parent"][:SHORT] or NONE,
        "CREATED": age,
        "SIZE": lambda row: size(row["size"]),
        "MOUNTS": lambda row: row["mount-count"],
    }
    return _listing(args, "layers", columns)


def _listing(args: argparse.Namespace, table: str, columns: dict[str, Callable[[Row], object]]) -> int:
    """Print one table of the store, or the objects of it that were asked for."""
    rows: list[Row] = []
    missing: Sequence[str] = args.name
    options = store_options(args)
    glance = None if args.name else at_a_glance(options, TOLD_BY[table])
    if glance is not None:
        rows = [ROWS[table](glance, record) for record in glance.tables[table]]
    elif store_exists(options):
        with open_reading(args) as store:
            catalog = store.catalog()
            found, missing = _select(catalog, table, args.name)
            rows = _rows(catalog, table, found)
            _report_broken(catalog, table)
    for name in missing:
        print(f"fsd: no {table[:-1]} {name!r}", file=sys.stderr)
    if args.quiet and not args.json:
        print("".join(f"{row['id']}\n" for row in rows), end="")
    elif args.json or rows or not args.name:
        print_rows(args, rows if args.json or table != "images" else by_name(rows), columns)
    return 1 if missing else 0


def _rows(catalog: Catalog, table: str, records: Iterable[Any]) -> list[Row]:
    relations = OfCatalog(catalog)
    return [ROWS[table](relations, parsed(record)) for record in records]


def _select(catalog: Catalog, table: str, names: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Every record of ``table``, or those that ``names`` resolve to, and the names that do not resolve."""
    if not names:
        return list(getattr(catalog, table)), []
    look = {"images": catalog.find_image, "containers": catalog.find_container, "layers": catalog.find_layer}
    records = {name: look[table](name) for name in names}
    return [found for found in records.values() if found], [name for name in names if not records[name]]


def _report_broken(catalog: Catalog, table: str) -> None:
    for broken in catalog.broken:
        if broken.table == table:
            print(f"fsd: {table} record {broken.id} cannot be used: {broken.why}", file=sys.stderr)


def show(args: argparse.Namespace) -> int:
    """``fsd show``: the rows of the listings, and the records as their tables have them."""
    import json

    from store.objects import find_object
    from store.records import encode

    shown = []
    with open_reading(args) as store:
        for text in args.object:
            found = find_object(store, text)
            (row,) = _rows(store.catalog(), found.table, [found.record])
            shown.append({"kind": found.table[:-1], **row, "record": json.loads(encode(found.record))})
    output.print_json(shown)
    return 0


def image_history(args: argparse.Namespace) -> int:
    """``fsd history``."""
    from store.objects import find_object
    from store.oci import config_document, history_of

    with open_session(args) as session:
        image: Any = find_object(session.store, args.image, ("images",)).record
        steps = history_of(config_document(session.store, image)[1])
    rows = [{"created": s.created, "command": s.command, "empty-layer": s.empty} for s in steps]
    columns: dict[str, Callable[[Row], object]] = {
        "CREATED": lambda row: row["created"] or "-",
        "LAYER": lambda row: "no" if row["empty-layer"] else "yes",
        "COMMAND": lambda row: row["command"],
    }
    print_rows(args, rows, columns)
    return 0


# -- the layers as a tree --------------------------------------------------------------------------


def layer_tree(args: argparse.Namespace) -> int:
    """``fsd tree``."""
    with open_reading(args) as store:
        catalog = store.catalog()
        if args.json:
            rows = _rows(catalog, "layers", catalog.layers)
            output.print_json([row | _upon(catalog, row["id"]) for row in rows])
        else:
            print(output.tree(str(store.graphroot), _forest(catalog)), end="")
    return 0


def _upon(catalog: Catalog, layer_id: str) -> Row:
    return {
        "children": [layer.id for layer in catalog.children(layer_id)],
        "images": [image.id for image in catalog.images_on(layer_id)],
        "containers": [container.id for container in catalog.containers_on(layer_id)],
    }


def _forest(catalog: Catalog) -> dict[str, Any]:
    """Labels of the layers, each with those of what stands on it."""
    nodes: dict[str, dict[str, Any]] = {layer.id: {} for layer in catalog.layers}
    roots: dict[str, Any] = {}
    for layer in catalog.layers:
        named = f" {layer.names[0]}" if layer.names else ""
        text = f"{layer.id[:SHORT]}{named} ({size(layer.size)})"
        nodes.get(layer.parent, roots)[text] = nodes[layer.id]
    for kind, records in (("image", catalog.images), ("container", catalog.containers)):
        for record in records:
            name = record.names[0] if record.names else record.id[:SHORT]
            nodes.get(record.layer, roots)[f"{kind} {name}"] = {}
    return roots


# -- files -----------------------------------------------------------------------------------------


def _split(text: str) -> tuple[str, str]:
    """Object and path of ``OBJECT:/PATH``; a colon that is no path's belongs to the name."""
    name, colon, path = text.rpartition(":/")
    return (name, f"/{path}") if colon else (text, "/")


def list_files(args: argparse.Namespace) -> int:
    """``fsd ls``."""
    from store.peek import list_directory

    name, path = _split(args.object)
    with open_session(args) as session:
        files = list_directory(session.store, name, path)
    if args.json:
        keys = ("name", "kind", "mode", "uid", "gid", "size", "modified-ns", "target")
        output.print_json([dict(zip(keys, file, strict=True)) for file in files])
    elif sys.stdout.isatty():
        cells = [
            [_mode(f), f"{f.uid}:{f.gid}", size(f.size), f.name + (f" -> {f.target}" if f.target else "")]
            for f in files
        ]
        output.print_table(cells, ["MODE", "OWNER", "SIZE", "NAME"], right=("SIZE",))
    else:
        print("".join(f"{file.name}\n" for file in files), end="")
    return 0


def _mode(file: Any) -> str:
    from stat import filemode

    return filemode(file.mode)


def print_file(args: argparse.Namespace) -> int:
    """``fsd cat``."""
    from store.peek import read_file

    name, path = _split(args.object)
    with open_session(args) as session:
        for piece in read_file(session.store, name, path):
            sys.stdout.buffer.write(piece)
    return 0


# -- differences -----------------------------------------------------------------------------------


def changes(args: argparse.Namespace) -> int:
    """``fsd changes``."""
    from store.comparison import sides_of

    with open_session(args) as session:
        return _compare(args, session.store, *sides_of(session.store, args.object))


def difference(args: argparse.Namespace) -> int:
    """``fsd diff``."""
    from store.comparison import side_of

    with open_session(args) as session:
        return _compare(args, session.store, side_of(session.store, args.b), side_of(session.store, args.a))


def _compare(args: argparse.Namespace, store: Store, new: Side, old: Side | None) -> int:
    from store.comparison import compared, describe_changes

    with compared(store, new, old) as found:
        if args.tar is not None:
            return _archive(args, found)
        if getattr(args, "quiet", False):
            return 1 if found.changes else 0
        if args.json:
            output.print_json([{"kind": c.kind.value, "path": _text(c.path)} for c in found.changes])
        else:
            sys.stdout.buffer.write(describe_changes(found))
    return 0


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _archive(args: argparse.Namespace, found: Compared) -> int:
    from fsd.cli_images import write_out
    from store.virtual import of_stream

    return write_out(args, of_stream(found.archive_size(), found.archive), args.tar)
