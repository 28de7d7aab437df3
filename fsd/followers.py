"""What a mount does without being asked: notice other processes' changes, and let old snapshots go."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.site import Site

log = logging.getLogger("fsd")

WATCH_SECONDS = 1.0
"""How often the tables are looked at (three stats): bounds the error of a listing's mtime."""
EXPIRE_SECONDS = 60.0
"""How often retention runs; it deletes at most 20 snapshots a minute (DESIGN 5)."""


async def follow(site: Site) -> None:
    """Run every follower until cancelled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_every, WATCH_SECONDS, site.live.now)
        if site.history.supported:
            nursery.start_soon(_every, EXPIRE_SECONDS, site.history.expire)


async def _every(seconds: float, work: Callable[[], object]) -> None:
    """Do ``work`` in a thread again and again; a failure is logged and tried again next time."""
    while True:
        await trio.sleep(seconds)
        try:
            await trio.to_thread.run_sync(work)
        except Exception:
            log.exception("background work failed; it runs again in %.0f s", seconds)
