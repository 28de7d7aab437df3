"""``control/metrics``: the state of the mount in Prometheus' text format, from what is known already."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.site import Site

Sample = tuple[dict[str, str], float]


def metrics(site: Site) -> str:
    """All metrics; nothing is walked or measured for them."""
    lines: list[str] = []
    for name, kind, text, samples in _families(site):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{_labels(labels)} {value:.17g}" for labels, value in samples]
    return "\n".join(lines)


def _families(site: Site) -> Iterator[tuple[str, str, str, list[Sample]]]:
    catalog = site.now.catalog
    counts = {"layers": catalog.layers, "images": catalog.images, "containers": catalog.containers}
    yield (
        "fsd_objects",
        "gauge",
        "Objects in the store.",
        [({"table": table}, float(len(records))) for table, records in counts.items()],
    )
    yield "fsd_broken_records", "gauge", "Records that cannot be used.", [({}, float(len(catalog.broken)))]
    mounted = sum(1 for layer in catalog.layers if catalog.mount_count(layer.id))
    yield "fsd_layers_mounted", "gauge", "Layers with a mount count.", [({}, float(mounted))]
    yield from _history(site)
    yield from _sizes(site)
    yield from _space(site)
    yield "fsd_errors_total", "counter", "Operations that failed.", [({}, float(site.errors.total))]
    yield "fsd_uploads", "gauge", "Files being copied in.", [({}, float(len(site.uploads.active())))]
    backlog = float(site.diffs.backlog)
    yield "fsd_comparisons_waiting", "gauge", "Comparisons waiting for the background.", [({}, backlog)]
    uptime = (time.time_ns() - site.started_ns) / 1e9
    yield "fsd_uptime_seconds", "gauge", "Time since the mount began.", [({}, uptime)]


def _history(site: Site) -> Iterator[tuple[str, str, str, list[Sample]]]:
    if not site.history.supported:
        return
    by_reason: dict[str, float] = {}
    for snapshot in site.history.state.snapshots():
        by_reason[snapshot.reason] = by_reason.get(snapshot.reason, 0.0) + 1
    samples: list[Sample] = [({"reason": reason}, count) for reason, count in sorted(by_reason.items())]
    yield "fsd_snapshots", "gauge", "Snapshots of containers.", samples
    entries = float(len(site.trash.list()))
    yield "fsd_trash_entries", "gauge", "Removed objects that can still be brought back.", [({}, entries)]


def _sizes(site: Site) -> Iterator[tuple[str, str, str, list[Sample]]]:
    figures = site.sizes.all()
    totals: dict[str, float] = {}
    for (kind, _), found in figures.items():
        totals[kind] = totals.get(kind, 0.0) + (found.exclusive or 0)
    samples: list[Sample] = [({"table": kind}, total) for kind, total in sorted(totals.items())]
    yield "fsd_exclusive_bytes", "gauge", "Bytes only these objects refer to, as last measured.", samples
    yield "fsd_measured_objects", "gauge", "Objects whose size is known.", [({}, float(len(figures)))]


def _space(site: Site) -> Iterator[tuple[str, str, str, list[Sample]]]:
    found = os.statvfs(site.store.graphroot)
    total, free = float(found.f_blocks * found.f_frsize), float(found.f_bavail * found.f_frsize)
    yield "fsd_filesystem_bytes", "gauge", "Size of the graphroot's filesystem.", [({}, total)]
    yield "fsd_filesystem_free_bytes", "gauge", "Free space there.", [({}, free)]


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
