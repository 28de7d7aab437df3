"""Which snapshots may go, and when one may be taken: pure policy, no clock and no disk of its own.

The rules (defaults in :class:`Policy`):

* *Kept by rule* per container: the newest ``keep_last``, the newest of each of the latest
  ``keep_hourly`` hours that have any, and the newest of each of the latest ``keep_daily`` days.
  Hours and days are those of UTC. Everything else is *thinned*.
* *Caps*: at most ``per_container`` and ``per_store``; the oldest go first.
* *Short of space*: below ``space_floor`` of free space the oldest of the whole store go first,
  kept by rule or not; below ``take_floor`` no new one is taken.
* *Exempt*: pinned snapshots and those a person named. They never go and do not count to a cap.
* *Minimum age*: nothing younger goes for any reason. Bursts are at least 30 s apart, so this can
  exceed a cap for an hour at most.
* *Pace*: at most ``deletions_per_minute``, because the kernel's cleaner works through deleted
  subvolumes in the background and competes with everybody's I/O; free space follows late, so
  callers look again after each batch.

Times are nanoseconds since the epoch; free space is a fraction from 0 to 1.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers of the rules; ``minimum_age`` in seconds, floors as fractions of the filesystem."""

    keep_last: int = 10
    keep_hourly: int = 24
    keep_daily: int = 7
    per_container: int = 50
    per_store: int = 500
    minimum_age: float = 3600.0
    space_floor: float = 0.20
    take_floor: float = 0.10
    deletions_per_minute: int = 20


DEFAULT_POLICY = Policy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What retention needs to know about one snapshot; ``exempt`` is pinned or named by a person."""

    container_id: str
    name: str
    created_ns: int
    exempt: bool = False


class Why(enum.Enum):
    """The rule that lets a snapshot go, the least loss first."""

    THINNED = "no rule keeps it"
    CONTAINER_CAP = "the container has too many"
    STORE_CAP = "the store has too many"
    SPACE = "free space is below the floor"


_SEVERITY = {why: rank for rank, why in enumerate(Why)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """One snapshot to delete and the rule that says so."""

    snapshot: Candidate
    why: Why


def may_take(free: float, policy: Policy = DEFAULT_POLICY) -> bool:
    """Whether there is room for another snapshot when ``free`` of the filesystem is free."""
    return free >= policy.take_floor


def allowance(now_ns: int, recent_ns: Iterable[int], policy: Policy = DEFAULT_POLICY) -> int:
    """How many deletions the pace allows now, given the times of the last ones."""
    busy = sum(1 for at in recent_ns if now_ns - MINUTE < at <= now_ns)
    return max(0, policy.deletions_per_minute - busy)


def kept_by_rule(snapshots: Iterable[Candidate], policy: Policy = DEFAULT_POLICY) -> set[Candidate]:
    """Those of one container's snapshots that the last, hourly and daily rules keep."""
    newest_first = sorted(snapshots, key=_age_key, reverse=True)
    kept = set(newest_first[: policy.keep_last])
    kept |= _newest_of_each(newest_first, HOUR, policy.keep_hourly)
    kept |= _newest_of_each(newest_first, DAY, policy.keep_daily)
    return kept


def expired(
    snapshots: Collection[Candidate], *, now_ns: int, free: float, policy: Policy = DEFAULT_POLICY
) -> list[Deletion]:
    """Everything that may go now, least loss first, without regard to the pace."""
    automatic = sorted((s for s in snapshots if not s.exempt), key=_age_key)
    old = {s for s in automatic if now_ns - s.created_ns >= policy.minimum_age * SECOND}
    doomed: dict[Candidate, Why] = {}
    for own in _by_container(automatic):
        kept = kept_by_rule(own, policy)
        doomed.update((s, Why.THINNED) for s in own if s in old and s not in kept)
        _cap(own, old, policy.per_container, Why.CONTAINER_CAP, doomed)
    _cap(automatic, old, policy.per_store, Why.STORE_CAP, doomed)
    if free < policy.space_floor:
        _cap(automatic, old, 0, Why.SPACE, doomed)
    deletions = [Deletion(snapshot=s, why=why) for s, why in doomed.items()]
    return sorted(deletions, key=lambda d: (_SEVERITY[d.why], _age_key(d.snapshot)))


def plan(
    snapshots: Collection[Candidate],
    *,
    now_ns: int,
    free: float,
    recent_ns: Sequence[int] = (),
    policy: Policy = DEFAULT_POLICY,
) -> list[Deletion]:
    """The deletions to make now: what :func:`expired` says, as far as the pace allows."""
    return expired(snapshots, now_ns=now_ns, free=free, policy=policy)[: allowance(now_ns, recent_ns, policy)]


def _age_key(snapshot: Candidate) -> tuple[int, str, str]:
    return snapshot.created_ns, snapshot.container_id, snapshot.name


def _newest_of_each(newest_first: Sequence[Candidate], period: int, count: int) -> set[Candidate]:
    """The first snapshot met in each of the latest ``count`` periods that have any."""
    newest: dict[int, Candidate] = {}
    for s in newest_first:
        newest.setdefault(s.created_ns // period, s)
    return set(list(newest.values())[:count])


def _by_container(automatic: Iterable[Candidate]) -> list[list[Candidate]]:
    grouped: defaultdict[str, list[Candidate]] = defaultdict(list)
    for s in automatic:
        grouped[s.container_id].append(s)
    return list(grouped.values())


def _cap(
    automatic: Sequence[Candidate], old: set[Candidate], cap: int, why: Why, doomed: dict[Candidate, Why]
) -> None:
    """Doom the oldest of ``automatic`` (sorted, oldest first) until ``cap`` of them are left."""
    left = sum(1 for s in automatic if s not in doomed)
    for s in automatic:
        if left <= cap:
            return
        if s in old and s not in doomed:
            doomed[s] = why
            left -= 1
