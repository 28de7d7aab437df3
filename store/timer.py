"""Snapshots of containers that changed, at most one an hour each: what a container writes while it runs.

A running container writes to its real path, where no write can be waited for; so its rootfs is looked at
from time to time. Looking is one ioctl per container after one sync of the filesystem, and a container
that did not change costs nothing more, however large it is.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from drivers.errors import DriverError
from store import retention
from store.durable import sync_filesystem
from store.errors import StoreError

if TYPE_CHECKING:
    from store.history import History, Snapshot
    from store.records import Container

log = logging.getLogger(__name__)

INTERVAL: Final = 3600.0
"""Seconds between two snapshots of the timer of one container."""
SLACK: Final = 1 / 60
"""Part of the interval by which a snapshot may be early, so that an hourly caller never misses its hour."""
ON_WRITE: Final = "on-write"
"""The setting of a container; with ``none`` there are no automatic snapshots of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """What one round did: snapshots taken, and containers (by ID) of which none could be, with the reason.

    ``skipped`` says why no container was looked at, if none was.
    """

    taken: tuple[Snapshot, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    skipped: str = ""


class Timer:
    """The timer of one store; several processes may run one, since the times are in the state."""

    def __init__(self, history: History, interval: float = INTERVAL) -> None:
        self._history = history
        self._store = history.store
        self.interval = interval

    def tick(self, now_ns: int | None = None) -> Ticked:
        """Snapshot what changed and is due. Call it as often as you like.

        The failure of one container does not keep the others from theirs.

        Raises:
            OSError: the state cannot be read
        """
        now = time.time_ns() if now_ns is None else now_ns
        if not self._history.supported:
            return Ticked(skipped=f"the {self._store.driver_name} driver keeps no snapshots")
        if not retention.may_take(self._history.free_space(), self._history.policy):
            return Ticked(skipped="too little space is free for more snapshots")
        unwanted = {
            obj for obj, value in self._history.state.settings_of(ON_WRITE).items() if value == "none"
        }
        containers = [c for c in self._store.catalog().containers if f"containers/{c.id}" not in unwanted]
        if not containers:
            return Ticked()
        return self._look(containers, now)

    def _look(self, containers: list[Container], now_ns: int) -> Ticked:
        sync_filesystem(self._store.graphroot)  # what is written shows in the generation then
        taken, failed = [], []
        for container in containers:
            try:
                if self._is_due(container, now_ns):
                    taken.append(self._history.take(container.id, reason="timer"))
            except (StoreError, DriverError, OSError) as error:
                log.warning("no snapshot of container %s: %s", container.id[:12], error)
                failed.append((container.id, str(error)))
        return Ticked(taken=tuple(taken), failed=tuple(failed))

    def _is_due(self, container: Container, now_ns: int) -> bool:
        snapshots = self._history.list(container.id)
        last = max((s.created_ns for s in snapshots if s.reason == "timer"), default=0)
        if now_ns - last < self.interval * (1 - SLACK) * retention.SECOND:
            return False
        # Copies share the generation of what they were made from, also after a rollback.
        generation = self._generation(container.layer)
        if snapshots:
            return all(s.generation != generation for s in snapshots)
        layer = self._store.catalog().layer(container.layer)
        parent = layer.parent if layer is not None else ""
        return not parent or self._generation(parent) != generation

    def _generation(self, layer_id: str) -> int:
        return self._history.table.copies.generation(layer_id, settle=False)
