"""The real directory trees of one mount, as policy sees them: numbers, gates, refusals.

The data plane (``fsd.plane``) serves every request below an exported directory without Python. What
needs a decision it parks: :class:`Exports` awaits the gate of the view, then lets the request go on.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from drivers import syscalls
from drivers.idmap import IDMap, IDMappings
from fsd.handles import identity
from fsd.plane import OURS, Kind, number_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from fsd.plane import Event, Export, Mode, Plane, Preparation

    Gate = Callable[[bytes | None], Awaitable[None]]

log = logging.getLogger("fsd.exports")

_GONE = "what this view showed is gone; look its object up again"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One directory tree to show.

    ``key`` is the same at every mount. ``gate`` is awaited before a mutation with the name it touches
    (``None`` when there is none to tell); what it raises fails the mutation. ``window`` says how long
    mutations may pass afterwards without asking: seconds of quiet that end it, and a time; by default
    every mutation asks. ``hastened`` is entered around the gate with what may be called, from any thread and
    with the window, once the mutation may land though the gate has not returned yet. Of a ``sealed`` view
    nothing changes before its gate has called :meth:`Exports.exchange`. ``owner`` is a number of the object
    the tree belongs to. ``ids`` maps the owners on disk, which are the host's, to those shown, a container's;
    where that cannot be done they are left.
    """

    key: str
    path: Path
    read_only: bool
    frozen: bool = False
    gate: Gate | None = None
    window: Callable[[], tuple[float, float]] | None = None
    hastened: Callable[[Callable[[float, float], None]], AbstractContextManager[None]] | None = None
    owner: int = 0
    sealed: bool = False
    ids: IDMappings | None = None


@dataclass(slots=True)
class _Shown:
    """A view under its number; those of subvolumes nested in it lead here too."""

    view: View
    number: int
    node: int
    who: bytes = b""
    prepared: bool = False


def _ignore(_event: Event) -> None:
    """Nobody wants to know of it."""


def _errno_of(exc: BaseException, _operation: str) -> tuple[int, str]:
    return (exc.errno if isinstance(exc, OSError) else None) or errno.EIO, str(exc)


@contextlib.contextmanager
def _user_namespace(ids: IDMappings) -> Iterator[int]:
    """A namespace that maps the other way round: on disk are the host's IDs."""
    swapped = IDMappings(
        *(tuple(IDMap(r.host_id, r.container_id, r.size) for r in side) for side in (ids.uids, ids.gids))
    )
    namespace = syscalls.open_user_namespace(swapped)
    try:
        yield namespace
    finally:
        os.close(namespace)


class Exports:
    """The views a plane shows. Belongs to one event loop, but :meth:`export` may run in a thread.

    Args:
        number: the stable number of a key, from 1 to 2**21 - 1; asked once per tree, may block.
        refused: told of every mutation the plane refused.
        taken: told of every snapshot that was laid ready and taken.
        explain: errno and text of what a gate raised.
        failed: told of a mutation its gate failed, with errno and text.
        ended: called when the mount is gone.
        by_name: reopen nodes by name, as without privilege.
    """

    def __init__(
        self,
        plane: Plane,
        number: Callable[[str], int],
        *,
        refused: Callable[[Event], None] = _ignore,
        taken: Callable[[Event], None] = _ignore,
        explain: Callable[[BaseException, str], tuple[int, str]] = _errno_of,
        failed: Callable[[Event, int, str], None] | None = None,
        ended: Callable[[], None] | None = None,
        by_name: bool = False,
    ) -> None:
        self.plane = plane
        self._number = number
        self._refused = refused
        self._taken = taken
        self._explain = explain
        self._failed = failed
        self._ended = ended
        self._by_name = by_name
        self._by_key: dict[str, _Shown] = {}
        self._by_number: dict[int, _Shown] = {}
        self._work: list[Event] = []
        self.opened: Callable[[int], object] = lambda node: None
        """Told of published directories that are listed, where the plane was to tell."""

    def export(self, view: View) -> int:
        """Node id of the root of a view; answer a LOOKUP with it, its attributes are filled in.

        Raises:
            OSError: the directory cannot be opened.
        """
        who = identity(view.path)
        before = self._by_key.get(view.key)
        if before is not None and before.who == who and before.view.frozen == view.frozen:
            return before.node
        life = f"/{time.time_ns()}" if view.sealed else ""  # its nodes will not be of this tree only
        number = self._number(f"{view.key}/{who.hex()}{life}")
        made = self._show(view, number)
        shown = _Shown(view, number, made.node, who)
        self._by_key[view.key] = self._by_number[number] = shown
        if before is not None and before.number != number:
            self.plane.unexport(before.number)
        return made.node

    def exchange(self, view: View) -> None:
        """Go over from what the sealed view of that key shows to a snapshot of it, under the same nodes.

        Raises:
            OSError: EOPNOTSUPP where the plane cannot.
        """
        shown = self._by_key[view.key]
        self.plane.exchange(shown.number, view.path)
        shown.view, shown.who = view, identity(view.path)

    def _show(self, view: View, number: int) -> Export:
        show = functools.partial(
            self.plane.export,
            view.path,
            number,
            read_only=view.read_only,
            frozen=view.frozen,
            gated=view.gate is not None,
            sealed=view.sealed,
            by_name=self._by_name,
            owner=view.owner,
        )
        if not view.ids:
            return show()
        try:
            with _user_namespace(view.ids) as userns:
                return show(userns=userns)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
                raise
            log.warning("owners in %s are shown as on disk: %s", view.key, exc)
            return show()

    def unexport(self, key: str) -> None:
        """Show a view no more."""
        shown = self._by_key.pop(key, None)
        if shown is not None:
            self.plane.unexport(shown.number)

    def writers(self, key: str) -> int:
        """How many files of a view are open for writing. From any thread."""
        shown = self._by_key.get(key)
        return 0 if shown is None else self.plane.writers(shown.number)

    async def sweep(self) -> set[str]:
        """Let go of views whose directory was deleted, so that nothing of ours keeps its space taken.

        Returns:
            their keys, and those of views that were shown no more and that the kernel holds nothing of now.
        """
        gone = set()
        for number in await trio.to_thread.run_sync(self.plane.sweep):
            shown = self._by_number.pop(number, None)
            if shown is not None:
                gone.add(shown.view.key)
                if self._is_current(shown):
                    del self._by_key[shown.view.key]
            self.plane.unexport(number)
        for number, shown in list(self._by_number.items()):
            if not self._is_current(shown) and not self.plane.knows(shown.number):
                gone.add(shown.view.key)
                del self._by_number[number]
        return gone

    def _is_current(self, shown: _Shown) -> bool:
        return self._by_key.get(shown.view.key) is shown

    def shows(self, key: str) -> bool:
        """Whether a view of that key is shown."""
        return key in self._by_key

    def view_of(self, node: int) -> View | None:
        """The view a node id belongs to; ``None`` for one that is not known."""
        shown = self._by_number.get(number_of(node)) if node & OURS else None
        return shown.view if shown else None

    def modes(self) -> dict[str, Mode]:
        """How the nodes of each view shown are reopened, by key."""
        return {key: self.plane.mode(shown.number) for key, shown in self._by_key.items()}

    def arm(self, key: str) -> None:
        """Make a view ask its gate again before the next mutation. From any thread."""
        shown = self._by_key.get(key)
        if shown is not None and shown.view.gate is not None:
            self.plane.arm(shown.number)

    def prepare(self, key: str, preparation: Preparation | None) -> None:
        """Lay the next snapshot of a view ready, or take back what was. From any thread."""
        shown = self._by_key.get(key)
        if shown is not None and shown.view.gate is not None:
            shown.prepared = True
            self.plane.prepare(shown.number, preparation)

    def is_prepared(self, key: str) -> bool:
        """Whether :meth:`prepare` was called since the view is shown."""
        shown = self._by_key.get(key)
        return shown is not None and shown.prepared

    async def serve(self) -> None:
        """Answer the plane's questions until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(self.plane.events_fd)
                self.drain()
                while self._work:
                    nursery.start_soon(self._answer, self._work.pop(0))

    def drain(self) -> None:
        """Take note of what happened up to now; questions are answered by :meth:`serve`."""
        for event in self.plane.events():
            if event.kind is Kind.REFUSED:
                self._refused(event)
            elif event.kind is Kind.OPENED:
                self.opened(event.nodeid)
            elif event.kind is Kind.TAKEN:
                self._taken(event)
            elif event.kind is Kind.ENDED:
                if self._ended is not None:
                    self._ended()
            else:
                self._work.append(event)

    async def _answer(self, event: Event) -> None:
        """Never raises: the request would wait for ever."""
        number = 0
        try:
            if event.kind is Kind.NUMBER:
                await self._give_number(event)
            else:
                await self._pass_gate(event)
        except Exception as exc:
            number, text = self._explain(exc, event.operation)
            if self._failed is not None:
                self._failed(event, number, text)
        self.plane.resume(event.ticket, number)

    def _hastened(self, view: View, event: Event) -> AbstractContextManager[None]:
        if view.hastened is None:
            return contextlib.nullcontext()

        def go(quiet: float, until: float) -> None:
            self.plane.disarm(event.number, quiet=quiet, until=until)
            self.plane.resume(event.ticket)

        return view.hastened(go)

    async def _give_number(self, event: Event) -> None:
        shown = self._by_number.get(event.number)
        if shown is None:
            raise OSError(errno.ESTALE, _GONE)
        length = (len(event.handle) - 4).to_bytes(4, "little")
        key = f"{shown.view.key}/{(length + event.handle).hex()}"
        number = await trio.to_thread.run_sync(functools.partial(self._number, key))
        self._by_number.setdefault(number, shown)
        self.plane.give_number(event.number, event.handle, number)

    async def _pass_gate(self, event: Event) -> None:
        shown = self._by_number.get(event.number)
        if shown is None:
            raise OSError(errno.ESTALE, _GONE)
        gate = shown.view.gate
        if gate is None:
            return
        with self._hastened(shown.view, event):
            for name in event.names or (None,):
                await gate(name)
        window = shown.view.window
        if window is not None:
            quiet, until = window()
            self.plane.disarm(event.number, quiet=quiet, until=until)
