"""When a write takes a snapshot: the policy against a model, and many writers at once."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fsd.bursts import Burst, BurstPolicy, Bursts, OnError
from store.state import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLICY = BurstPolicy()
DENY = replace(POLICY, on_error=OnError.DENY)
START = 1_000_000.0


# -- the policy ------------------------------------------------------------------------------------


def snapshots_by_the_rules(times: list[int]) -> list[int]:
    """The rules, read aloud, for mutations of one container at whole seconds."""
    taken: list[int] = []
    burst_began = last_mutation = None
    for now in times:
        never = last_mutation is None
        after_quiet = not never and now - last_mutation >= 60
        old = not never and now - burst_began > 300
        if never or after_quiet or old:
            burst_began = now
            if not taken or now - taken[-1] >= 30:
                taken.append(now)
        last_mutation = now
    return taken


@given(st.lists(st.integers(0, 130), max_size=60))
def test_policy_agrees_with_the_rules_for_any_pauses(pauses: list[int]) -> None:
    now, times, burst, taken = 0, [], Burst(), []
    for pause in pauses:
        now += pause
        times.append(now)
        verdict = POLICY.judge(burst, float(now))
        burst = verdict.burst
        if verdict.snapshot:
            taken.append(now)
            burst = replace(burst, snapshot=float(now))
    assert taken == snapshots_by_the_rules(times)


@given(
    st.builds(
        Burst,
        *[st.none() | st.floats(0, 1e4) for _ in range(3)],
    ),
    st.floats(0, 1e4),
)
def test_policy_never_snapshots_twice_within_the_interval(burst: Burst, now: float) -> None:
    verdict = POLICY.judge(burst, now)
    if burst.snapshot is not None and 0 <= now - burst.snapshot < POLICY.interval:
        assert not verdict.snapshot
    assert verdict.begins or not verdict.snapshot
    assert verdict.burst.mutated == now
    assert (verdict.burst.began == now) or not verdict.begins


@given(
    st.builds(Burst, *[st.none() | st.floats(0, 1e4) for _ in range(3)]),
    st.floats(0, 2e4),
)
def test_policy_says_from_when_on_a_mutation_takes_a_snapshot(burst: Burst, now: float) -> None:
    known = [time for time in (burst.began, burst.mutated, burst.snapshot) if time is not None]
    if all(now >= time for time in known) and abs(now - POLICY.due(burst)) > 1e-6:
        assert POLICY.judge(burst, now).snapshot is (now > POLICY.due(burst))


@pytest.mark.parametrize(
    ("pause", "begins"), [(0.0, False), (59.9, False), (60.0, True), (3600.0, True), (-1.0, True)]
)
def test_policy_after_a_pause_begins_a_burst(pause: float, begins: bool) -> None:
    burst = Burst(began=START, mutated=START, snapshot=START)
    assert POLICY.judge(burst, START + pause).begins is begins


@pytest.mark.parametrize(("age", "begins"), [(299.0, False), (300.0, False), (300.1, True)])
def test_policy_splits_an_old_burst(age: float, begins: bool) -> None:
    burst = Burst(began=START, mutated=START + age - 1, snapshot=START)
    assert POLICY.judge(burst, START + age).begins is begins


@pytest.mark.parametrize(
    "name", [b".f.swp", b".f.swx", b".f.swpx", b"notes~", b"4913", b".#lock", b"sedAb12_x", b"\xff\xfe~"]
)
def test_policy_editor_files_are_noise(name: bytes) -> None:
    assert POLICY.is_noise(name)


@pytest.mark.parametrize(
    "name", [None, b"f", b"sed", b"sedAb12", b"sedAb12_xy", b"swp", b"4914", b"~/x", b"\xff\xfe", b"a~\n"]
)
def test_policy_other_names_are_not_noise(name: bytes | None) -> None:
    assert not POLICY.is_noise(name)


def test_policy_without_patterns_has_no_noise() -> None:
    assert not replace(POLICY, noise=()).is_noise(b"")


# -- many writers ----------------------------------------------------------------------------------


def now() -> float:
    """A wall clock that follows trio's mock clock."""
    return START + trio.current_time()


@dataclass
class Snapshots:
    """Takes snapshots in ``seconds``; remembers when each began and ended, and what was reported."""

    seconds: float = 0.1
    failures: list[Exception] = field(default_factory=list)
    unchanged: bool = False
    began: list[tuple[str, float]] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    noting: float | None = None
    """Seconds from landing to the end."""
    reported: list[tuple[str, BaseException]] = field(default_factory=list)

    async def take(self, container_id: str, landed: Callable[[], None]) -> object | None:
        self.began.append((container_id, trio.current_time()))
        await trio.sleep(self.seconds)
        if self.noting is not None:
            landed()
            await trio.sleep(self.noting)
        self.ended.append(trio.current_time())
        if self.failures:
            raise self.failures.pop(0)
        return None if self.unchanged else object()

    def report(self, container_id: str, exc: BaseException) -> None:
        self.reported.append((container_id, exc))

    def bursts(self, policy: BurstPolicy = POLICY) -> Bursts:
        return Bursts(self.take, policy, now, on_failure=self.report)


def simulate(main: Callable[[], Awaitable[None]]) -> None:
    """Run with time that passes at once."""
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_bursts_64_first_writers_wait_for_one_snapshot() -> None:
    snapshots = Snapshots(seconds=2.0)
    passed: list[float] = []

    async def main() -> None:
        gate = snapshots.bursts().gate("c")

        async def writer(delay: float) -> None:
            await trio.sleep(delay)
            await gate(b"f")
            passed.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(writer, number / 64)

    simulate(main)
    assert snapshots.began == [("c", 0.0)]
    assert passed == [2.0] * 64


def test_bursts_other_containers_do_not_wait() -> None:
    snapshots = Snapshots(seconds=5.0)
    passed: dict[str, float] = {}

    async def main() -> None:
        bursts = snapshots.bursts()

        async def writer(container: str, at: float) -> None:
            await trio.sleep(at)
            await bursts.before(container, b"f")
            passed[container] = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer, "a", 0)
            nursery.start_soon(writer, "b", 1)

    simulate(main)
    assert passed == {"a": 5.0, "b": 6.0}


def test_bursts_noise_passes_and_begins_nothing() -> None:
    snapshots = Snapshots(seconds=5.0)

    async def main() -> None:
        bursts = snapshots.bursts()
        await bursts.before("c", b".f.swp")
        assert (trio.current_time(), snapshots.began) == (0, [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bursts.before, "c", b"f")
            await trio.sleep(1)
            await bursts.before("c", b"4913")  # nobody needs the state before it
            assert trio.current_time() == 1

    simulate(main)


def test_bursts_noise_lets_nothing_else_pass() -> None:
    snapshots = Snapshots()

    async def main() -> None:
        bursts = snapshots.bursts()
        await bursts.before("c", b".f.swp")
        assert bursts.window("c") == (0.0, 0.0)
        await bursts.before("c", b"f")
        assert bursts.window("c") == (POLICY.quiet, pytest.approx(now() + POLICY.longest, abs=1))
        await trio.sleep(POLICY.quiet)
        await bursts.before("c", b".f.swp")
        assert bursts.window("c") == (0.0, 0.0)

    simulate(main)


def test_bursts_one_snapshot_per_burst_and_one_after_quiet() -> None:
    snapshots = Snapshots()

    async def main() -> None:
        bursts = snapshots.bursts()
        for _ in range(20):
            await bursts.before("c", b"f")
            await trio.sleep(10)
        assert len(snapshots.began) == 1
        await trio.sleep(60)
        await bursts.before("c", b"f")
        assert len(snapshots.began) == 2

    simulate(main)


def test_bursts_endless_writing_is_split() -> None:
    snapshots = Snapshots()

    async def main() -> None:
        bursts = snapshots.bursts()
        while trio.current_time() < 3600:
            await bursts.before("c", None)
            await trio.sleep(5)

    simulate(main)
    gaps = [b[1] - a[1] for a, b in zip(snapshots.began, snapshots.began[1:], strict=False)]
    assert len(gaps) >= 10
    assert all(300 < gap <= 310 for gap in gaps)


def test_bursts_failed_snapshot_lets_the_write_proceed_and_is_reported_once() -> None:
    failure = OSError(errno.ENOSPC, "full")
    snapshots = Snapshots(failures=[failure])

    async def main() -> None:
        bursts = snapshots.bursts()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(bursts.before, "c", b"f")
        await bursts.before("c", b"f")  # the same burst: no second try for every write

    simulate(main)
    assert len(snapshots.began) == 1
    assert snapshots.reported == [("c", failure)]


def test_bursts_failed_snapshot_denies_every_writer_until_one_succeeds() -> None:
    snapshots = Snapshots(failures=[OSError(errno.ENOSPC, "full")])
    refused: list[int | None] = []

    async def main() -> None:
        bursts = snapshots.bursts(DENY)

        async def writer() -> None:
            try:
                await bursts.before("c", b"f")
            except OSError as exc:
                refused.append(exc.errno)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(writer)
        assert refused == [errno.ENOSPC] * 8
        await bursts.before("c", b"f")

    simulate(main)
    assert len(snapshots.began) == 2
    assert len(snapshots.reported) == 1


def test_bursts_late_snapshot_bounds_the_wait_and_is_not_taken_twice() -> None:
    snapshots = Snapshots(seconds=100)

    async def main() -> None:
        bursts = snapshots.bursts()
        await bursts.before("c", b"f")
        assert trio.current_time() == POLICY.snapshot_timeout
        await bursts.before("c", b"f")
        assert trio.current_time() == POLICY.snapshot_timeout
        await trio.sleep(200)
        assert snapshots.ended == [100.0]
        await bursts.before("c", b"f")

    simulate(main)
    assert [at for _, at in snapshots.began] == [0.0, 230.0]
    assert [type(exc) for _, exc in snapshots.reported] == [TimeoutError, TimeoutError]


def test_bursts_late_snapshot_denies_until_it_is_there() -> None:
    snapshots = Snapshots(seconds=100)

    async def main() -> None:
        bursts = snapshots.bursts(DENY)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await bursts.before("c", b"f")
        await trio.sleep(71)
        await bursts.before("c", b"f")
        assert trio.current_time() == 101

    simulate(main)
    assert len(snapshots.began) == 1


def test_bursts_unchanged_container_begins_without_snapshot() -> None:
    snapshots = Snapshots(unchanged=True)

    async def main() -> None:
        bursts = snapshots.bursts()
        await bursts.before("c", b"f")
        await bursts.before("c", b"f")

    simulate(main)
    assert len(snapshots.began) == 1


def test_bursts_snapshot_by_the_timer_counts_for_the_interval() -> None:
    snapshots = Snapshots()

    async def main() -> None:
        bursts = snapshots.bursts()
        await bursts.before("c", b"f")
        await trio.sleep(100)
        bursts.taken("c")
        await trio.sleep(29)
        await bursts.before("c", b"f")
        assert len(snapshots.began) == 1

    simulate(main)


def test_bursts_own_policy_and_forget() -> None:
    snapshots = Snapshots()

    async def main() -> None:
        bursts = snapshots.bursts()
        bursts.configure("c", replace(POLICY, enabled=False))
        await bursts.before("c", b"f")
        assert snapshots.began == []
        bursts.configure("c", None)
        await bursts.before("c", b"f")
        bursts.forget("c")
        await bursts.before("c", b"f")
        assert len(snapshots.began) == 2

    simulate(main)


def test_bursts_cancelled_writer_leaves_the_snapshot_to_the_others() -> None:
    snapshots = Snapshots(seconds=5)

    async def main() -> None:
        bursts = snapshots.bursts()
        with trio.move_on_after(1):
            await bursts.before("c", b"f")
        await bursts.before("c", b"f")
        assert trio.current_time() == 5

    simulate(main)
    assert len(snapshots.began) == 1


def test_bursts_failing_report_does_not_stop_writers(caplog: pytest.LogCaptureFixture) -> None:
    snapshots = Snapshots(failures=[RuntimeError("x")])

    def report(container_id: str, exc: BaseException) -> None:
        raise ValueError(container_id)

    async def main() -> None:
        await Bursts(snapshots.take, POLICY, now, on_failure=report).before("c", b"f")

    simulate(main)
    assert "reporting a failed snapshot" in caplog.text


@pytest.mark.parametrize("failures", [[], [OSError(errno.ENOSPC, "no row")]])
def test_bursts_writers_go_on_once_the_snapshot_landed(failures: list[Exception]) -> None:
    snapshots = Snapshots(seconds=2.0, noting=7.0, failures=[*failures])

    async def main() -> None:
        bursts = snapshots.bursts(DENY)
        for _ in range(2):
            await bursts.before("c", b"f")
            assert trio.current_time() == 2
        await trio.sleep(10)

    simulate(main)
    assert len(snapshots.began) == 1
    assert [exc for _, exc in snapshots.reported] == failures


def test_bursts_tell_hastened_writers_from_the_thread_that_took_the_snapshot() -> None:
    told: list[tuple[bool, float, float]] = []
    loop = threading.get_ident()

    def go(quiet: float, until: float) -> None:
        told.append((threading.get_ident() == loop, quiet, until))

    async def take(container_id: str, landed: Callable[[], None]) -> object:
        await trio.to_thread.run_sync(landed)
        return object()

    async def main() -> None:
        bursts = Bursts(take, POLICY, now)
        bursts.recall("c")
        for _ in range(2):  # the second has nothing to wait for
            with bursts.hastened("c", go):
                await bursts.before("c", b"f")

    trio.run(main, clock=trio.testing.MockClock())
    assert told == [(False, POLICY.quiet, START + POLICY.longest)]


def test_bursts_let_a_writer_pass_who_comes_when_the_snapshot_has_landed_and_is_being_recorded() -> None:
    async def take(container_id: str, landed: Callable[[], None]) -> object:
        await trio.to_thread.run_sync(landed)
        await trio.sleep_forever()

    async def write(bursts: Bursts, told: trio.Event) -> None:
        with bursts.hastened("c", lambda *window: trio.from_thread.run_sync(told.set)):
            await bursts.before("c", b"f")

    async def main() -> None:
        bursts, told = Bursts(take, POLICY, now), trio.Event()
        bursts.recall("c")
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, bursts, told)
                await told.wait()
                await bursts.before("c", b"g")

    trio.run(main)


def test_bursts_do_not_tell_hastened_writers_of_a_snapshot_that_failed() -> None:
    snapshots, told = Snapshots(seconds=1.0, failures=[OSError(errno.EIO, "x")]), []

    async def main() -> None:
        bursts = snapshots.bursts(DENY)
        bursts.recall("c")
        with pytest.raises(OSError, match="x"), bursts.hastened("c", lambda *window: told.append(window)):
            await bursts.before("c", b"f")

    simulate(main)
    assert told == []


def test_bursts_remember_across_restarts(tmp_path: Path) -> None:
    snapshots = Snapshots(seconds=0)

    for at, taken in ((START, 1), (START + 10, 1), (START + 100, 2)):
        state = State(tmp_path / "state.db")

        async def main(at: float = at, state: State = state) -> None:
            bursts = Bursts(snapshots.take, POLICY, lambda: at, memory=state)
            await bursts.before("c", b"f")

        trio.run(main)  # whose end waits until the burst is remembered
        assert len(snapshots.began) == taken
        state.close()
