"""Which store a command works on, and how it is opened.

Flags win over the environment, the environment over storage.conf. A driver that only a distribution's
default file names does not bind: there the graphroot's own state decides, and an empty graphroot gets btrfs.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import Unknown

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from fsd.pool import Pool, PoolError
    from fsd.runfile import Running
    from fsd.settings import Settings
    from store.config import StoreOptions
    from store.glance import Glance
    from store.history import History
    from store.orphans import Orphans
    from store.prune import Prune
    from store.queries import Queries
    from store.sizes import Sizes
    from store.store import Store
    from store.trash import Trash

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
        image_store=os.path.realpath(args.imagestore) if args.imagestore else options.image_store,
        driver=_driver(args, options),
        driver_priority=options.driver_priority or (BTRFS,),
        driver_options=options.driver_options if args.storage_opt is None else tuple(args.storage_opt),
    )


def _driver(args: argparse.Namespace, options: StoreOptions) -> str:
    if args.storage_driver is not None:
        return str(args.storage_driver)
    chosen = os.environ.get("STORAGE_DRIVER") or set(options.sources) - {DISTRIBUTIONS_FILE}
    return options.driver if chosen else ""


def daemon_of(options: StoreOptions) -> Running | None:
    """The live daemon of a store."""
    from fsd.runfile import serving

    return serving(Path(options.runroot), Path(options.graphroot))


def pool_of(options: StoreOptions) -> Pool | None:
    """The embedded pool this store lives on, or would live on; ``None`` where it needs none."""
    from drivers import prior_drivers
    from fsd.pool import Pool

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
    from fsd.pool import Pool

    graphroot = Path(options.graphroot)
    return Pool(graphroot).exists or (graphroot.is_dir() and any(graphroot.iterdir()))


class NoStore(Unknown):
    """There is no store yet, and the command makes none."""


@contextlib.contextmanager
def opened_options(args: argparse.Namespace, *, make: bool, make_pool: bool) -> Iterator[StoreOptions]:
    """The options of the store, with its pool attached meanwhile.

    Args:
        make: whether a store that is not there may be made.
        make_pool: whether a missing pool may.

    Raises:
        NoStore; PoolError: the graphroot is not on btrfs, and there is no pool
    """
    options = store_options(args)
    if not make and not store_exists(options):
        raise NoStore(f"there is no store in {options.graphroot} yet; fsd up, import, load or pull makes one")
    with contextlib.ExitStack() as stack:
        pool = pool_of(options)
        if pool is not None:
            if not make_pool and not pool.exists:
                raise missing_pool(pool)
            stack.enter_context(pool.session(make=make_pool))
            options = on_pool(options)
        yield options


@contextlib.contextmanager
def open_store(args: argparse.Namespace, *, make: bool = True, make_pool: bool = False) -> Iterator[Store]:
    """The store, open; raises as :func:`opened_options`."""
    from store.store import Store

    with opened_options(args, make=make, make_pool=make_pool) as options, Store(options) as store:
        yield store


@contextlib.contextmanager
def open_reading(args: argparse.Namespace) -> Iterator[Queries]:
    """The store for looking things up in its tables alone; raises as :func:`opened_options`."""
    from drivers import prior_drivers
    from store.queries import Queries

    with opened_options(args, make=False, make_pool=False) as options:
        prior = prior_drivers(Path(options.graphroot))
        if not options.driver and len(prior) == 1 and "vfs" not in prior:  # that one is opened in any case
            options = replace(options, driver=prior[0])
        with Queries(options, lazy=True) as store:
            yield store


def at_a_glance(options: StoreOptions, kinds: tuple[str, ...]) -> Glance | None:
    """Those tables of a store, read without the library; ``None`` where it takes that.

    It does where images come from other stores too, where a table is out of the ordinary, and where the
    store is not there yet or lies on a pool that is not attached.
    """
    from store.glance import DRIVERS, Glance, Odd, is_complete

    others = (options.additional_image_stores, options.image_store, options.transient_store)
    if any(others) or any("store" in option.partition("=")[0] for option in options.driver_options):
        return None
    graphroot, runroot = options.graphroot, options.runroot
    names = [options.driver] if options.driver else [name for name in DRIVERS if name != "vfs"]
    there = [name for name in names if is_complete(graphroot, runroot, name)]
    if len(there) != 1:
        return None
    try:
        return Glance.read(graphroot, runroot, there[0], kinds)
    except Odd:
        return None


class Session:
    """An open store with all that stands on it, each part opened when it is first needed."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @cached_property
    def settings(self) -> Settings:
        """fsd's own settings for this store."""
        from fsd.settings import load_settings, settings_path

        return load_settings(settings_path(self.store.options))

    @cached_property
    def history(self) -> History:
        """Its snapshots."""
        from store.history import History

        return History(self.store, policy=self.settings.retention)

    @cached_property
    def trash(self) -> Trash:
        """Its removed objects."""
        from store.trash import Trash

        return Trash(self.history, self.settings.trash)

    @cached_property
    def orphans(self) -> Orphans:
        """Content nothing names."""
        from store.orphans import Orphans

        return Orphans(self.history, self.trash)

    @cached_property
    def sizes(self) -> Sizes:
        """What its objects hold."""
        from store.sizes import Sizes

        return Sizes(self.history, self.trash)

    @cached_property
    def prune(self) -> Prune:
        """What can go."""
        from store.prune import Prune

        return Prune(self.trash, self.orphans, self.sizes)

    def close(self) -> None:
        """Close what was opened."""
        history = self.__dict__.get("history")
        if history is not None:
            history.state.close()


@contextlib.contextmanager
def open_session(args: argparse.Namespace, *, make: bool = False) -> Iterator[Session]:
    """The store and what stands on it; raises as :func:`opened_options`."""
    with open_store(args, make=make) as store, contextlib.closing(Session(store)) as session:
        yield session


def missing_pool(pool: Pool) -> PoolError:
    """Why a store cannot be used without its embedded pool."""
    from fsd import mounts
    from fsd.pool import PoolError

    kind = mounts.filesystem_of(pool.graphroot).fstype
    return PoolError(
        f"{pool.graphroot} is on {kind}, not on btrfs, and there is no pool {pool.image}: "
        "fsd up without --no-pool makes one"
    )
