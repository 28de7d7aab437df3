"""``control/health``: one line per thing that can be wrong: ``ok`` or ``warn``, and what to do."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from store import health as of_store
from store.health import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.site import Site

RECENT_ERRORS_NS = 3600 * 10**9
LONG_BACKLOG, LONG_TRASH = 1000, 100
"""Comparisons and entries that wait for their turn and are worth a look."""


def health(site: Site) -> str:
    """All findings, one a line."""
    return "\n".join(str(finding) for finding in examine(site))


def examine(site: Site) -> Iterator[Finding]:
    """Everything that is looked at. Walks no tree and takes no lock."""
    yield from of_store.examine(site.history)
    yield _configuration(site)
    yield from _data_plane(site)
    yield from _waiting(site)
    yield from _backlog(site)
    yield from _errors(site)


def _configuration(site: Site) -> Finding:
    unread = [why for why in (site.unread_options, site.unread_settings) if why]
    return Finding(
        subject="configuration",
        ok=not unread,
        text="as it is now it cannot be in force: " + " ".join(" ".join(unread).split())
        if unread
        else "storage.conf and fsd.toml could be read",
        remedy="correct it; control/config shows what is in force until then",
    )


def _data_plane(site: Site) -> Iterator[Finding]:
    if site.plane is None:
        return
    now = site.plane.stats()
    yield Finding(
        subject="passthrough",
        ok=now.passthrough,
        text="on" if now.passthrough else "off, every read and write of a file goes through fsd",
        remedy="it needs Linux 6.9 and CAP_SYS_ADMIN",
    )
    yield Finding(
        subject="coherence",
        ok=not now.unwatched,
        text=f"{now.unwatched} views are asked for again every second, so they are slower"
        if now.unwatched
        else "the filesystem tells what others change",
        remedy="it needs Linux 6.16, CAP_SYS_ADMIN, and the real path on btrfs, ext4 or xfs",
    )


def _waiting(site: Site) -> Iterator[Finding]:
    late = site.errors.since(time.time_ns() - RECENT_ERRORS_NS, number=errno.ETIMEDOUT)
    yield Finding(
        subject="timeouts",
        ok=not late,
        text=f"{late} operations waited in vain for a lock in the last hour"
        if late
        else "no operation waited in vain for a lock in the last hour",
        remedy="control/errors names who held them",
    )


def _backlog(site: Site) -> Iterator[Finding]:
    if site.history.supported:
        entries, due = len(site.trash.list()), len(site.trash.expired())
        yield Finding(
            subject="trash",
            ok=due < LONG_TRASH,
            text=f"{entries} entries, {due} of them due to go",
            remedy="they go at most 20 at a time; rmdir trash/NAME purges one now",
        )
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
