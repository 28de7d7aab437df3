"""When a write takes a snapshot.

A *burst* is a run of mutations of one container that share one snapshot, taken before the first of
them lands. :class:`~fsd.burst_policy.BurstPolicy` decides, without clock or disk; :class:`Bursts` makes the
writers of a burst wait for its snapshot, each container on its own. Times are seconds since the epoch.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import trio

from fsd.burst_policy import NOISE, Burst, BurstPolicy, OnError, Verdict
from store.state import BurstTimes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Gate = Callable[[bytes | None], Awaitable[None]]
    Go = Callable[[float, float], None]

__all__ = ["NOISE", "Burst", "BurstPolicy", "Bursts", "Memory", "OnError", "Verdict"]

log = logging.getLogger("fsd.bursts")

_NS = 1_000_000_000


class Memory(Protocol):
    """What outlives the process; :class:`store.state.State` is one. Both calls may block."""

    def burst(self, container_id: str) -> BurstTimes | None:
        """The latest burst; ``None`` when the container was never written through us."""

    def put_burst(self, container_id: str, times: BurstTimes) -> None:
        """Remember a burst that begins."""


def _abandoned() -> Exception:
    return InterruptedError(errno.EINTR, "the event loop ended before the snapshot was taken")


@dataclass(slots=True)
class _Pending:
    """A snapshot being taken for ``burst``.

    ``deadline`` (trio's clock) is when writers stop waiting for it; ``landed`` is set, from any thread, when
    they need not wait, although the event loop was not told.
    """

    burst: Burst
    deadline: float
    landed: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    failure: Exception | None = field(default_factory=_abandoned)
    late: TimeoutError | None = None


@dataclass(slots=True)
class _Track:
    """One container's burst, and the snapshot its writers wait for."""

    burst: Burst
    pending: _Pending | None = None
    hasty: dict[object, Go] = field(default_factory=dict)
    """Writers that are told from the thread that took the snapshot, too."""


class Bursts:
    """The bursts of all containers. Belongs to one event loop.

    Args:
        take: takes the snapshot of a container, given its ID; returns ``None`` when nothing changed
            since the last one. May call its second argument, from any thread, when writes may land
            already; until then it runs at most once at a time per container. Goes on when the writers
            have stopped waiting.
        policy: for every container without a policy of its own (:meth:`configure`).
        clock: seconds since the epoch.
        on_failure: told once of every snapshot that failed or was late.
        memory: keeps the bursts across restarts; without it the first mutation after a start begins one.

    Attributes:
        changed: told, from any thread, of each container of which :meth:`due` may give something else.
    """

    def __init__(
        self,
        take: Callable[[str, Callable[[], None]], Awaitable[object | None]],
        policy: BurstPolicy | None = None,
        clock: Callable[[], float] = time.time,
        *,
        on_failure: Callable[[str, BaseException], None] | None = None,
        memory: Memory | None = None,
    ) -> None:
        self._take = take
        self._policy = policy or BurstPolicy()
        self._clock = clock
        self._on_failure = on_failure
        self._memory = memory
        self._own: dict[str, BurstPolicy] = {}
        self._tracks: dict[str, _Track] = {}
        self.changed: Callable[[str], object] = lambda container_id: None

    def configure(self, container_id: str, policy: BurstPolicy | None) -> None:
        """Give a container a policy of its own; ``None`` returns it to the common one."""
        if policy is None:
            self._own.pop(container_id, None)
        else:
            self._own[container_id] = policy
        self.changed(container_id)

    def configure_all(self, policy: BurstPolicy, own: dict[str, BurstPolicy]) -> None:
        """Give all containers another common policy, and some their own."""
        self._policy, self._own = policy, dict(own)
        for container_id in list(self._tracks):
            self.changed(container_id)

    def policy(self, container_id: str) -> BurstPolicy:
        """The policy a container's writes are judged by."""
        return self._own.get(container_id, self._policy)

    def forget(self, container_id: str) -> None:
        """Drop the burst of a container that was removed; its policy stays, as it may come back."""
        self._tracks.pop(container_id, None)

    def taken(self, container_id: str) -> None:
        """Note an automatic snapshot that something else took just now, such as the timer."""
        track = self._tracks.get(container_id)
        if track is not None:
            track.burst = replace(track.burst, snapshot=self._clock())
            self.changed(container_id)

    def began(self, container_id: str) -> None:
        """Note a burst that began just now with a snapshot that was laid ready."""
        now = self._clock()
        self._tracks.setdefault(container_id, _Track(Burst())).burst = Burst(now, now, now)
        self.changed(container_id)

    def due(self, container_id: str) -> float | None:
        """From when on a mutation takes a snapshot; ``None`` when none does, or that is not known just now.

        From any thread.
        """
        policy, track = self.policy(container_id), self._tracks.get(container_id)
        if not policy.enabled or track is None or track.pending is not None:
            return None
        return policy.due(track.burst)

    def gate(self, container_id: str) -> Gate:
        """What to await before every mutation of a container, with the name it touches."""
        return functools.partial(self.before, container_id)

    def recall(self, container_id: str) -> None:
        """Ask memory for a container before its first write has to. From any thread; may block."""
        if container_id not in self._tracks:
            times = self._memory.burst(container_id) if self._memory is not None else None
            self._tracks.setdefault(container_id, _Track(_recalled(times)))

    def window(self, container_id: str) -> tuple[float, float]:
        """How long mutations may pass after :meth:`before` without asking again.

        Seconds without a mutation that end the burst, and the time (since the epoch) when it is too old; both
        are 0 where no burst is under way, because all that came was noise.
        """
        policy, track = self.policy(container_id), self._tracks.get(container_id)
        if not policy.enabled:
            return math.inf, math.inf
        burst = track.burst if track is not None else Burst()
        if policy.judge(burst, self._clock()).begins:
            return 0.0, 0.0
        return policy.quiet, (burst.began or 0.0) + policy.longest

    @contextlib.contextmanager
    def hastened(self, container_id: str, go: Go) -> Iterator[None]:
        """Around :meth:`before`: call ``go`` as soon as the snapshot it waits for has landed.

        That is in the thread that took it, before the event loop knows; never if the snapshot failed, or
        there is nothing to wait for. The arguments are those of :meth:`window`.
        """
        track, ticket = self._tracks.get(container_id), object()
        if track is None:
            yield
            return
        track.hasty[ticket] = go
        try:
            yield
        finally:
            track.hasty.pop(ticket, None)

    async def before(self, container_id: str, name: bytes | None) -> None:
        """Return when a mutation of ``name`` may land.

        Raises:
            Exception: what made the snapshot fail, ``TimeoutError`` if it took too long; only where
                the policy denies such writes, and then nothing counts as written.
        """
        policy = self.policy(container_id)
        if not policy.enabled or policy.is_noise(name):
            return
        track = await self._track(container_id)
        if track.pending is not None and track.pending.landed:
            self._land(track, track.pending, changed=True)
        if track.pending is None:
            verdict = policy.judge(track.burst, self._clock())
            if not verdict.snapshot:
                track.burst = verdict.burst
                self.changed(container_id)
                return
            self._start(container_id, track, verdict.burst)
        failure = await self._outcome(container_id, track)
        if failure is not None and policy.on_error is OnError.DENY:
            raise failure
        track.burst = policy.judge(track.burst, self._clock()).burst

    async def _track(self, container_id: str) -> _Track:
        """What is known of a container, asked from memory once."""
        track = self._tracks.get(container_id)
        if track is not None:
            return track
        if self._memory is not None:
            try:
                await trio.to_thread.run_sync(self.recall, container_id)
            except Exception as exc:
                self._report(container_id, exc)
        return self._tracks.setdefault(container_id, _Track(Burst()))

    def _start(self, container_id: str, track: _Track, burst: Burst) -> None:
        """Begin a burst: take its snapshot as a task of its own, which outlives the writers' patience."""
        deadline = trio.current_time() + self.policy(container_id).snapshot_timeout
        track.pending = _Pending(burst, deadline)
        self.changed(container_id)
        trio.lowlevel.spawn_system_task(self._run, container_id, track, track.pending)

    async def _run(self, container_id: str, track: _Track, pending: _Pending) -> None:
        """Take a snapshot, let writers go on once it landed, and note how it went."""
        landed = functools.partial(self._land, track, pending, changed=True)
        tell = functools.partial(trio.lowlevel.current_trio_token().run_sync_soon, landed)
        policy = self.policy(container_id)
        window = policy.quiet, (pending.burst.began or 0.0) + policy.longest

        def let_go() -> None:
            pending.landed = True
            hasty = list(track.hasty.values())
            for go in hasty:
                go(*window)
            if not hasty:  # else the event loop would wake only to be in their way
                tell()

        try:
            taken = await self._take(container_id, let_go)
            self._land(track, pending, changed=taken is not None)
        except Exception as exc:
            self._end(track, pending, exc)
            self._report(container_id, exc)
        finally:
            self._end(track, pending, pending.failure)
            self.changed(container_id)
        if pending.failure is None:
            await self._remember(container_id, track.burst)

    def _land(self, track: _Track, pending: _Pending, *, changed: bool) -> None:
        """Writes may go on: there is a snapshot of what was before them."""
        if pending.done.is_set():
            return
        burst = pending.burst
        if track.burst.began is not None and track.burst.began >= (burst.began or 0.0):
            burst = track.burst  # writers who stopped waiting began it meanwhile
        track.burst = replace(burst, snapshot=self._clock()) if changed else burst
        self._end(track, pending, None)

    def _end(self, track: _Track, pending: _Pending, failure: Exception | None) -> None:
        """Wake the writers, once: what fails after the snapshot landed is none of theirs."""
        if not pending.done.is_set():
            pending.failure = failure
            track.pending = None
            pending.done.set()

    async def _outcome(self, container_id: str, track: _Track) -> Exception | None:
        """Wait until the pending snapshot is there (``None``), has failed or is late."""
        pending = track.pending
        assert pending is not None
        with trio.move_on_at(pending.deadline):
            await pending.done.wait()
            return pending.failure
        if pending.late is None:
            text = f"the snapshot of container {container_id} takes longer than writers wait"
            pending.late = TimeoutError(errno.ETIMEDOUT, text)
            self._report(container_id, pending.late)
        return pending.late

    async def _remember(self, container_id: str, burst: Burst) -> None:
        """Keep a burst for the next start; no writer waits for this, but the end of the event loop does."""
        if self._memory is not None and burst.began is not None:
            began_ns = int(burst.began * _NS)
            times = BurstTimes(started_ns=began_ns, mutated_ns=began_ns)
            try:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._memory.put_burst, container_id, times)
            except Exception as exc:
                self._report(container_id, exc)

    def _report(self, container_id: str, exc: BaseException) -> None:
        if self._on_failure is None:
            log.warning("no snapshot of container %s before a write: %s", container_id, exc)
            return
        try:
            self._on_failure(container_id, exc)
        except Exception:
            log.exception("reporting a failed snapshot of container %s", container_id)


def _recalled(times: BurstTimes | None) -> Burst:
    """A burst as remembered; its snapshot was taken when it began."""
    if times is None:
        return Burst()
    began = times.started_ns / _NS
    return Burst(began=began, mutated=times.mutated_ns / _NS, snapshot=began)
