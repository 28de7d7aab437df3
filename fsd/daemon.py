"""The life of a mount: start, serve, follow the store, and leave nothing behind.

:func:`run` blocks until the mount ends: by SIGTERM or SIGINT, by ``umount`` from outside, or by a
failure to start. It never touches its own mount; readiness is proven by a child process that reads
``control/status``, so that whoever is told READY can use the tree.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import logging
import resource
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pyfuse3
import trio

from fsd.bursts import BurstPolicy, Bursts
from fsd.control import snapshot_before_write
from fsd.errnos import errno_of, explain
from fsd.exports import Exports
from fsd.followers import choices_of_containers, follow
from fsd.operations import Operations
from fsd.plane import Plane, unmount
from fsd.plane import mount as plane_mount
from fsd.prepared import Prepared
from fsd.realtrees import failure, refusal
from fsd.reloading import follow_options
from fsd.settings import load_settings, settings_path
from fsd.site import ContainerSubject, Site
from fsd.views import Views
from store.history import History

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fsd.events import Events
    from store.config import StoreOptions
    from store.history import Snapshot
    from store.store import Store

log = logging.getLogger("fsd")

YOUNG_OBJECTS = 10_000
"""How many more objects there may be before the interpreter looks for cycles; 700 by itself."""
READY_TIMEOUT = 30.0
"""Seconds within which a new mount has to answer."""


def run(
    store: Store,
    mountpoint: Path,
    *,
    foreground: bool = True,
    ready: Callable[[], None] | None = None,
    allow_other: bool = False,
    load: Callable[[], StoreOptions] | None = None,
) -> int:
    """Mount ``store`` at the existing directory ``mountpoint`` and serve it until it is unmounted.

    Args:
        foreground: whether SIGINT (Ctrl-C) ends the mount like SIGTERM does.
        ready: called once, when the tree answers.
        allow_other: let users other than root look in; permissions are checked by the kernel.
        load: gives the options as they are configured now; asked when storage.conf changes, and on SIGHUP.

    Returns:
        0 after a clean end, 1 when the mount could not be made to answer.
    """
    _raise_descriptor_limit()
    settings = load_settings(settings_path(store.options))
    site = Site(store, History(store, policy=settings.retention), mountpoint, settings=settings)
    bursts = _bursts(site)
    mount = _Mount(mountpoint, foreground, ready, load)
    device = plane_mount(mountpoint, allow_other=allow_other)
    with contextlib.ExitStack() as undo:
        undo.callback(mount.take_away)
        plane = Plane(device, noise=settings.bursts.noise, keep_awake=settings.plane.keep_awake)
        undo.callback(plane.stop)
        site.plane = plane
        site.errors.told = plane.failed
        views, prepared = _views(site, plane, bursts, allow_other=allow_other)
        undo.callback(prepared.close)
        undo.callback(views.close)
        _apply_burst_settings(site, bursts, views)
        operations = Operations(site, views)
        pyfuse3.init(operations, plane.hand_over(), set())
        undo.callback(pyfuse3.close, unmount=False)
        undo.callback(mount.take_away)  # before all else, so that nobody asks for anything meanwhile
        _spare_collector()
        trio.run(mount.serve, site, operations, prepared)
    return 1 if mount.failed else 0


def _spare_collector() -> None:
    """Records and entries live long, and are in no cycles: do not search them again and again."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)


def _bursts(site: Site) -> Bursts:
    """What takes a snapshot before a write, by the settings."""
    return Bursts(
        functools.partial(_take, site),
        _policy(site.settings.bursts, site.settings.on_write.containers),
        on_failure=functools.partial(_burst_failed, site),
        memory=site.history.state,
    )


def _apply_burst_settings(site: Site, bursts: Bursts, views: Views) -> None:
    """Judge writes by what is set for all and chosen for each container, now and whenever that changes."""

    def configure(container: str, choice: str) -> None:
        bursts.configure(container, _policy(site.settings.bursts, choice))
        views.ask_again(container)

    def retime() -> None:
        common, chosen = site.settings.bursts, choices_of_containers(site)
        own = {obj.removeprefix("containers/"): _policy(common, choice) for obj, choice in chosen.items()}
        bursts.configure_all(_policy(common, site.settings.on_write.containers), own)
        views.ask_again()

    site.configure_bursts = configure
    site.retimed.append(retime)
    retime()


def _views(site: Site, plane: Plane, bursts: Bursts, *, allow_other: bool) -> tuple[Views, Prepared]:
    """The views, with everything the plane tells of them reported, and what is laid ready for them."""
    exports = Exports(
        plane,
        site.history.state.view_number,
        refused=lambda event: refusal(site, views, event),
        taken=lambda event: prepared.told(event),
        failed=lambda event, number, text: failure(site, views, event, number, text),
        explain=explain,
        ended=pyfuse3.terminate,
    )
    # Where others may look in, the kernel checks their permissions by the owners shown.
    views = Views(site.store, exports, bursts, container_ids=not allow_other)
    site.history.writers = views.writers
    prepared = Prepared(site, plane, views, failed=functools.partial(_burst_failed, site))
    return views, prepared


class _Mount:
    """How one mount begins and ends.

    Attributes:
        failed: the tree did not answer in time.
    """

    def __init__(
        self,
        mountpoint: Path,
        foreground: bool,
        ready: Callable[[], None] | None,
        load: Callable[[], StoreOptions] | None,
    ) -> None:
        self._mountpoint = mountpoint
        self._load = load
        self._signals = {signal.SIGTERM, signal.SIGINT} if foreground else {signal.SIGTERM}
        self._ready = ready
        self._ended = False
        self._gone = False
        self._events: Events | None = None
        self.failed = False

    def take_away(self) -> None:
        """Unmount, unless somebody else did."""
        if not self._gone:
            self._gone = True
            unmount(self._mountpoint)

    async def serve(self, site: Site, operations: Operations, prepared: Prepared) -> None:
        """Serve until unmounted or told to end."""
        self._events = site.events
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_signal)
            nursery.start_soon(self._announce)
            nursery.start_soon(follow, site, operations)
            nursery.start_soon(operations.views.exports.serve)
            if self._load is not None:
                nursery.start_soon(follow_options, site, self._load)
            nursery.start_soon(operations.publisher.serve)
            nursery.start_soon(prepared.serve)
            await pyfuse3.main()
            self._gone = not self._ended
            nursery.cancel_scope.cancel()

    async def _until_signal(self) -> None:
        with trio.open_signal_receiver(*self._signals) as received:
            async for number in received:
                log.info("ending on %s", signal.Signals(number).name)
                self._end()

    async def _announce(self) -> None:
        """Prove from another process that the tree answers, then say so."""
        code = "import sys\nwith open(sys.argv[1]) as status: status.read()"
        status = self._mountpoint / "control" / "status"
        with trio.move_on_after(READY_TIMEOUT):
            answer = await trio.run_process([sys.executable, "-S", "-c", code, str(status)], check=False)
            if answer.returncode == 0:
                if self._ready is not None:
                    self._ready()
                return
        log.error("%s did not answer within %.0f s", self._mountpoint, READY_TIMEOUT)
        self.failed = True
        self._end()

    def _end(self) -> None:
        self._ended = True
        if self._events is not None:
            self._events.close()
        pyfuse3.terminate()


def _raise_descriptor_limit() -> None:
    """Every open file of a view is a descriptor of ours: take what the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _policy(common: BurstPolicy, on_write: str) -> BurstPolicy:
    """The policy of a container whose ``on-write`` is that."""
    return replace(common, enabled=common.enabled and on_write != "none")


async def _take(site: Site, container: str, landed: Callable[[], None]) -> Snapshot | None:
    return await trio.to_thread.run_sync(snapshot_before_write, site, container, landed)


def _burst_failed(site: Site, container: str, exc: BaseException) -> None:
    """The write goes on (or not, by the policy); either way people can read why there is no snapshot."""
    text = f"no snapshot before a write: {exc}"
    site.errors.note("snapshot", ContainerSubject(site, container).path, errno_of(exc) or errno.EIO, text)
