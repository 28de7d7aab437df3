"""When a write takes a snapshot, decided without clock, disk or event loop; times are epoch seconds."""

from __future__ import annotations

import enum
import fnmatch
import functools
import os
import re
from dataclasses import dataclass

NOISE = ("*.swp", "*.swx", "*.swpx", "*~", "4913", ".#*", "sed??????")
"""Names editors and ``sed -i`` make and take away again."""


class OnError(enum.Enum):
    """What becomes of a write whose snapshot failed."""

    PROCEED = "proceed"
    DENY = "deny"


@dataclass(frozen=True, slots=True)
class Burst:
    """What is known of a container: when its latest burst began, its last mutation, its last snapshot."""

    began: float | None = None
    mutated: float | None = None
    snapshot: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The consequence of one mutation: the burst afterwards, and whether to take a snapshot first."""

    burst: Burst
    begins: bool
    snapshot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstPolicy:
    """The numbers, in seconds.

    ``quiet`` without a mutation ends a burst; one older than ``longest`` is split; automatic snapshots
    are ``interval`` apart; a writer waits at most ``snapshot_timeout``. ``noise`` are shell patterns of
    names whose mutations count for nothing. ``enabled`` off takes no snapshots.
    """

    quiet: float = 60.0
    longest: float = 300.0
    interval: float = 30.0
    snapshot_timeout: float = 30.0
    on_error: OnError = OnError.PROCEED
    noise: tuple[str, ...] = NOISE
    enabled: bool = True

    def is_noise(self, name: bytes | None) -> bool:
        """Whether a mutation of ``name`` counts for nothing; an unknown name counts."""
        return name is not None and _pattern(self.noise).match(os.fsdecode(name)) is not None

    def judge(self, burst: Burst, now: float) -> Verdict:
        """What a mutation at ``now`` means, given what is known of the container.

        A clock that was set back ends the burst and the interval: a snapshot too many loses nothing.
        """
        begins = _passed(burst.mutated, now, self.quiet) or _exceeded(burst.began, now, self.longest)
        after = Burst(began=now if begins else burst.began, mutated=now, snapshot=burst.snapshot)
        return Verdict(after, begins, begins and _passed(burst.snapshot, now, self.interval))

    def due(self, burst: Burst) -> float:
        """From when on the next mutation takes a snapshot; 0 for any time."""
        begins = 0.0
        if burst.mutated is not None and burst.began is not None:
            begins = min(burst.mutated + self.quiet, burst.began + self.longest)
        return begins if burst.snapshot is None else max(begins, burst.snapshot + self.interval)


def _passed(since: float | None, now: float, span: float) -> bool:
    return since is None or now < since or now - since >= span


def _exceeded(since: float | None, now: float, span: float) -> bool:
    return since is None or now < since or now - since > span


@functools.lru_cache(maxsize=64)
def _pattern(noise: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, noise)) or r"(?!)", re.DOTALL)
