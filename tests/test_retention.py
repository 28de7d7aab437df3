"""Retention against its own rules, with the clock and the free space given."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from store.retention import (
    DAY,
    DEFAULT_POLICY,
    HOUR,
    MINUTE,
    SECOND,
    Candidate,
    Policy,
    Why,
    allowance,
    expired,
    kept_by_rule,
    may_take,
    plan,
)

NOW = 1_800_000_000 * SECOND
PLENTY = 0.9


def at(*ages: int, container: str = "c", exempt: bool = False) -> list[Candidate]:
    """One snapshot per age (nanoseconds before NOW)."""
    return [
        Candidate(container_id=container, name=f"s{age}", created_ns=NOW - age, exempt=exempt) for age in ages
    ]


def names(deletions: list[object]) -> list[str]:
    return [d.snapshot.name for d in deletions]  # type: ignore[attr-defined]


candidates = st.lists(
    st.builds(
        Candidate,
        container_id=st.sampled_from("abc"),
        name=st.integers(0, 10**6).map(str),
        created_ns=st.integers(0, 40 * DAY).map(lambda age: NOW - age),
        exempt=st.booleans(),
    ),
    unique_by=lambda c: (c.container_id, c.name),
    max_size=80,
)
policies = st.builds(
    Policy,
    keep_last=st.integers(0, 12),
    keep_hourly=st.integers(0, 30),
    keep_daily=st.integers(0, 9),
    per_container=st.integers(0, 20),
    per_store=st.integers(0, 40),
    minimum_age=st.sampled_from([0.0, 60.0, 3600.0]),
)
space = st.floats(0, 1)


def test_few_old_snapshots_are_all_kept() -> None:
    assert expired(at(*(n * DAY for n in range(1, 11))), now_ns=NOW, free=PLENTY) == []


def test_the_last_hourly_and_daily_of_a_month_of_snapshots_are_kept() -> None:
    every_ten_minutes = at(*(n * 10 * MINUTE for n in range(30 * 144)))
    kept = kept_by_rule(every_ten_minutes)
    ages = sorted(NOW - s.created_ns for s in kept)
    assert ages[:10] == [n * 10 * MINUTE for n in range(10)]
    hours = {s.created_ns // HOUR for s in every_ten_minutes}
    for hour in sorted(hours)[-24:]:
        newest = max(s.created_ns for s in every_ten_minutes if s.created_ns // HOUR == hour)
        assert any(s.created_ns == newest for s in kept)
    assert len({s.created_ns // DAY for s in kept}) == 7
    assert len(kept) <= 10 + 24 + 7


def test_a_snapshot_younger_than_an_hour_stays_even_over_every_cap() -> None:
    crowd = at(*(n * SECOND for n in range(60)))
    assert expired(crowd, now_ns=NOW, free=0.01, policy=replace(DEFAULT_POLICY, per_container=5)) == []


def test_an_hour_is_old_enough_and_a_nanosecond_less_is_not() -> None:
    policy = Policy(keep_last=0, keep_hourly=0, keep_daily=0)
    deletions = expired(at(HOUR - 1, HOUR), now_ns=NOW, free=PLENTY, policy=policy)
    assert names(list(deletions)) == [f"s{HOUR}"]


def test_below_the_floor_the_oldest_go_although_a_rule_keeps_them() -> None:
    some = at(2 * DAY, 3 * DAY, 4 * DAY)
    assert expired(some, now_ns=NOW, free=0.20) == []
    doomed = expired(some, now_ns=NOW, free=0.1999)
    assert names(list(doomed)) == [f"s{n * DAY}" for n in (4, 3, 2)]
    assert {d.why for d in doomed} == {Why.SPACE}


def test_what_no_rule_keeps_goes_before_what_only_space_takes() -> None:
    policy = Policy(keep_last=1, keep_hourly=0, keep_daily=0)
    other = at(9 * DAY, container="other")
    doomed = expired([*at(2 * DAY, 3 * DAY), *other], now_ns=NOW, free=0.1, policy=policy)
    assert [d.why for d in doomed] == [Why.THINNED, Why.SPACE, Why.SPACE]


def test_the_store_cap_takes_the_oldest_of_any_container() -> None:
    policy = Policy(per_store=2)
    mixed = [*at(5 * DAY, 2 * DAY, container="a"), *at(4 * DAY, 3 * DAY, container="b")]
    doomed = expired(mixed, now_ns=NOW, free=PLENTY, policy=policy)
    assert [(d.snapshot.container_id, d.why) for d in doomed] == [("a", Why.STORE_CAP), ("b", Why.STORE_CAP)]


def test_taking_stops_below_ten_percent() -> None:
    assert may_take(0.10)
    assert not may_take(0.0999)


def test_pace_counts_only_the_last_minute() -> None:
    recent = [NOW - n * SECOND for n in range(15)] + [NOW - MINUTE, NOW - 2 * MINUTE]
    assert allowance(NOW, recent) == 5
    assert allowance(NOW, [NOW] * 30) == 0
    assert allowance(NOW + MINUTE, recent) == 20


def test_plan_makes_no_more_deletions_than_the_pace_allows() -> None:
    policy = Policy(keep_last=0, keep_hourly=0, keep_daily=0)
    crowd = at(*(DAY + n * HOUR for n in range(40)))
    first = plan(crowd, now_ns=NOW, free=PLENTY, policy=policy)
    assert names(list(first)) == [f"s{DAY + n * HOUR}" for n in range(39, 19, -1)]
    assert plan(crowd, now_ns=NOW, free=PLENTY, recent_ns=[NOW] * 18, policy=policy) == first[:2]


@given(candidates, policies, space)
def test_exempt_and_young_snapshots_never_go(snapshots: list[Candidate], policy: Policy, free: float) -> None:
    for deletion in expired(snapshots, now_ns=NOW, free=free, policy=policy):
        assert not deletion.snapshot.exempt
        assert NOW - deletion.snapshot.created_ns >= policy.minimum_age * SECOND


@given(candidates, policies, space)
def test_each_snapshot_goes_once_and_only_if_it_exists(
    snapshots: list[Candidate], policy: Policy, free: float
) -> None:
    doomed = [d.snapshot for d in expired(snapshots, now_ns=NOW, free=free, policy=policy)]
    assert len(doomed) == len(set(doomed))
    assert set(doomed) <= set(snapshots)


@given(candidates, policies)
def test_caps_hold_for_old_automatic_snapshots(snapshots: list[Candidate], policy: Policy) -> None:
    doomed = {d.snapshot for d in expired(snapshots, now_ns=NOW, free=PLENTY, policy=policy)}
    left = [s for s in snapshots if s not in doomed and not s.exempt]
    young = [s for s in left if NOW - s.created_ns < policy.minimum_age * SECOND]
    assert len(left) <= max(policy.per_store, len(young))
    for container in "abc":
        own = [s for s in left if s.container_id == container]
        assert len(own) <= max(policy.per_container, sum(1 for s in own if s in young))


@given(candidates, policies)
def test_deleting_what_expired_leaves_nothing_more_to_delete(
    snapshots: list[Candidate], policy: Policy
) -> None:
    doomed = {d.snapshot for d in expired(snapshots, now_ns=NOW, free=PLENTY, policy=policy)}
    rest = [s for s in snapshots if s not in doomed]
    assert expired(rest, now_ns=NOW, free=PLENTY, policy=policy) == []


@given(candidates)
def test_the_newest_automatic_snapshots_survive_while_there_is_space(snapshots: list[Candidate]) -> None:
    doomed = {d.snapshot for d in expired(snapshots, now_ns=NOW, free=PLENTY)}
    for container in "abc":
        own = sorted(
            (s for s in snapshots if s.container_id == container and not s.exempt),
            key=lambda s: (s.created_ns, s.name),
        )
        assert not doomed & set(own[-DEFAULT_POLICY.keep_last :])
