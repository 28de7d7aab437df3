"""Commands on layers, images, containers and snapshots: one call of the store's API each."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

from fsd import output
from fsd.cli_store import open_store, store_exists, store_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from store.catalog import Catalog
    from store.history import History, Snapshot
    from store.records import Container, Image, Layer
    from store.store import Store

    Row = dict[str, Any]

SHORT = 12
"""Digits of an ID that tables show, as podman's do."""
NONE = "<none>"
SEARCH_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What an image without an environment of its own gets."""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register this module's commands."""
    for name, run, what in (
        ("images", images, "image"),
        ("containers", containers, "container"),
        ("layers", layers, "layer"),
    ):
        listing = commands.add_parser(name, parents=[common], help=f"list {name}")
        listing.add_argument(
            "names", nargs="*", metavar="NAME", help=f"only this {what}; exit 1 if there is none"
        )
        listing.add_argument("-q", "--quiet", action="store_true", help="print full IDs only")
        listing.set_defaults(run_command=run)
    _add_import(commands, common)
    make = commands.add_parser("create", parents=[common], help="make a container")
    make.add_argument("name", metavar="NAME")
    make.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="image, layer, container or CONTAINER/snapshots/SNAPSHOT to start from; default: empty",
    )
    make.set_defaults(run_command=create)
    _add_history(commands, common)


def _add_import(commands: Any, common: argparse.ArgumentParser) -> None:
    loader = commands.add_parser("import", parents=[common], help="make an image of a root filesystem tar")
    loader.add_argument("archive", metavar="ARCHIVE", help="tar, plain or compressed; - for standard input")
    loader.add_argument("name", metavar="NAME", help="the image's name, e.g. localhost/busybox:latest")
    loader.add_argument("--cmd", metavar="WORDS", help="what a container runs, quoted like a shell command")
    loader.add_argument("--entrypoint", metavar="WORDS", help="program that gets --cmd as arguments")
    loader.add_argument("-e", "--env", metavar="KEY=VALUE", action="append", help="environment (repeatable)")
    loader.add_argument("-l", "--label", metavar="KEY=VALUE", action="append", help="label (repeatable)")
    loader.add_argument("-u", "--user", metavar="USER[:GROUP]", help="who runs it")
    loader.add_argument("-w", "--workdir", metavar="DIR", help="where it runs")
    loader.add_argument("-m", "--message", metavar="TEXT", default="", help="comment for the image's history")
    loader.add_argument("--no-pool", action="store_true", help="never make the embedded pool")
    loader.set_defaults(run_command=import_image)


def _add_history(commands: Any, common: argparse.ArgumentParser) -> None:
    take = commands.add_parser(
        "snapshot", parents=[common], help="take, list or delete a container's snapshots"
    )
    take.add_argument("container", metavar="CONTAINER")
    take.add_argument("name", nargs="?", metavar="NAME", help="default: the time, as 20260815T143000Z")
    action = take.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="list snapshots instead")
    action.add_argument("--delete", action="store_true", help="delete the snapshot NAME instead")
    take.set_defaults(run_command=snapshot)
    back = commands.add_parser("rollback", parents=[common], help="return a container to a snapshot")
    back.add_argument("container", metavar="CONTAINER")
    back.add_argument("name", metavar="SNAPSHOT")
    back.set_defaults(run_command=rollback)


# -- listings --------------------------------------------------------------------------------------


def images(args: argparse.Namespace) -> int:
    """``fsd images``."""
    columns = {
        "NAME": _first_name,
        "IMAGE ID": _short_id,
        "CREATED": _age,
        "LAYERS": lambda row: len(row["layers"]),
    }
    return _listing(args, "images", _image_row, columns)


def containers(args: argparse.Namespace) -> int:
    """``fsd containers``."""
    columns = {
        "NAME": _first_name,
        "CONTAINER ID": _short_id,
        "CREATED": _age,
        "IMAGE": lambda row: row["image-name"] or row["image"][:SHORT] or NONE,
        "MOUNTS": lambda row: row["mount-count"],
    }
    return _listing(args, "containers", _container_row, columns)


def layers(args: argparse.Namespace) -> int:
    """``fsd layers``."""
    columns = {
        "LAYER ID": _short_id,
        "NAME": _first_name,
        "PARENT": lambda row: row["parent"][:SHORT] or NONE,
        "CREATED": _age,
        "SIZE": lambda row: output.human_size(row["size"]),
        "MOUNTS": lambda row: row["mount-count"],
    }
    return _listing(args, "layers", _layer_row, columns)


def _first_name(row: Row) -> str:
    return str(row["names"][0]) if row["names"] else NONE


def _short_id(row: Row) -> str:
    return str(row["id"])[:SHORT]


def _age(row: Row) -> str:
    return output.human_age(row["created-ns"])


def _image_row(catalog: Catalog, image: Image) -> Row:
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


def _container_row(catalog: Catalog, container: Container) -> Row:
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


def _layer_row(catalog: Catalog, layer: Layer) -> Row:
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


def _listing(
    args: argparse.Namespace,
    table: str,
    make_row: Callable[[Catalog, Any], Row],
    columns: dict[str, Callable[[Row], object]],
) -> int:
    """Print one table of the store, or the objects of it that were asked for."""
    rows: list[Row] = []
    missing: Sequence[str] = args.names
    if store_exists(store_options(args)):
        with open_store(args) as store:
            catalog = store.catalog()
            found, missing = _select(catalog, table, args.names)
            rows = [make_row(catalog, record) for record in found]
            _report_broken(catalog, table)
    for name in missing:
        print(f"fsd: no {table[:-1]} {name!r}", file=sys.stderr)
    if args.json:
        output.print_json(rows)
    elif args.quiet:
        print("".join(f"{row['id']}\n" for row in rows), end="")
    elif rows or not args.names:
        cells = [[column(row) for column in columns.values()] for row in rows]
        output.print_table(cells, list(columns), right=("LAYERS", "SIZE", "MOUNTS"))
    return 1 if missing else 0


def _select(catalog: Catalog, table: str, names: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Every record of ``table``, or those that ``names`` resolve to, and the names that do not resolve."""
    if not names:
        return list(getattr(catalog, table)), []
    find = {"images": catalog.find_image, "containers": catalog.find_container, "layers": catalog.find_layer}[
        table
    ]
    records = {name: find(name) for name in names}
    return [found for found in records.values() if found], [name for name in names if not records[name]]


def _report_broken(catalog: Catalog, table: str) -> None:
    for broken in catalog.broken:
        if broken.table == table:
            print(f"fsd: {table} record {broken.id} cannot be used: {broken.why}", file=sys.stderr)


# -- changes ---------------------------------------------------------------------------------------


def import_image(args: argparse.Namespace) -> int:
    """``fsd import``."""
    from store.oci import import_rootfs

    with _archive(args.archive) as archive, open_store(args, make_pool=not args.no_pool) as store:
        image = import_rootfs(store, archive, args.name, config=_run_config(args), comment=args.message)
    _print_id(args, image.id, image.names)
    return 0


def _run_config(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the image's ``config`` that the command line sets."""
    given = {
        "Cmd": args.cmd and shlex.split(args.cmd),
        "Entrypoint": args.entrypoint and shlex.split(args.entrypoint),
        "Env": args.env and [SEARCH_PATH, *args.env],
        "Labels": args.label and dict(_pair(label) for label in args.label),
        "User": args.user,
        "WorkingDir": args.workdir,
    }
    return {key: value for key, value in given.items() if value is not None}


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


@contextlib.contextmanager
def _archive(path: str) -> Iterator[BinaryIO]:
    """The archive to import; a file's progress shows on a terminal."""
    if path == "-":
        yield sys.stdin.buffer
        return
    with open(path, "rb") as file, output.Progress("importing", os.fstat(file.fileno()).st_size) as progress:
        yield _Counted(file, progress)  # type: ignore[misc]


class _Counted:
    """A readable stream that tells a progress line what went through it."""

    def __init__(self, file: BinaryIO, progress: output.Progress) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._progress.add(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def create(args: argparse.Namespace) -> int:
    """``fsd create``: all or nothing, like ``mkdir`` and ``from`` in the tree."""
    from store.fill import fill

    with open_store(args) as store:
        container = store.create_container(names=[args.name])
        if args.source is not None:
            try:
                container = fill(store, container.id, args.source)
            except BaseException:
                store.delete_container(container.id)
                raise
    _print_id(args, container.id, container.names)
    return 0


def snapshot(args: argparse.Namespace) -> int:
    """``fsd snapshot``: take, ``--list``, or ``--delete``."""
    with open_store(args) as store, _history(store) as history:
        container = store.container(args.container)
        if args.list:
            _print_snapshots(args, history.list(container.id))
        elif args.delete:
            history.remove(container.id, args.name or "")
        else:
            taken = history.take(container.id, args.name, reason="manual")
            output.print_json(_snapshot_row(taken)) if args.json else print(taken.name)
    return 0


def rollback(args: argparse.Namespace) -> int:
    """``fsd rollback``; prints the name under which the state before is kept."""
    with open_store(args) as store, _history(store) as history:
        kept = history.rollback(store.container(args.container).id, args.name)
    if args.json:
        output.print_json(_snapshot_row(kept))
    else:
        print(kept.name)
    return 0


@contextlib.contextmanager
def _history(store: Store) -> Iterator[History]:
    from store.history import History

    history = History(store)
    with contextlib.closing(history.state):
        yield history


def _snapshot_row(taken: Snapshot) -> Row:
    return {
        "name": taken.name,
        "container": taken.container_id,
        "created-ns": taken.created_ns,
        "reason": taken.reason,
        "pinned": taken.pinned,
    }


def _print_snapshots(args: argparse.Namespace, taken: Sequence[Snapshot]) -> None:
    rows = [_snapshot_row(one) for one in taken]
    if args.json:
        output.print_json(rows)
    else:
        cells = [[row["name"], _age(row), row["reason"]] for row in rows]
        output.print_table(cells, ["NAME", "CREATED", "REASON"])


def _print_id(args: argparse.Namespace, id_: str, names: Sequence[str]) -> None:
    if args.json:
        output.print_json({"id": id_, "names": list(names)})
    else:
        print(id_)
