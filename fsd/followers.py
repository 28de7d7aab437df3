"""What a mount does without being asked: notice other processes' changes, and let old snapshots go."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
from typing import TYPE_CHECKING

import pyfuse3
import trio

from fsd.live import TABLES
from fsd.naming import changed_listings
from fsd.tables import directory_key
from fsd.watch import Watch
from store.drafts import settings_of_images
from store.forgetting import forget_gone
from store.timer import ON_WRITE
from store.watching import differing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fsd.bursts import Bursts
    from fsd.inodes import Inodes
    from fsd.live import Now
    from fsd.operations import Operations
    from fsd.publisher import Publisher
    from fsd.site import Site
    from fsd.views import Views

log = logging.getLogger("fsd")

WATCH_SECONDS = 1.0
"""How often the tables are looked at where inotify is not to be had; also after a missed event."""
SAVING_SECONDS = 0.005
MEASURE_SECONDS = 2.0
"""How often what stats asked for is measured; the budget of ``fsd.diffs`` bounds what that costs."""
SWEEP_SECONDS = 2.0
"""How long what was deleted stays open in a view at most; a look takes a few microseconds a view."""
CHOICE_SECONDS = 2.0
"""How often it is looked whether another process chose what the first write of a burst does."""
SIZE_BUDGET = 0.5
"""For how many seconds sizes are measured at a time."""


async def follow(site: Site, operations: Operations) -> None:
    """Run every follower until cancelled."""
    inodes, views = operations.inodes, operations.views
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_follow_tables, site, operations)
        nursery.start_soon(_sweep, views, operations.publisher)
        nursery.start_soon(_follow_choices, site, inodes)
        nursery.start_soon(_follow_background, site, views.bursts)


async def _follow_background(site: Site, bursts: Bursts) -> None:
    """What is done now and then, as often as the settings say."""
    pace = _Pace(site)

    def often(what: str) -> Callable[[], float]:
        return lambda: float(getattr(site.settings.background, what))

    def timer() -> float:
        return site.settings.background.timer if site.settings.timer.interval > 0 else 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pace.every, lambda: MEASURE_SECONDS, site.diffs.measure_wanted)
        nursery.start_soon(pace.every, often("sizes"), functools.partial(site.sizes.refresh, SIZE_BUDGET))
        if site.history.supported and not site.store.read_only:
            nursery.start_soon(pace.every, often("expire"), site.history.expire)
            nursery.start_soon(pace.every, often("expire"), site.trash.expire)
            nursery.start_soon(pace.every, often("reap"), site.orphans.reap_ours)
            forget = functools.partial(forget_gone, site.history, site.trash)
            nursery.start_soon(pace.every, often("reap"), forget)
            nursery.start_soon(pace.every, timer, _timer(site, bursts))


async def _follow_tables(site: Site, operations: Operations) -> None:
    """Let the kernel forget what it knows of a listing as soon as the listing changes, by whoever."""
    before, saving = site.now, False
    with contextlib.ExitStack() as stack:
        watch = _watch(site)
        if watch is not None:
            stack.callback(watch.close)
        while True:
            with trio.move_on_after(SAVING_SECONDS if saving else WATCH_SECONDS):
                await _next_change(watch)
            if site.store.saving and not saving:
                # By then it waits for the disk, and no more for the interpreter.
                await trio.sleep(SAVING_SECONDS)
            saving = site.store.saving  # our own change, which shows when it is saved: look again soon
            now = site.now
            if now is not before:
                operations.publisher.outdate()
                site.events.compare(before, now)
                _invalidate(before, now, operations.inodes)
                _forget_removed(before, now, operations.views.bursts)
                before = now


async def _sweep(views: Views, publisher: Publisher) -> None:
    """Let go of nodes nobody holds, and of views of what was deleted: held open, it would keep its space."""
    while True:
        await trio.sleep(SWEEP_SECONDS)
        try:
            publisher.give_back()
            await views.sweep()
        except Exception:
            log.exception("views of what was deleted stay open for another %.0f s", SWEEP_SECONDS)


def _watch(site: Site) -> Watch | None:
    try:
        homes = (home for table in TABLES for home in site.store.table_directories(table))
        return Watch(home for home in homes if home.is_dir())
    except OSError as exc:
        log.warning("changes by others show up to %.0f s late: %s", WATCH_SECONDS, exc)
        return None


async def _next_change(watch: Watch | None) -> None:
    if watch is None:
        await trio.sleep_forever()
    else:
        await watch.changed()


def _invalidate(before: Now, now: Now, inodes: Inodes) -> None:
    for table in TABLES:
        changed = differing(before.catalog, now.catalog, table)
        for directory, gone in changed_listings(before.places[table], now.places[table], changed):
            _invalidate_listing(inodes, directory_key(table, directory), gone)
    for container_id in differing(before.catalog, now.catalog, "containers"):
        if now.catalog.container(container_id) is not None:
            _forget_rootfs(inodes, f"containers:{container_id}")


def _forget_removed(before: Now, now: Now, bursts: Bursts) -> None:
    """A container that comes back from the trash is asked from memory, as after a start."""
    for container_id in before.by_id("containers").keys() - now.by_id("containers").keys():
        bursts.forget(container_id)


def _invalidate_listing(inodes: Inodes, key: str, gone: Sequence[str]) -> None:
    number = inodes.find(key)
    if number is None:
        return
    with contextlib.suppress(OSError):
        pyfuse3.invalidate_inode(number, attr_only=True)
    for name in gone:
        pyfuse3.invalidate_entry_async(number, pyfuse3.FileNameT(os.fsencode(name)), ignore_enoent=True)


def _forget_rootfs(inodes: Inodes, key: str) -> None:
    """Let the kernel ask again what an object's ``rootfs`` is."""
    number = inodes.find(key)
    if number is not None:
        pyfuse3.invalidate_entry_async(number, pyfuse3.FileNameT(b"rootfs"), ignore_enoent=True)


async def _follow_choices(site: Site, inodes: Inodes) -> None:
    """Let an ``on-write`` be in force that another process chose (``fsd on-write``), or a draft it ended."""

    def read() -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
        return choices_of_containers(site), settings_of_images(site.history.state)

    containers, images = await trio.to_thread.run_sync(read)
    while True:
        await trio.sleep(CHOICE_SECONDS)
        before = containers, images
        try:
            containers, images = await trio.to_thread.run_sync(read)
        except OSError:
            log.exception("the choices of on-write cannot be read; the next look comes in a moment")
            continue
        for obj in before[0].keys() | containers.keys():
            if before[0].get(obj) != containers.get(obj):
                choice = containers.get(obj, site.settings.on_write.containers)
                site.configure_bursts(obj.removeprefix("containers/"), choice)
        for image in before[1].keys() | images.keys():
            if _shows_another(before[1].get(image, ("", "")), images.get(image, ("", ""))):
                _forget_rootfs(inodes, f"images:{image}")


def _shows_another(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """Whether an image's ``rootfs`` became another view; a draft that opened is shown by the same one."""
    return before[0] != now[0] or before[1] not in ("", now[1])


def choices_of_containers(site: Site) -> dict[str, str]:
    """What is chosen for containers; for images, which may have drafts, the store is asked at every look."""
    chosen = site.history.state.settings_of(ON_WRITE).items()
    return {obj: choice for obj, choice in chosen if obj.startswith("containers/")}


def _timer(site: Site, bursts: Bursts) -> Callable[[], None]:
    """Runs the timer, and tells of what it took: people by an event, the next write that it is recent."""
    token = trio.lowlevel.current_trio_token()

    def tick() -> None:
        for snapshot in site.timer.tick().taken:
            token.run_sync_soon(bursts.taken, snapshot.container_id)
            site.events.emit(
                "snapshots", "create", snapshot.container_id, (snapshot.name,), reason=snapshot.reason
            )

    return tick


class _Pace:
    """How often background work is done. Other settings begin every wait anew."""

    def __init__(self, site: Site) -> None:
        self._changed = trio.Event()
        site.retimed.append(self._restart)

    def _restart(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def every(self, often: Callable[[], float], work: Callable[[], object]) -> None:
        """Do ``work`` in a thread every so many seconds, never for 0; a failure is logged and tried again."""
        while True:
            seconds = often()
            with trio.move_on_after(seconds if seconds > 0 else math.inf):
                await self._changed.wait()
                continue
            try:
                await trio.to_thread.run_sync(work)
            except Exception:
                log.exception("background work failed; it runs again in %.0f s", seconds)
