"""User and group ID mappings between a container and its host.

An :class:`IDMap` is one contiguous range, as in ``/proc/PID/uid_map`` (user_namespaces(7)) and in
containers/storage's ``uidmap`` and ``gidmap`` records (FORMAT 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NOBODY = 65534
"""What an ID outside every range appears as (user_namespaces(7), overflowuid)."""


@dataclass(frozen=True, slots=True)
class IDMap:
    """``size`` IDs from ``container_id`` upward are ``host_id`` upward on the host."""

    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True, slots=True)
class IDMappings:
    """The user and group ranges of one layer; empty means the identity mapping."""

    uids: tuple[IDMap, ...] = ()
    gids: tuple[IDMap, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.uids or self.gids)

    def to_host(self, uid: int, gid: int) -> tuple[int, int]:
        """Host IDs of a container's ``uid`` and ``gid``; ``ValueError`` if one is not mapped."""
        return translate(uid, self.uids, to_host=True), translate(gid, self.gids, to_host=True)

    def to_host_or_nobody(self, uid: int, gid: int) -> tuple[int, int]:
        """:meth:`to_host`, with :data:`NOBODY` for an ID that is not mapped, as containers/storage has it."""
        host = []
        for value, ranges in ((uid, self.uids), (gid, self.gids)):
            try:
                host.append(translate(value, ranges, to_host=True))
            except ValueError:
                host.append(NOBODY)
        return host[0], host[1]

    def to_container(self, uid: int, gid: int) -> tuple[int, int]:
        """Container IDs of the host's ``uid`` and ``gid``; ``ValueError`` if one is not mapped."""
        return translate(uid, self.uids, to_host=False), translate(gid, self.gids, to_host=False)

    @property
    def root(self) -> tuple[int, int]:
        """Host owner of what the container's root owns; -1 twice, as for chown(2), if that is not mapped."""
        try:
            return self.to_host(0, 0)
        except ValueError:
            return -1, -1


def translate(value: int, ranges: Sequence[IDMap], *, to_host: bool) -> int:
    """An ID on the other side of the ranges; without any it is the same; ``ValueError`` if none has it."""
    if not ranges:
        return value
    for r in ranges:
        start, target = (r.container_id, r.host_id) if to_host else (r.host_id, r.container_id)
        if start <= value < start + r.size:
            return target + (value - start)
    here, there = ("container", "host") if to_host else ("host", "container")
    raise ValueError(f"{here} ID {value} cannot be mapped to a {there} ID")
