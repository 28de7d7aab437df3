"""Ranges of user and group IDs: checking mappings, and finding room for a new user namespace."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from drivers.idmap import IDMap, IDMappings
from store.errors import InvalidMappings, NoAvailableIDs

_MAX_ID: Final = 2**32 - 1


class Range(NamedTuple):
    """Host IDs from ``start`` up to, but not including, ``end``."""

    start: int
    end: int


def check_mappings(mappings: IDMappings) -> None:
    """Raise :class:`InvalidMappings` for empty or overlapping ranges."""
    for ranges in (mappings.uids, mappings.gids):
        for r in ranges:
            if (
                r.size <= 0
                or min(r.container_id, r.host_id) < 0
                or max(r.container_id, r.host_id) + r.size > _MAX_ID
            ):
                raise InvalidMappings(f"{r.container_id}:{r.host_id}:{r.size} is no range of IDs")
        for start in ("container_id", "host_id"):
            ordered = sorted((getattr(r, start), r.size) for r in ranges)
            for (low, size), (high, _) in itertools.pairwise(ordered):
                if low + size > high:
                    raise InvalidMappings(f"two ranges map the {start.replace('_', ' ')} {high}")


def parse_mappings(text: str) -> tuple[IDMap, ...]:
    """Ranges as people write them, ``CONTAINER:HOST:SIZE``; others follow a comma or, as in 1.43, a colon.

    Raises:
        InvalidMappings
    """
    parts = [part.strip() for part in text.replace(",", ":").split(":")]
    if len(parts) % 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidMappings(f"{text!r} is no ID mapping; CONTAINER:HOST:SIZE in numbers is")
    numbers = [int(part) for part in parts]
    result = tuple(IDMap(*numbers[at : at + 3]) for at in range(0, len(numbers), 3))
    check_mappings(IDMappings(result))
    return result


def subordinate_ids(path: Path, user: str) -> list[Range]:
    """Ranges the file ``/etc/subuid`` or ``/etc/subgid`` gives ``user`` (subuid(5)), by name or number."""
    wanted = {user, *_other_names(user)}
    ranges = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in wanted and fields[1].isdigit() and fields[2].isdigit():
            ranges.append(Range(int(fields[1]), int(fields[1]) + int(fields[2])))
    return ranges


def _other_names(user: str) -> Iterator[str]:
    import pwd

    try:
        yield str(pwd.getpwnam(user).pw_uid)
    except KeyError:
        return


def free_ranges(available: Iterable[Range], used: Iterable[Range]) -> list[Range]:
    """What is left of ``available`` without ``used``, in ascending order."""
    free: list[Range] = []
    taken = sorted(used)
    for start, end in sorted(available):
        for low, high in taken:
            if high <= start or low >= end:
                continue
            if low > start:
                free.append(Range(start, low))
            start = max(start, high)
        if start < end:
            free.append(Range(start, end))
    return free


def pack(size: int, free: Iterable[Range], additional: tuple[IDMap, ...] = ()) -> tuple[IDMap, ...]:
    """Map container IDs from 0 up to ``size`` to free host IDs, and then come the ``additional`` mappings.

    Raises:
        NoAvailableIDs
    """
    hosts = free_ranges(free, [Range(m.host_id, m.host_id + m.size) for m in additional])
    inside = free_ranges(
        [Range(0, size)], [Range(m.container_id, m.container_id + m.size) for m in additional]
    )
    result: list[IDMap] = []
    for start, end in inside:
        while start < end:
            if not hosts:
                raise NoAvailableIDs(
                    f"{size} unused IDs are needed, {end - start} are lacking; see subuid(5)"
                )
            low, high = hosts.pop(0)
            count = min(end - start, high - low)
            result.append(IDMap(start, low, count))
            start += count
            if low + count < high:
                hosts.insert(0, Range(low + count, high))
    return (*result, *additional)
