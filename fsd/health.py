"""``control/health``: one line per thing that can be wrong: ``ok`` or ``warn``, and what to do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from store import health as of_store
from store.health import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.site import Site

RECENT_ERRORS_NS = 3600 * 10**9
LONG_BACKLOG = 1000


def health(site: Site) -> str:
    """All findings, one a line."""
    return "\n".join(str(finding) for finding in examine(site))


def examine(site: Site) -> Iterator[Finding]:
    """Everything that is looked at. Walks no tree and takes no lock."""
    yield from of_store.examine(site.history)
    yield from _data_plane(site)
    yield from _backlog(site)
    yield from _errors(site)


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
