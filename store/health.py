"""What can be wrong with a store, one finding each: ``ok`` or ``warn``, and what to do."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from store.locks import locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from store.history import History


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at; ``remedy`` says what to do where it is not ``ok``."""

    subject: str
    ok: bool
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{'ok  ' if self.ok else 'warn'} {self.subject}: {self.text}"
        return line if self.ok or not self.remedy else f"{line}; {self.remedy}"


def examine(history: History) -> Iterator[Finding]:
    """Everything that is looked at. Walks no tree and takes no lock."""
    for check in _CHECKS:
        yield from check(history)


def _driver(history: History) -> Iterator[Finding]:
    status = dict(history.store.driver.status())
    features = ", ".join(f"{name} {value}" for name, value in status.items())
    yield Finding(subject="driver", ok=True, text=f"{history.store.driver_name} ({features})")
    yield Finding(subject="kernel", ok=True, text=platform.release())
    on = history.supported
    yield Finding(
        subject="history",
        ok=on,
        text="snapshots are kept" if on else f"the {history.store.driver_name} driver keeps no snapshots",
        remedy="" if on else "writes cannot be undone; use a graphroot on btrfs",
    )
    quota = history.store.driver.capabilities.quota
    mode = status.get("Quota", "none")
    text = f"quota mode {mode}" if quota else "the driver cannot limit containers"
    yield Finding(subject="quota", ok=True, text=text)


def _space(history: History) -> Iterator[Finding]:
    found = os.statvfs(history.store.graphroot)
    free = found.f_bavail / found.f_blocks if found.f_blocks else 1.0
    policy = history.policy
    floor = policy.take_floor if free < policy.take_floor else policy.space_floor
    text = f"{free:.0%} of the filesystem is free"
    if free < policy.take_floor:
        text += f", below {floor:.0%}: no automatic snapshots, and removal is immediate"
    elif free < floor:
        text += f", below {floor:.0%}: the oldest snapshots and the trash go early"
    yield Finding(
        subject="space", ok=free >= floor, text=text, remedy="look at control/prune/preview, or add space"
    )


def _placement(history: History) -> Iterator[Finding]:
    shared = os.stat(history.store.graphroot).st_dev == os.stat("/").st_dev
    yield Finding(
        subject="subvolume",
        ok=not shared,
        text="the graphroot shares a subvolume with /" if shared else "the graphroot is apart from /",
        remedy="a rollback of / takes the store's tables back; move it to a subvolume of its own",
    )


def _records(history: History) -> Iterator[Finding]:
    catalog = history.store.catalog()
    broken = len(catalog.broken)
    yield Finding(
        subject="records",
        ok=not broken,
        text=f"{broken} cannot be used" if broken else "all can be used",
        remedy="see broken/, and run fsd check --repair",
    )
    used = {container.layer for container in catalog.containers}
    leaked = [layer.id for layer in catalog.layers if catalog.mount_count(layer.id) and layer.id not in used]
    yield Finding(
        subject="mounts",
        ok=not leaked,
        text=f"{len(leaked)} mounted layers belong to no container: {' '.join(i[:12] for i in leaked[:5])}"
        if leaked
        else "no layer is mounted without a container",
        remedy="fsd shutdown --force, once nothing uses them",
    )


def _locks(history: History) -> Iterator[Finding]:
    held = [lock for lock in locks(history.store) if lock.held]
    yield Finding(subject="locks", ok=True, text="; ".join(map(str, held)) or "none is held")


_CHECKS: tuple[Callable[[History], Iterator[Finding]], ...] = (
    _driver,
    _space,
    _placement,
    _records,
    _locks,
)
