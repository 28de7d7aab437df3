"""Records as containers-storage prints them: the keys its structures have, in their order."""

from __future__ import annotations

from store.codec import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAPS = frozenset({"flags", "big-data-sizes", "big-data-digests"})
_ALWAYS = {
    "layers": ("id", "created"),
    "images": ("id", "created"),
    "containers": ("id", "image", "layer", "created"),
}
_DATA = ("big-data-names", "big-data-sizes", "big-data-digests")
_ORDER = {
    "layers": (
        *("id", "names", "parent", "metadata", "mountlabel", "created", "compressed-diff-digest"),
        *("compressed-size", "diff-digest", "toc-digest", "diff-size", "compression", "uidset", "gidset"),
        *("flags", "uidmap", "gidmap", "big-data-names"),
    ),
    "images": (
        *("id", "digest", "names", "names-history", "layer", "mapped-layers", "metadata"),
        *(*_DATA, "created", "flags"),
    ),
    "containers": (
        *("id", "names", "image", "layer", "metadata", *_DATA, "created", "uidmap", "gidmap", "flags"),
    ),
}


def record_text(kind: str, record: dict[str, Any]) -> str:
    """One record of the table ``kind`` as JSON."""
    always = _ALWAYS[kind]
    parts = []
    for key in _ORDER[kind]:
        value = record.get(key)
        if value or key in always:
            parts.append(f'"{key}":{dumps(value or "", sort_keys=key in _MAPS)}')
    return "{" + ",".join(parts) + "}"
