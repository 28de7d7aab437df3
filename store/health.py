"""What can be wrong with a store, one finding each: ``ok`` or ``warn``, and what to do."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from store.locks import locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from store.history import History

LONG_CLEANING = 50
"""Removed subvolumes waiting for the cleaner that are worth a look."""
SUBVOLUME_ROOT = 256
"""Inode of the root of every btrfs subvolume."""
SIMPLE_QUOTAS = Path("/sys/fs/btrfs/features/simple_quota")
REMOVAL_OPTION = "user_subvol_rm_allowed"
LAYER_ID = re.compile(r"[0-9a-f]{64}")


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
    driver = history.store.driver
    yield Finding(subject="driver", ok=True, text=driver.name)
    on = history.supported
    yield Finding(
        subject="history",
        ok=on,
        text="snapshots are kept" if on else f"the {driver.name} driver keeps no snapshots",
        remedy="" if on else "writes cannot be undone; use a graphroot on btrfs",
    )
    if not driver.capabilities.quota:
        yield Finding(subject="quota", ok=True, text="the driver cannot limit containers")
        return
    mode = dict(driver.status()).get("Quota", "none")
    slow = mode == "qgroups"
    yield Finding(
        subject="quota",
        ok=not slow,
        text=f"full {mode}: every snapshot and removal waits for them" if slow else f"mode {mode}",
        remedy="btrfs quota disable PATH; limits turn simple quotas on where the kernel has them",
    )


def _kernel(history: History) -> Iterator[Finding]:
    features = {
        "id-mapped mounts": history.store.driver.supports_shifting(),
        "simple quotas": SIMPLE_QUOTAS.exists(),
    }
    there = [name for name, has in features.items() if has]
    lacking = [name for name, has in features.items() if not has]
    text = f"{platform.release()} with {', '.join(there) or 'none'} of what fsd can use"
    if lacking:
        text += f", without {', '.join(lacking)}"
    yield Finding(subject="kernel", ok=True, text=text)


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
    root = history.store.graphroot
    point, options = _mount_of(root)
    found = root.stat()
    whole = found.st_ino == SUBVOLUME_ROOT or point == root
    shared = not whole and found.st_dev == os.stat("/").st_dev
    yield Finding(
        subject="subvolume",
        ok=not shared,
        text=f"the graphroot {'has a subvolume of its own' if whole else f'is a part of {point}'}",
        remedy="a rollback of / would take the store's tables back, but not its layers: "
        "move it to a subvolume of its own (btrfs subvolume create)",
    )
    if os.geteuid() and history.supported:
        allowed = REMOVAL_OPTION in options
        yield Finding(
            subject="removal",
            ok=allowed,
            text=f"the filesystem is mounted {'with' if allowed else 'without'} {REMOVAL_OPTION}",
            remedy=f"subvolumes of users are emptied file by file: mount -o remount,{REMOVAL_OPTION}",
        )


def _mounts() -> Iterator[tuple[Path, set[str]]]:
    """Mount points of this namespace, oldest first, with their options (proc(5), mountinfo)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.rstrip("\n").partition(" - ")
            fields = left.split(" ")
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            yield Path(point), {*fields[5].split(","), *right.rpartition(" ")[2].split(",")}


def _mount_of(path: Path) -> tuple[Path, set[str]]:
    """The mount that holds ``path``: the last of the deepest."""
    held = [mount for mount in _mounts() if mount[0] == path or mount[0] in path.parents]
    deepest = max(len(point.parts) for point, _ in held)
    return [mount for mount in held if len(mount[0].parts) == deepest][-1]


def _media(history: History) -> Iterator[Finding]:
    if history.store.read_only:
        text = f"{history.store.graphroot} cannot be written: all can be looked at, and nothing changed"
        yield Finding(subject="media", ok=False, text=text, remedy="see whether the filesystem is mounted ro")


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
        remedy="fsd storage shutdown --force, once nothing uses them",
    )
    left = [str(point) for point in _leaked_mounts(history)]
    yield Finding(
        subject="leaked",
        ok=not left,
        text=f"mounted, though nothing counts it: {' '.join(left[:5])}" if left else "no mount is left over",
        remedy="umount it, once nothing uses it",
    )


def _leaked_mounts(history: History) -> Iterator[Path]:
    """Mounts on a layer's directory that no mount count knows of."""
    catalog = history.store.catalog()
    home = history.store.graphroot / history.store.driver_name
    for point, _ in _mounts():
        if home in point.parents:
            layer_id = next(filter(LAYER_ID.fullmatch, point.relative_to(home).parts), "")
            if layer_id and not catalog.mount_count(layer_id):
                yield point


def _cleaner(history: History) -> Iterator[Finding]:
    cleaning = history.store.driver.backlog()
    if cleaning is not None:
        yield Finding(
            subject="cleaner",
            ok=cleaning < LONG_CLEANING,
            text=f"{cleaning} removed subvolumes still hold their space",
            remedy="wait, or: btrfs subvolume sync PATH",
        )


def _locks(history: History) -> Iterator[Finding]:
    held = [lock for lock in locks(history.store) if lock.held]
    yield Finding(subject="locks", ok=True, text="; ".join(map(str, held)) or "none is held")


_CHECKS: tuple[Callable[[History], Iterator[Finding]], ...] = (
    _driver,
    _kernel,
    _space,
    _placement,
    _media,
    _records,
    _locks,
    _cleaner,
)
