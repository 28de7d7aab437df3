"""Taking over a storage.conf or an fsd.toml that was edited while the store is mounted."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
from typing import TYPE_CHECKING

import trio

from fsd.errnos import errno_of
from fsd.settings import load_settings, settings_path
from fsd.watch import ANYTHING, Watch
from store.config import fingerprint, watched_directories
from store.durable import file_state
from store.errors import BadValue

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.settings import Settings
    from fsd.site import Site
    from store.config import StoreOptions

log = logging.getLogger("fsd")

SETTLE_SECONDS = 0.2
"""Editors write a file in several steps; what they do within this time is one change."""
ASK_SECONDS = 60.0
"""How often the files are looked at where inotify is not to be had."""


async def follow_options(site: Site, load: Callable[[], StoreOptions]) -> None:
    """Let changes of the configuration be in force, and read it anew on SIGHUP, until cancelled."""
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_on_change, site, load)
            async for _ in hangups:
                await _reload(site, load)


async def _on_change(site: Site, load: Callable[[], StoreOptions]) -> None:
    known = _fingerprints(site)
    while True:
        await _difference(site, known)
        await trio.sleep(SETTLE_SECONDS)
        now = _fingerprints(site)
        if now != known:
            known = now
            await _reload(site, load)


async def _reload(site: Site, load: Callable[[], StoreOptions]) -> None:
    await trio.to_thread.run_sync(reload_options, site, load)
    settings = await trio.to_thread.run_sync(read_settings, site)
    if settings is not None:
        site.take_over(settings)
        log.info("settings read: %s", settings.source or "there is no fsd.toml")


def _fingerprints(site: Site) -> tuple[object, ...]:
    path = settings_path(site.store.options)
    try:
        return fingerprint(), path, file_state(path)
    except OSError:  # it cannot be looked at; reading it tells why
        return fingerprint(), path


async def _difference(site: Site, known: object) -> None:
    """Return when something happened in a directory that counts; they come and go, so look anew each time."""
    own = settings_path(site.store.options).parent
    try:
        watch = Watch({*watched_directories(), *((own,) if own.is_dir() else ())}, ANYTHING)
    except OSError as error:
        log.warning("changes of the configuration show up to %.0f s late: %s", ASK_SECONDS, error)
        await trio.sleep(ASK_SECONDS)
        return
    with contextlib.closing(watch):
        if _fingerprints(site) == known:
            await watch.changed()


def reload_options(site: Site, load: Callable[[], StoreOptions]) -> None:
    """Read the configuration and put into force what can be; on failure all stays as it was, and is told."""
    try:
        done = site.store.reload_options(load())
    except Exception as error:
        if errno_of(error) is None:
            log.exception("the configuration cannot be taken over")
        site.unread_options = _told(site, "the configuration", error)
        return
    site.unread_options, site.pending_options = "", done.pending
    log.info("configuration read: changed %s", ", ".join(done.changed) or "nothing")
    if done.pending:
        log.warning("not in force until fsd starts anew: %s", ", ".join(done.pending))


def read_settings(site: Site) -> Settings | None:
    """What fsd.toml says now; ``None``, which is told, where it says nothing that could be in force."""
    try:
        settings = load_settings(settings_path(site.store.options))
    except (BadValue, OSError) as error:
        site.unread_settings = _told(site, "fsd.toml", error)
        return None
    site.unread_settings = ""
    return settings


def _told(site: Site, what: str, error: Exception) -> str:
    """Let people know that something could not be taken over; why not."""
    text = f"{what} was not taken over, everything stays as it was: {error}"
    site.errors.note("reload", "control/config", errno_of(error) or errno.EIO, text)
    log.warning("%s", text)
    return str(error)
