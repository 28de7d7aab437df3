"""Which store a command works on, and how it is opened.

Flags win over the environment, the environment over storage.conf. A driver that only a distribution's
default file names does not bind: there the graphroot's own state decides, and an empty graphroot gets btrfs.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fsd.pool import Pool

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from store.config import StoreOptions
    from store.store import Store

BTRFS = "btrfs"
ADMINISTRATORS_FILE = Path("/etc/containers/storage.conf")


def store_options(args: argparse.Namespace) -> StoreOptions:
    """The options that flags, environment and storage.conf give together."""
    from store.config import load_options

    options = load_options()
    changes: dict[str, object] = {"driver": _driver(args, options.driver)}
    if args.graph is not None:
        changes["graphroot"] = Path(args.graph).absolute()
    if args.run is not None:
        changes["runroot"] = Path(args.run).absolute()
    if args.storage_opt is not None:
        changes["driver_options"] = tuple(args.storage_opt)
    return replace(options, **changes)  # type: ignore[arg-type]


def _driver(args: argparse.Namespace, configured: str) -> str:
    if args.storage_driver is not None:
        return str(args.storage_driver)
    chosen = os.environ.get("STORAGE_DRIVER") or os.environ.get("CONTAINERS_STORAGE_CONF")
    return configured if chosen or ADMINISTRATORS_FILE.exists() else ""


def pool_of(options: StoreOptions) -> Pool | None:
    """The embedded pool this store lives on, or would live on; ``None`` where it needs none."""
    from drivers import prior_drivers

    pool = Pool(Path(options.graphroot).resolve())
    if options.driver not in ("", BTRFS):
        return None
    if not pool.exists and not options.driver and prior_drivers(pool.graphroot):
        return None  # the graphroot holds a store already; its own driver serves it
    return pool if pool.wanted else None


def on_pool(options: StoreOptions) -> StoreOptions:
    """The options of a store on the embedded pool, which nothing but the btrfs driver is for."""
    return replace(options, driver=options.driver or BTRFS)


@contextlib.contextmanager
def open_store(args: argparse.Namespace, *, make_pool: bool = False) -> Iterator[Store]:
    """The store, with its pool attached meanwhile; ``make_pool`` makes a missing pool."""
    from store.store import Store

    options = store_options(args)
    with contextlib.ExitStack() as stack:
        pool = pool_of(options)
        if pool is not None:
            stack.enter_context(pool.session(make=make_pool))
            if pool.device is not None:
                options = on_pool(options)
        yield stack.enter_context(Store(options))
