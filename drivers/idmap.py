"""User and group ID mappings between a container and its host.

An :class:`IDMap` is one contiguous range, as in ``/proc/PID/uid_map`` (user_namespaces(7)) and in
containers/storage's ``uidmap`` and ``gidmap`` records (FORMAT 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        return _translate(uid, self.uids, to_host=True), _translate(gid, self.gids, to_host=True)

    def to_container(self, uid: int, gid: int) -> tuple[int, int]:
        """Container IDs of the host's ``uid`` and ``gid``; ``ValueError`` if one is not mapped."""
        return _translate(uid, self.uids, to_host=False), _translate(gid, self.gids, to_host=False)

    @property
    def root(self) -> tuple[int, int]:
        """Host owner of what the container's root owns."""
        return self.to_host(0, 0)


def _translate(value: int, ranges: Sequence[IDMap], *, to_host: bool) -> int:
    if not ranges:
        return value
    for r in ranges:
        start, target = (r.container_id, r.host_id) if to_host else (r.host_id, r.container_id)
        if start <= value < start + r.size:
            return target + (value - start)
    raise ValueError(f"ID {value} is not mapped")
