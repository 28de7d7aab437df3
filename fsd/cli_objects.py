"""Verbs that change layers, images and containers: one call of the store's API each."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

from fsd.cli_rows import object_row, say, say_all, size
from fsd.cli_store import open_session, open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from fsd.cli_rows import Row
    from fsd.cli_store import Session
    from store.objects import Found


def create(args: argparse.Namespace) -> int:
    """``fsd create``: all or nothing, like ``mkdir`` and ``from`` in the tree."""
    from store.fill import create_from
    from store.objects import make_layer

    with open_store(args) as store:
        if args.layer:
            made: Any = make_layer(store, args.name, args.source)
        else:
            made = create_from(store, args.name, args.source or "")
    return say(args, object_row("layers" if args.layer else "containers", made.id, made.names), made.id)


def fill_container(args: argparse.Namespace) -> int:
    """``fsd fill``."""
    from store.fill import fill

    with open_session(args) as session:
        container = fill(session.store, args.container, args.source, state=session.history.state)
    return say(args, object_row("containers", container.id, container.names), container.id)


def refill(args: argparse.Namespace) -> int:
    """``fsd refill``."""
    from fsd.cli_images import archive_at
    from store.refill import refill_layer

    with archive_at(args.archive) as archive, open_session(args) as session:
        layer = refill_layer(session.store, args.layer, archive)
    return say(
        args, object_row("layers", layer.id, layer.names) | {"diff-digest": layer.diff_digest}, layer.id
    )


def remove(args: argparse.Namespace) -> int:
    """``fsd rm``; those that can be removed are, and the rest is said why not."""
    from drivers.errors import DriverError
    from store.errors import StoreError
    from store.objects import find_object

    rows: list[Row] = []
    failed = 0
    with open_session(args) as session:
        for text in args.object:
            try:
                found = find_object(session.store, text)
                entry = session.trash.remove(found.table, found.id, now=args.now)
            except (StoreError, DriverError, OSError) as error:
                print(f"fsd: {error}", file=sys.stderr)
                failed = 125
            else:
                row = object_row(found.table, found.id, found.record.names)
                rows.append(row | {"trash": entry.id if entry else None})
    say_all(args, rows, (row["trash"] or row["id"] for row in rows))
    return failed


# -- names -----------------------------------------------------------------------------------------


def rename(args: argparse.Namespace) -> int:
    """``fsd rename``."""
    from store import objects

    with open_store(args, make=False) as store:
        found = objects.find_object(store, args.object)
        names = found.record.names
        old = args.object if args.object in names else names[0] if names else ""
        name = objects.rename(store, found.table, found.id, old, args.name)
        row = object_row(found.table, found.id, store.names(found.id))
    return say(args, row, name)


def names(args: argparse.Namespace) -> int:
    """``fsd names``."""
    from fsd.cli import Usage
    from store.objects import change_names, find_object

    if args.name and args.add == args.set:
        raise Usage("names: say --add or --set")
    if args.add and not args.name:
        raise Usage("names: --add needs a NAME")
    with open_store(args, make=False) as store:
        found = find_object(store, args.object)
        given = list(found.record.names)
        if args.add or args.set:
            given = change_names(store, found, args.name, append=args.add)
    return say(args, object_row(found.table, found.id, given), "\n".join(given))


def tag(args: argparse.Namespace) -> int:
    """``fsd tag``."""
    from store import objects

    with open_store(args, make=False) as store:
        image = objects.tag(store, args.image, args.name)
    return say(args, object_row("images", image.id, image.names))


def untag(args: argparse.Namespace) -> int:
    """``fsd untag``."""
    from store import objects

    with open_store(args, make=False) as store:
        changed = objects.untag(store, args.name)
    return say_all(args, [object_row("images", image.id, image.names) for image in changed], ())


# -- attributes ------------------------------------------------------------------------------------


def metadata(args: argparse.Namespace) -> int:
    """``fsd metadata``."""
    from store.objects import find_object

    with open_store(args, make=False) as store:
        found = find_object(store, args.object)
        text = found.record.metadata if args.text is None else args.text
        if args.text is not None:
            store.set_metadata(found.id, text)
    row = object_row(found.table, found.id, found.record.names) | {"metadata": text}
    return say(args, row, text if args.text is None else "")


def big_data(args: argparse.Namespace) -> int:
    """``fsd big-data``."""
    from fsd.cli import Usage

    if (args.set or args.remove) and not args.key:
        raise Usage("big-data: --set and --remove need a KEY")
    with open_store(args, make=False) as store:
        from store.objects import find_object

        found = find_object(store, args.object)
        if args.remove:
            from store.erase import remove_big_data

            remove_big_data(store, found.record, args.key)
        elif args.set is not None:
            with _file(args.set) as file:
                getattr(store, f"set_{found.table[:-1]}_big_data")(found.id, args.key, file.read())
        elif args.key:
            sys.stdout.buffer.write(getattr(store, f"{found.table[:-1]}_big_data")(found.id, args.key))
            return 0
        keys = getattr(store, f"list_{found.table[:-1]}_big_data")(found.id)
    row = object_row(found.table, found.id, found.record.names) | {"big-data": list(keys)}
    return say(args, row, "" if args.set or args.remove else "\n".join(keys))


@contextlib.contextmanager
def _file(path: str) -> Iterator[BinaryIO]:
    if path == "-":
        yield sys.stdin.buffer
    else:
        with open(path, "rb") as file:
            yield file


def limit(args: argparse.Namespace) -> int:
    """``fsd limit``."""
    from store.limits import Limits

    with open_store(args, make=False) as store:
        container = store.container(args.container)
        limits = Limits(store)
        if args.size is not None:
            limits.set(container.id, args.size)
        found = limits.get(container.id)
    row = object_row("containers", container.id, container.names) | {"limit": found.bytes, "used": found.used}
    used = f", {size(found.used)} used" if found.used is not None else ""
    return say(args, row, "" if args.size else f"{size(found.bytes)}{used}" if found.bytes else "no limit")


def on_write(args: argparse.Namespace) -> int:
    """``fsd on-write``: an object that is no image is a container."""
    from store.objects import find_object

    with open_session(args) as session:
        found = find_object(session.store, args.object, ("containers", "images"))
        row = object_row(found.table, found.id, found.record.names)
        row |= (_image_on_write if found.table == "images" else _container_on_write)(args, session, found)
    return say(args, row, "" if args.choice else " ".join(filter(None, (row["on-write"], row.get("draft")))))


def _container_on_write(args: argparse.Namespace, session: Session, found: Found) -> Row:
    from fsd.settings import ON_WRITE as CHOICES
    from store.errors import BadValue
    from store.timer import ON_WRITE

    state, obj = session.history.state, f"containers/{found.id}"
    if args.choice is not None:
        if args.choice not in CHOICES:
            raise BadValue(f"{args.choice!r} is for images; a container takes one of {', '.join(CHOICES)}")
        state.set_setting(obj, ON_WRITE, args.choice)
    return {"on-write": state.settings(obj).get(ON_WRITE, session.settings.on_write.containers)}


def _image_on_write(args: argparse.Namespace, session: Session, found: Found) -> Row:
    """Whether a write to the image opens a draft, and the container that is the open one."""
    from store import drafts

    store, state = session.store, session.history.state
    if args.choice is not None:
        drafts.choose(store, state, store.image(found.id), args.choice)
    draft = drafts.draft_of(state, store.catalog(), found.id)
    return {
        "on-write": drafts.choice_of(state, found.id),
        "draft": f"containers/{draft.names[0] if draft.names else draft.id}" if draft else None,
    }


# -- pins ------------------------------------------------------------------------------------------


def pin(args: argparse.Namespace) -> int:
    """``fsd pin``."""
    return _pin(args, True)


def unpin(args: argparse.Namespace) -> int:
    """``fsd unpin``."""
    return _pin(args, False)


def _pin(args: argparse.Namespace, pinned: bool) -> int:
    from store.pins import pin_object

    with open_session(args) as session:
        rows = [
            {"kind": kind, "id": id_, "pinned": pinned}
            for kind, id_ in (pin_object(session.trash, text, pinned) for text in args.object)
        ]
    return say_all(args, rows, ())
