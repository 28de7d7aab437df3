"""Verbs on snapshots: one call of the store's history each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsd.cli_rows import age, print_rows, say, snapshot_row
from fsd.cli_store import open_session

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from fsd.cli_rows import Row

COLUMNS: dict[str, Callable[[Row], object]] = {
    "NAME": lambda row: row["name"],
    "CREATED": age,
    "REASON": lambda row: row["reason"],
    "PINNED": lambda row: "yes" if row["pinned"] else "",
}


def snapshot(args: argparse.Namespace) -> int:
    """``fsd snapshot``: take, ``--list``, ``--delete`` or ``--rename``."""
    from fsd.cli import Usage

    if args.list + args.delete + (args.rename is not None) > 1:
        raise Usage("snapshot: one of --list, --delete and --rename")
    if (args.delete or args.rename is not None) and args.name is None:
        raise Usage("snapshot: the snapshot's NAME is needed")
    with open_session(args) as session:
        history = session.history
        container = session.store.container(args.container).id
        if args.list:
            print_rows(args, [snapshot_row(one) for one in history.list(container)], COLUMNS)
            return 0
        if args.delete:
            history.remove(container, args.name)
            return say(args, {"container": container, "deleted": args.name})
        if args.rename is not None:
            found = history.rename(container, args.name, args.rename)
        else:
            found = history.take(container, args.name, reason="manual")
    return say(args, snapshot_row(found), found.name)


def snapshots(args: argparse.Namespace) -> int:
    """``fsd snapshots``."""
    with open_session(args) as session:
        catalog = session.store.catalog()
        chosen = [session.store.container(text) for text in args.container] or catalog.containers
        rows = [
            {"container-name": owner.names[0] if owner.names else owner.id[:12], **snapshot_row(one)}
            for owner in chosen
            for one in session.history.list(owner.id)
        ]
    print_rows(args, rows, {"CONTAINER": lambda row: row["container-name"], **COLUMNS})
    return 0


def rollback(args: argparse.Namespace) -> int:
    """``fsd rollback``; prints the name under which the state before is kept."""
    with open_session(args) as session:
        kept = session.history.rollback(session.store.container(args.container).id, args.snapshot)
    return say(args, snapshot_row(kept), kept.name)
