"""``control/health``: one line per thing that can be wrong: ``ok`` or ``warn``, and what to do."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsd.locks import locks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fsd.site import Site

OLD_UPLOAD = 3600.0
"""Seconds after which a file that is still being copied in is worth a look."""
RECENT_ERRORS_NS = 3600 * 10**9
LONG_BACKLOG = 1000


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


def health(site: Site) -> str:
    """All findings, one a line."""
    return "\n".join(str(finding) for finding in examine(site))


def examine(site: Site) -> Iterator[Finding]:
    """Everything that is looked at. Walks no tree and takes no lock."""
    for check in _CHECKS:
        yield from check(site)


def _driver(site: Site) -> Iterator[Finding]:
    status = dict(site.store.driver.status())
    features = ", ".join(f"{name} {value}" for name, value in status.items())
    yield Finding(subject="driver", ok=True, text=f"{site.store.driver_name} ({features})")
    yield Finding(subject="kernel", ok=True, text=platform.release())
    on = site.history.supported
    yield Finding(
        subject="history",
        ok=on,
        text="snapshots are kept" if on else f"the {site.store.driver_name} driver keeps no snapshots",
        remedy="" if on else "writes cannot be undone; use a graphroot on btrfs",
    )
    quota = site.store.driver.capabilities.quota
    mode = status.get("Quota", "none")
    text = f"quota mode {mode}" if quota else "the driver cannot limit containers"
    yield Finding(subject="quota", ok=True, text=text)


def _space(site: Site) -> Iterator[Finding]:
    found = os.statvfs(site.store.graphroot)
    free = found.f_bavail / found.f_blocks if found.f_blocks else 1.0
    policy = site.settings.retention
    floor = policy.take_floor if free < policy.take_floor else policy.space_floor
    text = f"{free:.0%} of the filesystem is free"
    if free < policy.take_floor:
        text += f", below {floor:.0%}: no automatic snapshots, and removal is immediate"
    elif free < floor:
        text += f", below {floor:.0%}: the oldest snapshots and the trash go early"
    yield Finding(
        subject="space", ok=free >= floor, text=text, remedy="look at control/prune/preview, or add space"
    )


def _data_plane(site: Site) -> Iterator[Finding]:
    if site.plane is None:
        return
    now = site.plane.stats()
    yield Finding(
        subject="passthrough",
        ok=True,
        text="on"
        if now.passthrough
        else "off, data is read and written by request (Linux 6.9 and root have it)",
    )


def _placement(site: Site) -> Iterator[Finding]:
    shared = os.stat(site.store.graphroot).st_dev == os.stat("/").st_dev
    yield Finding(
        subject="subvolume",
        ok=not shared,
        text="the graphroot shares a subvolume with /" if shared else "the graphroot is apart from /",
        remedy="a rollback of / takes the store's tables back; move it to a subvolume of its own",
    )


def _records(site: Site) -> Iterator[Finding]:
    catalog = site.now.catalog
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


def _locks(site: Site) -> Iterator[Finding]:
    held = [lock for lock in locks(site.store) if lock.held]
    yield Finding(subject="locks", ok=True, text="; ".join(map(str, held)) or "none is held")


def _backlog(site: Site) -> Iterator[Finding]:
    waiting = site.diffs.backlog
    yield Finding(
        subject="backlog",
        ok=waiting < LONG_BACKLOG,
        text=f"{waiting} comparisons wait to be made",
        remedy="sizes of changes and diff.tar show as 0 until then",
    )
    for upload in site.uploads.active():
        yield Finding(subject="upload", ok=True, text=f"{upload.what}: {upload.bytes} bytes, {upload.doing}")


def _errors(site: Site) -> Iterator[Finding]:
    recent = site.errors.since(time.time_ns() - RECENT_ERRORS_NS, defects=True)
    yield Finding(
        subject="defects",
        ok=not recent,
        text=f"{recent} internal errors in the last hour" if recent else "no internal error in the last hour",
        remedy="see control/errors and the daemon's log, and report it",
    )


_CHECKS: tuple[Callable[[Site], Iterator[Finding]], ...] = (
    _driver,
    _data_plane,
    _space,
    _placement,
    _records,
    _locks,
    _backlog,
    _errors,
)
