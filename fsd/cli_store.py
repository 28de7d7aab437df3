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

from fsd import mounts
from fsd.pool import Pool, PoolError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from store.config import StoreOptions
    from store.store import Store

BTRFS = "btrfs"
DISTRIBUTIONS_FILE = "/usr/share/containers/storage.conf"


def store_options(args: argparse.Namespace) -> StoreOptions:
    """The options that flags, environment and storage.conf give together."""
    from store.config import load_options

    options = load_options()
    return replace(
        options,
        graphroot=os.path.realpath(args.graph or options.graphroot),
        runroot=os.path.realpath(args.run or options.runroot),
        driver=_driver(args, options),
        driver_priority=options.driver_priority or (BTRFS,),
        driver_options=options.driver_options if args.storage_opt is None else tuple(args.storage_opt),
    )


def _driver(args: argparse.Namespace, options: StoreOptions) -> str:
    if args.storage_driver is not None:
        return str(args.storage_driver)
    chosen = os.environ.get("STORAGE_DRIVER") or set(options.sources) - {DISTRIBUTIONS_FILE}
    return options.driver if chosen else ""


def pool_of(options: StoreOptions) -> Pool | None:
    """The embedded pool this store lives on, or would live on; ``None`` where it needs none."""
    from drivers import prior_drivers

    pool = Pool(Path(options.graphroot))
    if options.driver not in ("", BTRFS) or not pool.wanted:
        return None
    if not options.driver and not pool.exists and not pool.vacant and prior_drivers(pool.graphroot):
        return None  # the graphroot holds a store already; its own driver serves it
    return pool


def on_pool(options: StoreOptions) -> StoreOptions:
    """The options of a store on the embedded pool, which nothing but the btrfs driver is for."""
    return replace(options, driver=options.driver or BTRFS)


def store_exists(options: StoreOptions) -> bool:
    """Whether there is a store to open; opening one that is not there would make it."""
    graphroot = Path(options.graphroot)
    return Pool(graphroot).exists or (graphroot.is_dir() and any(graphroot.iterdir()))


@contextlib.contextmanager
def open_store(args: argparse.Namespace, *, make_pool: bool = False) -> Iterator[Store]:
    """The store, with its pool attached meanwhile; ``make_pool`` makes a missing pool.

    Raises:
        PoolError: the graphroot is not on btrfs, and there is no pool.
    """
    from store.store import Store

    options = store_options(args)
    with contextlib.ExitStack() as stack:
        pool = pool_of(options)
        if pool is not None:
            if not make_pool and not pool.exists:
                raise missing_pool(pool)
            stack.enter_context(pool.session(make=make_pool))
            options = on_pool(options)
        yield stack.enter_context(Store(options))


def missing_pool(pool: Pool) -> PoolError:
    """Why a store cannot be used without its embedded pool."""
    kind = mounts.filesystem_of(pool.graphroot).fstype
    return PoolError(
        f"{pool.graphroot} is on {kind}, not on btrfs, and there is no pool {pool.image}: "
        "fsd up without --no-pool makes one"
    )
