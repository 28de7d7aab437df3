"""Verbs that watch: settings, metrics, events, and the picture of a store.

Where a daemon is up it is asked, since it knows more; else the store itself answers.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsd import mounts, output
from fsd.cli_store import daemon_of, open_session, open_store, store_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from fsd.graph import Item
    from store.store import Store

POLL_SECONDS = 0.2


def mounted_file(args: argparse.Namespace, relative: str) -> Path | None:
    """A file of the tree that a daemon serves; ``None`` where none is up, or it does not answer."""
    running = daemon_of(store_options(args))
    if running is None or not mounts.answers(running.mountpoint / "control"):
        return None
    return running.mountpoint / relative


def show_config(args: argparse.Namespace) -> int:
    """``fsd config``."""
    from fsd.settings import load_settings, parse_settings, settings_path

    served = mounted_file(args, "control/config")
    if served is not None:
        text = served.read_text()
        settings = parse_settings(text, str(served))
    else:
        settings = load_settings(settings_path(store_options(args)))
        text = f"{settings}\n"
    if args.json:
        output.print_json(_dashed(asdict(settings)))
    else:
        print(text, end="")
    return 0


def _dashed(value: Any) -> Any:
    import enum

    if isinstance(value, dict):
        return {key.replace("_", "-"): _dashed(inner) for key, inner in value.items()}
    return value.value if isinstance(value, enum.Enum) else value


def show_metrics(args: argparse.Namespace) -> int:
    """``fsd metrics``."""
    from store.metrics import exposition, families

    served = None if args.json else mounted_file(args, "control/metrics")
    if served is not None:
        print(served.read_text(), end="")
        return 0
    with open_session(args) as session:
        found = list(families(session.sizes))
    if args.json:
        rows = [
            {"name": name, "labels": labels, "value": value}
            for name, _, _, samples in found
            for labels, value in samples
        ]
        output.print_json(rows)
    else:
        print(exposition(found))
    return 0


# -- events ----------------------------------------------------------------------------------------


def follow_events(args: argparse.Namespace) -> int:
    """``fsd events``: what the daemon tells, else what two looks at the tables differ in."""
    from fsd.cli import Usage

    try:
        count = int(args.count) if args.count is not None else None
        timeout = float(args.timeout) if args.timeout is not None else None
    except ValueError:
        raise Usage("events: --count and --timeout take numbers") from None
    end = None if timeout is None else time.monotonic() + timeout
    served = mounted_file(args, "control/events")
    if served is not None:
        return _print_lines(_served(served, end), count)
    with open_store(args, make=False) as store:
        return _print_lines(_polled(store, end), count)


def _print_lines(lines: Iterator[str], count: int | None) -> int:
    for number, line in enumerate(lines, 1):
        print(line, flush=True)
        if number == count:
            break
    return 0


def _served(path: Path, end: float | None) -> Iterator[str]:
    """Lines of the daemon's stream; it ends with the mount."""
    import select

    with open(path, "rb", buffering=0) as file:
        rest = b""
        poll = select.poll()
        poll.register(file, select.POLLIN)
        while end is None or time.monotonic() < end:
            if not poll.poll(1000 * POLL_SECONDS):
                continue
            data = file.read(1 << 16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)


def _polled(store: Store, end: float | None) -> Iterator[str]:
    import json

    from store.watching import differences

    before = store.catalog()
    while end is None or time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        now = store.catalog()
        for found in differences(before, now):
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            yield json.dumps({"time": stamp, **found._asdict()}, ensure_ascii=False)
        before = now


# -- the picture -----------------------------------------------------------------------------------


def show_graph(args: argparse.Namespace) -> int:
    """``fsd graph``."""
    from fsd.graph import dot, forest, svg

    with open_session(args) as session:
        figures = session.sizes.all()

        def own(layer_id: str) -> int | None:
            found = figures.get(("layers", layer_id))
            return found.exclusive if found else None

        roots = forest(session.store.catalog(), own)
    if args.json:
        output.print_json([_node(root) for root in roots])
        return 0
    text = dot(roots) if args.format == "dot" else svg(roots)
    if args.output:
        Path(args.output).write_text(text + "\n")
    else:
        sys.stdout.write(text + "\n")
    return 0


def _node(item: Item) -> dict[str, Any]:
    children = [_node(child) for child in item.children]
    return {"kind": item.kind, "id": item.id, "label": item.label, "children": children}
