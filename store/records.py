"""The records of the store's tables: :class:`Layer`, :class:`Image`, :class:`Container` and
:class:`MountPoint`, and their form on disk (FORMAT 2.1-2.4).

Records are frozen; change one with :func:`dataclasses.replace`. A schema per class lists the JSON
keys in the order in which containers/storage writes them. Keys we do not know are kept in
``extra`` and written back where they stood, since a newer podman may need them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from drivers.idmap import IDMap, IDMappings
from store.codec import ZERO_TIME, dumps, parse_time
from store.errors import BadRecord, BadValue

__all__ = ["Container", "Extra", "IDMap", "Image", "Layer", "MountPoint", "decode", "encode", "parse_time"]

INCOMPLETE: Final = "incomplete"
"""Flag of a layer whose creation or removal is under way; loading deletes such layers (FORMAT 7)."""

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


def _nothing() -> Mapping[str, Any]:
    return NOTHING


class Extra(NamedTuple):
    """An unknown key, and the place in the schema of the known key it followed (-1: none)."""

    after: int
    key: str
    value: Any


def _created_ns(text: str) -> int:
    try:
        return parse_time(text)
    except BadValue:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A directory tree kept by the graph driver, and what is known of the diff that made it.

    Digests are ``sha256:<hex>`` or empty; sizes are bytes. ``diff_size`` is 0 or -1 where it is not
    known; ask :attr:`size`.
    """

    id: str
    names: tuple[str, ...] = ()
    parent: str = ""
    metadata: str = ""
    mount_label: str = ""
    created: str = ZERO_TIME
    compressed_digest: str = ""
    compressed_size: int = 0
    diff_digest: str = ""
    toc_digest: str = ""
    diff_size: int = 0
    compression: int = 0
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=_nothing, hash=False)
    uidmap: tuple[IDMap, ...] = ()
    gidmap: tuple[IDMap, ...] = ()
    big_data_names: tuple[str, ...] = ()
    extra: tuple[Extra, ...] = field(default=(), hash=False)
    read_only: bool = False
    """Comes from an additional, read-only store."""
    volatile: bool = False
    """Is kept in the table's volatile file, which a reboot may lose."""
    in_image_store: bool = False
    """Is kept in the split image store, and so is its tree."""

    @property
    def created_ns(self) -> int:
        """``created`` in nanoseconds since the epoch; 0 if it is no time."""
        return _created_ns(self.created)

    @property
    def incomplete(self) -> bool:
        """Whether its creation or removal never finished."""
        return bool(self.flags.get(INCOMPLETE, False)) if self.flags else False

    @property
    def size(self) -> int:
        """Bytes of the uncompressed diff, or -1 if no diff was recorded."""
        return self.diff_size if self.diff_digest or self.toc_digest else -1

    @property
    def mappings(self) -> IDMappings:
        """The owners' mapping on disk; identity when none is recorded."""
        return IDMappings(self.uidmap, self.gidmap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A named pointer to a top layer, with named blobs (big data) such as manifest and config."""

    id: str
    digest: str = ""
    names: tuple[str, ...] = ()
    names_history: tuple[str, ...] = ()
    layer: str = ""
    mapped_layers: tuple[str, ...] = ()
    metadata: str = ""
    big_data_names: tuple[str, ...] = ()
    big_data_sizes: Mapping[str, int] = field(default_factory=_nothing, hash=False)
    big_data_digests: Mapping[str, str] = field(default_factory=_nothing, hash=False)
    created: str = ZERO_TIME
    flags: Mapping[str, Any] = field(default_factory=_nothing, hash=False)
    extra: tuple[Extra, ...] = field(default=(), hash=False)
    read_only: bool = False
    """Comes from an additional, read-only store."""
    volatile: bool = False
    in_image_store: bool = False
    """Is kept in the split image store, and so is its big data."""

    @property
    def created_ns(self) -> int:
        """``created`` in nanoseconds since the epoch; 0 if it is no time."""
        return _created_ns(self.created)

    @property
    def digests(self) -> tuple[str, ...]:
        """``digest`` and the digests of all manifests, without repeats (FORMAT 4)."""
        manifests = (self.big_data_digests[k] for k in self.big_data_digests if k.startswith("manifest"))
        return tuple(dict.fromkeys(d for d in (self.digest, *manifests) if d))


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A writable layer made from an image, with big data and two private directories."""

    id: str
    names: tuple[str, ...] = ()
    image: str = ""
    layer: str = ""
    metadata: str = ""
    big_data_names: tuple[str, ...] = ()
    big_data_sizes: Mapping[str, int] = field(default_factory=_nothing, hash=False)
    big_data_digests: Mapping[str, str] = field(default_factory=_nothing, hash=False)
    created: str = ZERO_TIME
    uidmap: tuple[IDMap, ...] = ()
    gidmap: tuple[IDMap, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=_nothing, hash=False)
    extra: tuple[Extra, ...] = field(default=(), hash=False)
    read_only: bool = False
    volatile: bool = False
    """Is kept in the table's volatile file, which a reboot may lose."""

    @property
    def created_ns(self) -> int:
        """``created`` in nanoseconds since the epoch; 0 if it is no time."""
        return _created_ns(self.created)

    @property
    def mount_label(self) -> str:
        """SELinux label of the container's mounts."""
        return str(self.flags.get("MountLabel", ""))

    @property
    def process_label(self) -> str:
        """SELinux label of the container's processes."""
        return str(self.flags.get("ProcessLabel", ""))

    @property
    def mount_options(self) -> tuple[str, ...]:
        """Options the container's layer is mounted with."""
        options = self.flags.get("MountOpts") or ()
        return tuple(str(option) for option in options) if isinstance(options, (list, tuple)) else ()

    @property
    def mappings(self) -> IDMappings:
        """The container's user namespace; identity when none is recorded."""
        return IDMappings(self.uidmap, self.gidmap)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """Where a layer is mounted and how often (shared by all processes, lost at reboot)."""

    id: str
    path: str = ""
    count: int = 0


class Identified(Protocol):
    """What all records have."""

    @property
    def id(self) -> str:
        """The full ID."""


R = TypeVar("R", bound=Identified)

# -- schemas -------------------------------------------------------------------------------------


def _texts(value: list[Any]) -> tuple[str, ...]:
    for item in value:
        if type(item) is not str:
            raise BadRecord(f"{item!r:.60} is not text")
    return tuple(value)


def _numbers(value: list[Any]) -> tuple[int, ...]:
    for item in value:
        if type(item) is not int:
            raise BadRecord(f"{item!r:.60} is not a whole number")
    return tuple(value)


def _idmaps(value: list[Any]) -> tuple[IDMap, ...]:
    try:
        return tuple(IDMap(int(m["container_id"]), int(m["host_id"]), int(m["size"])) for m in value)
    except (TypeError, KeyError, ValueError) as error:
        raise BadRecord(f"malformed ID map: {error!r}") from None


def _sizes(value: dict[str, Any]) -> dict[str, int]:
    _numbers(list(value.values()))
    return value


def _digests(value: dict[str, Any]) -> dict[str, str]:
    _texts(list(value.values()))
    return value


def _encode_idmaps(maps: tuple[IDMap, ...]) -> str:
    return dumps(
        [{"container_id": m.container_id, "host_id": m.host_id, "size": m.size} for m in maps],
        sort_keys=False,
    )


class Kind(NamedTuple):
    """A type of JSON value: what the parser must give, and how it becomes a field and back."""

    json: type
    decode: Callable[[Any], Any] | None = None
    encode: Callable[[Any], str] = dumps


TEXT: Final = Kind(str)
NUMBER: Final = Kind(int)
TEXTS: Final = Kind(list, _texts)
NUMBERS: Final = Kind(list, _numbers)
IDMAPS: Final = Kind(list, _idmaps, _encode_idmaps)
FLAGS: Final = Kind(dict, None, lambda v: dumps(dict(v)))
SIZES: Final = Kind(dict, _sizes, lambda v: dumps(dict(v)))
DIGESTS: Final = Kind(dict, _digests, lambda v: dumps(dict(v)))


class Field(NamedTuple):
    """One key of a record on disk; ``always`` says it is written even when empty."""

    key: str
    attribute: str
    kind: Kind
    always: bool = False


LAYER_SCHEMA: Final = (
    Field("id", "id", TEXT, True),
    Field("names", "names", TEXTS),
    Field("parent", "parent", TEXT),
    Field("metadata", "metadata", TEXT),
    Field("mountlabel", "mount_label", TEXT),
    Field("created", "created", TEXT, True),
    Field("compressed-diff-digest", "compressed_digest", TEXT),
    Field("compressed-size", "compressed_size", NUMBER),
    Field("diff-digest", "diff_digest", TEXT),
    Field("toc-digest", "toc_digest", TEXT),
    Field("diff-size", "diff_size", NUMBER),
    Field("compression", "compression", NUMBER),
    Field("uidset", "uids", NUMBERS),
    Field("gidset", "gids", NUMBERS),
    Field("flags", "flags", FLAGS),
    Field("uidmap", "uidmap", IDMAPS),
    Field("gidmap", "gidmap", IDMAPS),
    Field("big-data-names", "big_data_names", TEXTS),
)
IMAGE_SCHEMA: Final = (
    Field("id", "id", TEXT, True),
    Field("digest", "digest", TEXT),
    Field("names", "names", TEXTS),
    Field("names-history", "names_history", TEXTS),
    Field("layer", "layer", TEXT),
    Field("mapped-layers", "mapped_layers", TEXTS),
    Field("metadata", "metadata", TEXT),
    Field("big-data-names", "big_data_names", TEXTS),
    Field("big-data-sizes", "big_data_sizes", SIZES),
    Field("big-data-digests", "big_data_digests", DIGESTS),
    Field("created", "created", TEXT, True),
    Field("flags", "flags", FLAGS),
)
CONTAINER_SCHEMA: Final = (
    Field("id", "id", TEXT, True),
    Field("names", "names", TEXTS),
    Field("image", "image", TEXT, True),
    Field("layer", "layer", TEXT, True),
    Field("metadata", "metadata", TEXT),
    Field("big-data-names", "big_data_names", TEXTS),
    Field("big-data-sizes", "big_data_sizes", SIZES),
    Field("big-data-digests", "big_data_digests", DIGESTS),
    Field("created", "created", TEXT, True),
    Field("uidmap", "uidmap", IDMAPS),
    Field("gidmap", "gidmap", IDMAPS),
    Field("flags", "flags", FLAGS),
)
MOUNT_SCHEMA: Final = (
    Field("id", "id", TEXT, True),
    Field("path", "path", TEXT, True),
    Field("count", "count", NUMBER, True),
)

SCHEMAS: Final[Mapping[type, tuple[Field, ...]]] = {
    Layer: LAYER_SCHEMA,
    Image: IMAGE_SCHEMA,
    Container: CONTAINER_SCHEMA,
    MountPoint: MOUNT_SCHEMA,
}
_DECODERS: Final = {
    cls: {f.key: (f.attribute, f.kind.json, f.kind.decode) for f in schema} for cls, schema in SCHEMAS.items()
}
_POSITIONS: Final = {
    cls: {f.key: number for number, f in enumerate(schema)} for cls, schema in SCHEMAS.items()
}

# -- decoding and encoding -----------------------------------------------------------------------


def _open_twin(cls: type[Any]) -> tuple[type[Any], dict[str, Any]]:
    """A class laid out like the frozen ``cls`` but not frozen, and the defaults of all its fields.

    A frozen dataclass sets each of its twenty fields through ``object.__setattr__``, several times the
    cost of plain assignment: a table of 10,000 layers would take 30 ms longer. So a record is made as
    a twin and then becomes a ``cls``, which CPython allows for equal slots.
    """
    defaults = {f.name: NOTHING if f.default is MISSING else f.default for f in fields(cls)}
    return make_dataclass(f"_Open{cls.__name__}", list(defaults), slots=True, eq=False, repr=False), defaults


_TWINS: Final = {cls: _open_twin(cls) for cls in SCHEMAS}


def decode(cls: type[R], value: Any, marks: tuple[str, ...] = ()) -> R:
    """The record for one parsed JSON object.

    Keys are matched without regard to case and ``null`` means absent, as Go's decoder does it.

    Args:
        marks: attributes that are true because of where the record comes from.

    Raises:
        BadRecord: not an object, no ``id``, or a value of the wrong type.
    """
    if type(value) is not dict:
        raise BadRecord(f"a record must be an object, not {value!r:.60}")
    decoders = _DECODERS[cls]
    twin, defaults = _TWINS[cls]
    made = defaults.copy()
    for mark in marks:
        made[mark] = True
    if not value.keys() <= decoders.keys():
        value, extra = _sort_out(cls, value)
        if extra:
            made["extra"] = extra
    for key, item in value.items():
        attribute, kind, convert = decoders[key]
        if type(item) is kind:
            made[attribute] = convert(item) if convert else item
        elif item is not None:
            raise BadRecord(f"{key}: {item!r:.60} is not of type {kind.__name__}")
    if not made["id"]:
        raise BadRecord("the record has no id")
    record: Any = twin(**made)
    record.__class__ = cls
    finished: R = record
    return finished


def _sort_out(cls: type, value: dict[str, Any]) -> tuple[dict[str, Any], tuple[Extra, ...]]:
    """Known keys under their proper spelling, and the unknown ones with their places."""
    positions = _POSITIONS[cls]
    known: dict[str, Any] = {}
    extra: list[Extra] = []
    after = -1
    for key, item in value.items():
        name = key if key in positions else key.lower()
        if name in positions:
            known[name] = item
            after = max(after, positions[name])
        elif cls is not MountPoint:
            extra.append(Extra(after, key, item))
    return known, tuple(extra)


def encode(record: Identified) -> str:
    """The record as containers/storage writes it: JSON text on one line."""
    cls = type(record)
    extra = iter(getattr(record, "extra", ()))
    pending = next(extra, None)
    parts: list[str] = []
    for number, (key, attribute, kind, always) in enumerate(SCHEMAS[cls]):
        while pending is not None and pending.after < number:
            parts.append(f"{dumps(pending.key)}:{dumps(pending.value, sort_keys=False)}")
            pending = next(extra, None)
        value = getattr(record, attribute)
        if value or always:
            parts.append(f'"{key}":{kind.encode(value)}')
    if pending is not None:
        parts += (f"{dumps(e.key)}:{dumps(e.value, sort_keys=False)}" for e in (pending, *extra))
    return "{" + ",".join(parts) + "}"
