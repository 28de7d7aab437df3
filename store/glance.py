"""A store at one moment as plain parsed JSON, for programs that look once and end.

The classes of :mod:`store.records` cost more to import than a table of a thousand layers costs to read. Who
only wants to know whether an object exists, or to list names, reads the tables here: records are the
parsed objects as they stand on disk, and nothing but the interpreter's own C code is imported. What is out of
the ordinary (a malformed record, an unknown spelling, a layer flagged incomplete) raises :class:`Odd`,
and :meth:`Glance.of_catalog` gives the same view of what the whole library made of it.

No locks: table files are only ever replaced whole.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from store.catalog import Catalog

_make_scanner: Any
try:
    from _json import make_scanner as _make_scanner
except ImportError:  # an interpreter without the accelerator
    _make_scanner = None

DRIVERS = ("overlay", "btrfs", "vfs")
KINDS = ("layers", "images", "containers")
_VOLATILE = ("layers", "containers")
_TYPES = {
    **dict.fromkeys(("id", "parent", "metadata", "created", "digest", "layer", "image", "mountlabel"), str),
    **dict.fromkeys(("names", "names-history", "mapped-layers", "big-data-names"), list),
    **dict.fromkeys(("big-data-sizes", "big-data-digests", "flags"), dict),
}
"""What the values must be that are looked at here."""
_KEYS = frozenset(_TYPES) | {
    *("compressed-diff-digest", "compressed-size", "diff-digest", "toc-digest", "diff-size", "compression"),
    *("uidset", "gidset", "uidmap", "gidmap"),
}


class Odd(Exception):
    """The tables hold something that takes the whole library to understand."""


class _Settings:
    """What the C scanner wants to know of a decoder."""

    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> object:
        """NaN and the infinities are no JSON."""
        raise Odd(name)


def is_complete(graphroot: str, runroot: str, driver: str) -> bool:
    """Whether a store is there with everything that opening it would make."""
    lock = os.path.join(graphroot, f"{driver}-%s", "%s.lock")
    return (
        driver in DRIVERS
        and all(os.path.exists(lock % (kind, kind)) for kind in KINDS)
        and os.path.isdir(os.path.join(graphroot, driver))
        and os.path.isdir(os.path.join(runroot, f"{driver}-layers"))
    )


class Glance:
    """Layers, images and containers in creation order, as parsed JSON.

    Attributes:
        tables: records by ``layers``, ``images`` and ``containers``.
        driver: whose tables were read; empty for those of a catalog.
    """

    __slots__ = ("_containers", "_ids", "_names", "counts", "driver", "mounts", "tables", "texts")

    def __init__(
        self,
        tables: dict[str, list[dict[str, Any]]],
        mounts: dict[str, str],
        texts: dict[str, str] | None = None,
        counts: dict[str, int] | None = None,
    ) -> None:
        self.tables = tables
        self.texts = texts or {}
        """Tables whose file is just what a listing of its records as JSON would be."""
        self.mounts = mounts
        """Directories of the layers that are mounted, by ID."""
        self.driver = ""
        self.counts = counts or {}
        """How often those layers are, where the tables were read here."""
        self._ids: dict[str, dict[str, dict[str, Any]]] = {}
        self._names: dict[str, dict[str, dict[str, Any]]] = {}
        self._containers: dict[str, list[str]] | None = None

    @classmethod
    def read(cls, graphroot: str, runroot: str, driver: str, kinds: tuple[str, ...] = KINDS) -> Glance:
        """Read the tables of a store; :class:`Odd` when it takes more than that.

        Args:
            kinds: the tables to read; the others are taken to be empty.
        """
        tables: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        texts: dict[str, str] = {}
        for kind in kinds:
            directory = os.path.join(graphroot, f"{driver}-{kind}")
            tables[kind], text = _table(os.path.join(directory, f"{kind}.json"))
            if _is_canonical(tables[kind], text):
                texts[kind] = text
            if kind in _VOLATILE:
                more, _ = _table(os.path.join(directory, f"volatile-{kind}.json"))
                tables[kind] += more
            _check(tables[kind])
        mounts, _ = _array(os.path.join(runroot, f"{driver}-layers", "mountpoints.json"))
        paths = {mount["id"]: mount["path"] for mount in mounts if mount.get("count", 0) > 0}
        texts = {k: text for k, text in texts.items() if text.count('{"id":"') == len(tables[k])}
        counts = {mount["id"]: mount["count"] for mount in mounts if mount["id"] in paths}
        made = cls(tables, paths, texts, counts)
        made.driver = driver
        return made

    @classmethod
    def of_catalog(cls, catalog: Catalog) -> Glance:
        """The same of a store that the whole library has opened."""
        from json import loads

        from store.records import encode

        tables = {
            "layers": [loads(encode(record)) for record in catalog.layers],
            "images": [loads(encode(record)) for record in catalog.images],
            "containers": [loads(encode(record)) for record in catalog.containers],
        }
        return cls(tables, catalog.mount_paths())

    def exact(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record of that full ID or name."""
        if kind not in self._ids:
            self._ids[kind] = {record["id"]: record for record in self.tables[kind]}
            self._names[kind] = {n: r for r in self.tables[kind] for n in r.get("names", ())}
        return self._ids[kind].get(key) or self._names[kind].get(key)

    def resolve(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record of that ID, name, layer (of containers), or beginning of one ID (FORMAT 2.5)."""
        found = self.exact(kind, key)
        if found is None and kind == "containers":
            found = next((record for record in self.tables[kind] if key and record.get("layer") == key), None)
        if found is None and key and " " not in key:
            beginning = [record for record in self.tables[kind] if record["id"].startswith(key)]
            found = beginning[0] if len(beginning) == 1 else None
        return found

    def anything(self, key: str) -> dict[str, Any] | None:
        """The layer, else image, else container of that key; no ID prefix beats a full ID or name."""
        for look in (self.exact, self.resolve):
            for kind in KINDS:
                if (found := look(kind, key)) is not None:
                    return found
        return None

    # -- relations -------------------------------------------------------------------------------

    def chain(self, layer_id: str) -> list[str]:
        """IDs of the layer and its ancestors, base first."""
        found: dict[str, None] = {}
        layer = self.exact("layers", layer_id)
        while layer is not None and layer["id"] not in found:
            found[layer["id"]] = None
            layer = self.exact("layers", layer.get("parent", ""))
        return list(found)[::-1]

    def containers_of(self, image_id: str) -> list[str]:
        """IDs of the containers made from that image."""
        if self._containers is None:
            self._containers = {}
            for container in self.tables["containers"]:
                self._containers.setdefault(container.get("image", ""), []).append(container["id"])
        return self._containers.get(image_id, [])

    def image_name(self, image_id: str) -> str:
        """The first name of that image; empty if it has none, or is not there."""
        image = self.exact("images", image_id)
        return next(iter(image.get("names", ())), "") if image else ""

    def mount_count(self, layer_id: str) -> int:
        """How often the layer is mounted, by any tool."""
        return self.counts.get(layer_id, 0)


def digests(image: dict[str, Any]) -> list[str]:
    """The digest an image is known by, and those of its manifests (FORMAT 4)."""
    items = image.get("big-data-digests", {}).items()
    manifests = (digest for key, digest in items if key.startswith("manifest"))
    return [digest for digest in dict.fromkeys((image.get("digest"), *manifests)) if digest]


def _array(path: str) -> tuple[list[Any], str]:
    """The JSON array in a file, and its text; empty when there is none."""
    try:
        with open(path, "rb", buffering=0) as file:
            text = file.readall().decode("utf-8", "replace")
    except FileNotFoundError:
        return [], ""
    if not text:
        return [], ""
    try:
        value, end = _scanner()(text, 0)
    except (ValueError, StopIteration, RecursionError, SystemError):
        # The C scanner fails with SystemError for what is no JSON, unless json.decoder was imported.
        raise Odd(path) from None
    if type(value) is not list or end != len(text):
        raise Odd(path)
    return value, text


def _scanner() -> Callable[[str, int], tuple[Any, int]]:
    if _make_scanner is not None:
        scanner: Callable[[str, int], tuple[Any, int]] = _make_scanner(_Settings)
        return scanner
    from json import JSONDecoder

    return JSONDecoder(strict=False).raw_decode


def _table(path: str) -> tuple[list[dict[str, Any]], str]:
    """The records in a table's file, and its text."""
    records, text = _array(path)
    for record in records:
        if type(record) is not dict or type(record.get("id")) is not str or not record["id"]:
            raise Odd(path)
        for key, value in record.items():
            kind = _TYPES.get(key)
            if (type(value) is not kind) if kind else (key.lower() in _TYPES):
                raise Odd(path)
        if "created" not in record or ("flags" in record and record["flags"].get("incomplete")):
            raise Odd(path)
    return records, text


def _is_canonical(records: list[dict[str, Any]], text: str) -> bool:
    """Whether the text is what containers/storage writes: known keys only, no space, nothing empty."""
    if not records or any(piece in text for piece in ('": ', ', "', "[]", "{}", "null")):
        return False
    return all(record.keys() <= _KEYS for record in records)


def _check(records: list[dict[str, Any]]) -> None:
    """Raise :class:`Odd` where two records share an ID or a name."""
    names = [name for record in records for name in record.get("names", ())]
    if len(set(names)) != len(names) or len({record["id"] for record in records}) != len(records):
        raise Odd("an ID or name occurs twice")
