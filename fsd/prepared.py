"""Snapshots before a write that wait ready in the data plane, and what becomes of those it took.

The first write of a burst would wait for Python, for the state and for three threads besides the snapshot
itself. So :class:`Prepared` tells the plane beforehand, while nobody waits, what the next automatic snapshot
of a container takes and from when on (:class:`~fsd.plane.Preparation`), and tells it anew whenever that
changes. What the plane took (``fsd/plane/prepared.c``) is written down afterwards: before anybody is answered
who asks for snapshots, by a thread of its own, so that who is reading the state sees the change of another. A
crash in between loses no more than the reason.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import trio

from drivers.errors import DriverError
from fsd.control import tell_of_write
from fsd.handles import identity
from fsd.plane import Preparation
from store.errors import SnapshotUnknown, StoreError
from store.state import BurstTimes, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fsd.plane import Event, Plane, Taken
    from fsd.site import Site
    from fsd.views import Views

log = logging.getLogger("fsd.prepared")

COURTESY = 0.005
"""Seconds by which what was taken or has changed is attended to later: writers need the processor first."""
LOOK = 2.0
"""How often it is looked whether another process took or removed snapshots, in seconds."""
_CONTAINERS = "containers/"


class Prepared:
    """What is laid ready in one mount. Methods may be called from any thread unless they say otherwise.

    Args:
        failed: told of a container, and why a snapshot of it could not be written down.
    """

    def __init__(
        self, site: Site, plane: Plane, views: Views, *, failed: Callable[[str, BaseException], object]
    ) -> None:
        self._site = site
        self._plane = plane
        self._views = views
        self._bursts = views.bursts
        self._failed = failed
        self._lock = threading.Lock()
        self._stale: set[str] = set()
        """Containers about which something has changed since :meth:`prepare` looked."""
        self._generations: dict[str, int] = {}
        """Of the latest snapshot of each container that was looked at."""
        self._home = b""
        self._writer = ThreadPoolExecutor(1, "fsd-written")
        self._token: trio.lowlevel.TrioToken | None = None
        self._wake = trio.Event()
        if site.history.supported and not site.store.read_only:
            site.history.table.catch_up = self.catch_up
            site.history.state.followers.append(self._state_changed)
            views.bursts.changed = self.changed
            views.shown = self.prepare

    # -- laying ready --------------------------------------------------------------------------

    def prepare(self, container: str) -> None:
        """Lay the next snapshot of a container ready, or take back what was; may block.

        Where that is not possible, the first write finds out why.
        """
        with self._lock:
            self._stale.discard(container)
        preparation = None
        try:
            preparation = self._preparation(container)
        except (OSError, StoreError, DriverError) as exc:
            log.info("no snapshot of container %s is laid ready: %s", container, exc)
        with self._lock:
            if container not in self._stale:
                self._views.prepare(container, preparation)

    def changed(self, container: str) -> None:
        """Take back what is ready, which may be wrong now, and lay it ready anew soon."""
        with self._lock:
            self._stale.add(container)
            self._views.prepare(container, None)
        if self._token is not None:
            try:
                self._token.run_sync_soon(self._wake.set)
            except trio.RunFinishedError:
                self._token = None

    def _preparation(self, container: str) -> Preparation | None:
        """What the next snapshot of a container takes; ``None`` if none is to be taken, or not so."""
        due, home = self._bursts.due(container), self._site.history.table.copies.home()
        if due is None or home is None:
            self._generations.pop(container, None)  # nothing is ready that could be outdated
            return None
        self._keep_home(home)
        snapshots = self._site.history.table.all(container)
        latest = snapshots[-1] if snapshots else None
        self._generations[container] = latest.generation if latest else 0
        policy = self._bursts.policy(container)
        return Preparation(
            holder=container,
            not_before=due,
            quiet=policy.quiet,
            longest=policy.longest,
            generation=self._generation(container, latest),
            needed=self._site.history.policy.take_floor,
        )

    def _generation(self, container: str, latest: Snapshot | None) -> int:
        """The one at which the latest snapshot need not be taken again; 0 where it always is."""
        layer = self._site.store.container(container).layer
        if latest is None or not self._site.history.table.is_of(latest, layer):
            return 0
        return max(latest.generation, 0)

    def _keep_home(self, home: Path) -> None:
        """Let the plane know the directory of all snapshots, which may be another one than before."""
        with self._lock:
            who = identity(home)
            if who != self._home:
                self._plane.prepare_in(home)
                self._home = who

    def _state_changed(self, obj: str) -> None:
        container = obj.removeprefix(_CONTAINERS)
        if container != obj and container in self._generations:
            self.changed(container)

    def _look(self) -> None:
        """Find the containers of which another process took, renamed or removed the latest snapshot."""
        found = self._site.history.state.latest_generations()
        for container, generation in list(self._generations.items()):
            if found.get(container, 0) != generation:
                self.changed(container)

    # -- what was taken ------------------------------------------------------------------------

    def told(self, event: Event) -> None:
        """The plane took a snapshot: a burst began. For the event loop."""
        self._bursts.began(os.fsdecode(event.names[0]))
        self._wake.set()

    def catch_up(self) -> None:
        """Return when all that was taken up to now is written down."""
        while self._plane.unwritten():
            self._writer.submit(self._write_down).result()

    def _write_down(self) -> None:
        while (taken := self._plane.first_taken()) is not None:
            try:
                self._record(taken)
            except SnapshotUnknown as exc:
                log.info("it was removed at once: %s", exc)
            except Exception as exc:
                self._failed(taken.holder, exc)
            finally:
                self._plane.written()

    def _record(self, taken: Taken) -> None:
        history = self._site.history
        snapshot = history.record(taken.holder, taken.name)
        times = BurstTimes(started_ns=taken.when_ns, mutated_ns=taken.when_ns)
        history.state.put_burst(taken.holder, times)
        tell_of_write(self._site, snapshot)

    # -- the life of the mount -----------------------------------------------------------------

    async def serve(self) -> None:
        """Attend to what changes, until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        next_look = 0.0
        while True:
            with trio.move_on_at(next_look):
                await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(COURTESY)
            look = trio.current_time() >= next_look
            await trio.to_thread.run_sync(self._attend, look)
            if look:
                next_look = trio.current_time() + LOOK

    def _attend(self, look: bool) -> None:
        try:
            self.catch_up()
            if look:
                self._look()
        except OSError:
            log.exception("what is laid ready may be outdated; the next look comes in a moment")
        with self._lock:
            stale = list(self._stale)
        for container in stale:
            self.prepare(container)

    def close(self) -> None:
        """Write down what is left; the plane is stopped next."""
        self._plane.await_taking()
        self.catch_up()
        self._writer.shutdown()
