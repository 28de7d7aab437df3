"""Verbs about space: what objects hold, and what is left."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from fsd import output
from fsd.cli_rows import moment, print_rows, size
from fsd.cli_store import open_session

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from fsd.cli_rows import Row
    from fsd.cli_store import Session
    from store.sizes import Figures

KINDS = ("images", "containers", "layers", "trash")


def usage(args: argparse.Namespace) -> int:
    """``fsd du``."""
    with open_session(args) as session:
        rows = list(_chosen(session, args) if args.object else _all(session, args))
    columns: dict[str, Callable[[Row], object]] = {
        "KIND": lambda row: row["kind"],
        "NAME": lambda row: row["name"],
        "SIZE": lambda row: size(row["size"]),
        "EXCLUSIVE": lambda row: size(row["exclusive"]),
        "SHARED": lambda row: size(row["shared"]),
        "FREED": lambda row: size(row["freed"]),
    }
    print_rows(args, rows, columns)
    return 0


def _chosen(session: Session, args: argparse.Namespace) -> Iterator[Row]:
    from store.objects import find_object

    for text in args.object:
        found = find_object(session.store, text)
        known = session.sizes.get(found.table, found.id) if args.cached else None
        if not args.cached:
            known = session.sizes.measure(found.table, found.id)
        yield _row(found.table, found.id, found.label, known)


def _all(session: Session, args: argparse.Namespace) -> Iterator[Row]:
    if not args.cached:
        session.sizes.refresh(math.inf)
    figures = session.sizes.all()
    catalog = session.store.catalog()
    for kind in KINDS:
        records: Any = session.trash.list() if kind == "trash" else getattr(catalog, kind)
        for record in records:
            name = record.id if kind == "trash" else record.names[0] if record.names else record.id[:12]
            yield _row(kind, record.id, name, figures.get((kind, record.id)))


def _row(kind: str, id_: str, name: str, figures: Figures | None) -> Row:
    return {
        "kind": kind.removesuffix("s"),
        "id": id_,
        "name": name,
        "size": figures.size if figures else None,
        "exclusive": figures.exclusive if figures else None,
        "shared": figures.shared if figures else None,
        "freed": figures.freed if figures else None,
        "method": figures.method if figures else None,
        "measured": moment(figures.measured_ns) if figures else None,
    }


def free(args: argparse.Namespace) -> int:
    """``fsd df``."""
    with open_session(args) as session:
        found = os.statvfs(session.store.graphroot)
        catalog = session.store.catalog()
        counts = {
            "images": len(catalog.images),
            "containers": len(catalog.containers),
            "layers": len(catalog.layers),
            "snapshots": len(session.history.state.snapshots()) if session.history.supported else 0,
            "trash": len(session.trash.list()),
            "orphans": len(session.orphans.list()),
        }
        facts = {
            "graphroot": str(session.store.graphroot),
            "size": found.f_blocks * found.f_frsize,
            "used": (found.f_blocks - found.f_bfree) * found.f_frsize,
            "free": found.f_bavail * found.f_frsize,
            "objects": counts,
        }
    if args.json:
        output.print_json(facts)
    else:
        cells = [facts["graphroot"], *(size(facts[key]) for key in ("size", "used", "free"))]  # type: ignore[arg-type]
        output.print_table([cells], ["GRAPHROOT", "SIZE", "USED", "FREE"], right=("SIZE", "USED", "FREE"))
        print()
        output.print_table(list(counts.items()), ["KIND", "COUNT"], right=("COUNT",))
    return 0
