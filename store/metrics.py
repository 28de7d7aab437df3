"""The state of a store in Prometheus' text format, from what is known already."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from store.sizes import Sizes

Sample = tuple[dict[str, str], float]
Family = tuple[str, str, str, list[Sample]]
"""Name, type, help text and samples of one metric."""


def exposition(families: Iterable[Family]) -> str:
    """The text a scraper reads."""
    lines: list[str] = []
    for name, kind, text, samples in families:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{_labels(labels)} {value:.17g}" for labels, value in samples]
    return "\n".join(lines)


def families(sizes: Sizes) -> Iterator[Family]:
    """What the store has; nothing is walked or measured for it."""
    catalog = sizes.history.store.catalog()
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
    yield from _history(sizes)
    yield from _sizes(sizes)
    yield from _space(sizes)


def _history(sizes: Sizes) -> Iterator[Family]:
    if not sizes.history.supported:
        return
    by_reason: dict[str, float] = {}
    for snapshot in sizes.history.state.snapshots():
        by_reason[snapshot.reason] = by_reason.get(snapshot.reason, 0.0) + 1
    samples: list[Sample] = [({"reason": reason}, count) for reason, count in sorted(by_reason.items())]
    yield "fsd_snapshots", "gauge", "Snapshots of containers.", samples
    entries = float(len(sizes.trash.list()))
    yield "fsd_trash_entries", "gauge", "Removed objects that can still be brought back.", [({}, entries)]


def _sizes(sizes: Sizes) -> Iterator[Family]:
    figures = sizes.all()
    totals: dict[str, float] = {}
    for (kind, _), found in figures.items():
        totals[kind] = totals.get(kind, 0.0) + (found.exclusive or 0)
    samples: list[Sample] = [({"table": kind}, total) for kind, total in sorted(totals.items())]
    yield "fsd_exclusive_bytes", "gauge", "Bytes only these objects refer to, as last measured.", samples
    yield "fsd_measured_objects", "gauge", "Objects whose size is known.", [({}, float(len(figures)))]


def _space(sizes: Sizes) -> Iterator[Family]:
    found = os.statvfs(sizes.history.store.graphroot)
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
