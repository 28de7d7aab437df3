"""Verbs that keep a store in order: check, prune, trash, orphans, broken records, locks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fsd import output
from fsd.cli_rows import moment, object_row, print_rows, say_all, size
from fsd.cli_store import open_reading, open_session, open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from fsd.cli_rows import Row
    from fsd.cli_store import Session
    from store.check import Problem
    from store.prune import Item, Plan
    from store.trash_entries import Entry

    Columns = dict[str, Callable[[Row], object]]


def check(args: argparse.Namespace) -> int:
    """``fsd check``."""
    from store.check import CheckOptions, RepairOptions

    with open_store(args, make=False) as store:
        catalog = store.catalog()
        total = len(catalog.layers) + len(catalog.images) + len(catalog.containers)
        with output.Progress("checking", total, items=True) as progress:
            found = store.check(CheckOptions(digests=args.digests, manifests=True), progress=progress.item)
        left = found
        if args.repair and found:
            left = store.repair(found, RepairOptions(remove_containers=args.remove_containers))
    _print_problems(args, found, left)
    return 1 if left else 0


def _print_problems(args: argparse.Namespace, found: list[Problem], left: list[Problem]) -> None:
    remaining = {(one.kind, one.table, one.id) for one in left}
    rows = [
        {
            "problem": one.kind.value,
            "kind": one.table[:-1],
            "id": one.id,
            "text": one.text,
            "repaired": (one.kind, one.table, one.id) not in remaining,
        }
        for one in found
    ]
    if args.json or rows:
        columns: Columns = {
            "PROBLEM": lambda row: row["problem"],
            "KIND": lambda row: row["kind"],
            "ID": lambda row: row["id"],
            "TEXT": lambda row: row["text"],
        }
        if args.repair:
            columns["REPAIRED"] = lambda row: "yes" if row["repaired"] else "no"
        print_rows(args, rows, columns)
    else:
        print("nothing is wrong")


# -- prune -----------------------------------------------------------------------------------------


def prune(args: argparse.Namespace) -> int:
    """``fsd prune``."""
    from store.prune import DEFAULT_KINDS, parse_kinds

    with open_session(args) as session:
        if args.token:
            return _run(args, session, args.token, 0)
        plan = session.prune.preview(parse_kinds(args.kind) or DEFAULT_KINDS, measure=args.dry_run)
        if args.dry_run:
            return _preview(args, plan)
        return _run(args, session, plan.token, len(plan.items))


def _preview(args: argparse.Namespace, plan: Plan) -> int:
    rows = [_item(item) for item in plan.items]
    if args.json:
        pinned = [_item(item) for item in plan.pinned]
        output.print_json({"token": plan.token, "frees": plan.frees, "items": rows, "pinned": pinned})
        return 0
    columns: Columns = {
        "KIND": lambda row: row["kind"],
        "NAME": lambda row: row["name"],
        "FREES": lambda row: size(row["frees"]),
        "WHY": lambda row: row["why"],
    }
    if rows:
        print_rows(args, rows, columns)
    for item in plan.pinned:
        print(f"pinned, stays: {item.kind.value} {item.name}")
    print(f"{len(rows)} would go and free {size(plan.frees)};", end=" ")
    print(f"fsd prune --token {plan.token} removes exactly that")
    return 0


def _run(args: argparse.Namespace, session: Session, token: str, total: int) -> int:
    with output.Progress("pruning", total, items=True) as progress:
        outcome = session.prune.run(token, progress=progress.item)
    for item, why in outcome.spared:
        print(f"fsd: {item.kind.value} {item.name} stays: {why}", file=sys.stderr)
    if args.json:
        spared = [_item(item) | {"spared": why} for item, why in outcome.spared]
        output.print_json({"removed": [_item(item) for item in outcome.removed], "spared": spared})
    else:
        for item in outcome.removed:
            print(f"removed {item.kind.value} {item.name}")
        print(f"{len(outcome.removed)} removed")
    return 1 if outcome.spared else 0


def _item(item: Item) -> Row:
    return {"kind": item.kind.value, "id": item.id, "name": item.name, "why": item.why, "frees": item.frees}


# -- trash -----------------------------------------------------------------------------------------


def trash(args: argparse.Namespace) -> int:
    """``fsd trash``."""
    from fsd.cli import Usage

    action = args.action or "list"
    if action != "list" and not args.entry and not args.all:
        raise Usage(f"trash: {action} needs an ENTRY")
    if args.name and len(args.entry) > 1:
        raise Usage("trash: --name is for one ENTRY")
    with open_session(args) as session:
        if action == "restore":
            records = [session.trash.restore(entry, args.name) for entry in args.entry]
            rows = [{"id": record.id, "names": list(record.names)} for record in records]
            return say_all(args, rows, (record.id for record in records))
        if action == "purge":
            gone = list(args.entry)
            if args.all:
                gone = [e.id for e in session.trash.list() if session.trash.expires_ns(e) is not None]
            for entry in gone:
                session.trash.purge(entry)
            return say_all(args, [{"purged": entry} for entry in gone], gone)
        rows = [_entry(session, entry) for entry in session.trash.list()]
    columns: Columns = {
        "ENTRY": lambda row: row["entry"],
        "KIND": lambda row: row["kind"],
        "REMOVED": lambda row: row["removed"],
        "EXPIRES": lambda row: row["expires"] or "never",
        "FREED": lambda row: size(row["frees"]),
    }
    print_rows(args, rows, columns)
    return 0


def _entry(session: Session, entry: Entry) -> Row:
    figures = session.sizes.get("trash", entry.id)
    return {
        "entry": entry.id,
        **object_row(entry.kind, entry.object_id, entry.names),
        "removed": moment(entry.removed_ns),
        "expires": moment(session.trash.expires_ns(entry)),
        "frees": figures.freed if figures else None,
    }


# -- what nothing names, what cannot be used, who waits for whom -----------------------------------


def orphans(args: argparse.Namespace) -> int:
    """``fsd orphans``."""
    from fsd.cli import Usage

    if args.action == "reap" and not args.orphan:
        raise Usage("orphans: reap needs an ORPHAN")
    with open_session(args) as session:
        if args.action == "reap":
            gone = [session.orphans.reap(orphan).id for orphan in args.orphan]
            return say_all(args, [{"reaped": orphan} for orphan in gone], gone)
        rows = [
            {
                "id": one.id,
                "kind": one.kind,
                "reason": one.reason,
                "born": moment(one.born_ns) if one.born_ns else None,
                "ours": one.ours,
                "path": str(one.path) if one.path else None,
                "frees": one.size,
            }
            for one in session.orphans.list()
        ]
    columns: Columns = {
        "ID": lambda row: row["id"],
        "KIND": lambda row: row["kind"],
        "SINCE": lambda row: row["born"] or "-",
        "FREED": lambda row: size(row["frees"]),
        "REASON": lambda row: row["reason"],
    }
    print_rows(args, rows, columns)
    return 0


def broken(args: argparse.Namespace) -> int:
    """``fsd broken``."""
    with open_reading(args) as store:
        rows = [{"kind": one.table[:-1], "id": one.id, "why": one.why} for one in store.catalog().broken]
    columns: Columns = {
        "KIND": lambda row: row["kind"],
        "ID": lambda row: row["id"],
        "WHY": lambda row: row["why"],
    }
    print_rows(args, rows, columns)
    return 1 if rows else 0


def show_locks(args: argparse.Namespace) -> int:
    """``fsd locks``."""
    from store.locks import locks

    with open_store(args, make=False) as store:
        found = [{"path": str(k.path), "held": k.held, "holders": list(k.holders)} for k in locks(store)]
    columns: Columns = {
        "LOCK": lambda row: row["path"],
        "HELD": lambda row: "yes" if row["held"] else "no",
        "BY": lambda row: ", ".join(row["holders"]),
    }
    print_rows(args, found, columns)
    return 0
