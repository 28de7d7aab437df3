"""``control/metrics``: the state of the mount in Prometheus' text format, from what is known already."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from store import metrics as of_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.site import Site


def metrics(site: Site) -> str:
    """All metrics; nothing is walked or measured for them."""
    return of_store.exposition([*of_store.families(site.sizes), *_of_mount(site)])


def _of_mount(site: Site) -> Iterator[of_store.Family]:
    yield "fsd_errors_total", "counter", "Operations that failed.", [({}, float(site.errors.total))]
    yield "fsd_uploads", "gauge", "Files being copied in.", [({}, float(len(site.uploads.active())))]
    backlog = float(site.diffs.backlog)
    yield "fsd_comparisons_waiting", "gauge", "Comparisons waiting for the background.", [({}, backlog)]
    if site.plane is not None:
        now = site.plane.stats()
        rows = [({"opcode": str(code)}, float(count)) for code, count in now.operations.items()]
        yield "fsd_requests_total", "counter", "Requests of the kernel, by FUSE opcode.", rows
        rows = [({"opcode": str(code)}, float(count)) for code, count in now.asked.items()]
        yield "fsd_requests_forwarded_total", "counter", "Those that Python was asked.", rows
        what = "Snapshots before a write that had been laid ready."
        yield "fsd_snapshots_prepared_total", "counter", what, [({}, float(now.taken))]
    held = float(site.entries_held())
    yield (
        "fsd_entries_held",
        "gauge",
        "Synthetic entries that the kernel holds.",
        [({}, held)],
    )
    uptime = (time.time_ns() - site.started_ns) / 1e9
    yield "fsd_uptime_seconds", "gauge", "Time since the mount began.", [({}, uptime)]
