"""What the trash keeps on disk beside the layers' content: one directory per entry.

``<graphroot>/fsd/trash/<entry>`` holds the object's directory as ``data``, big data and tar-split data of
its layers below ``layers``, and everything the tables knew of it in one JSON file, whose name tells how
far the entry is:

``pending.json``
    the object is on its way, in or out. If the tables have its record the entry is void, else all of it
    belongs here (:meth:`store.trash.Trash.recover`);
``entry.json``
    all of it is here;
``purging.json``
    it is being deleted.

A change of state is one rename. Nothing of it is in fsd's state: whoever deletes that loses no data.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from drivers.base import NAME_MAX
from store import codec, durable
from store.errors import BadRecord, TrashUnknown
from store.records import Container, Image, Layer, decode, encode
from store.segment import IN_IMAGE_STORE, VOLATILE
from store.snapshots import TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Kind = Literal["containers", "images", "layers"]
Record = Container | Image | Layer

COMPLETE: Final = "entry.json"
PENDING: Final = "pending.json"
PURGING: Final = "purging.json"
_MARKS: Final = (VOLATILE, IN_IMAGE_STORE)
_CLASSES: Final[dict[str, type[Record]]] = {"containers": Container, "images": Image, "layers": Layer}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One removed object.

    Attributes:
        id: ``<first name, or 12 digits of the ID>@<time>``, unique, one path component; ``/`` is ``%2F``.
        kind, record: the object, as its table knew it.
        layers: the layers that went with it, base first. A layer that is an object itself is among them.
        removed_ns: when, in nanoseconds since the epoch.
        limits: size limits in bytes by layer ID.
        mapped_by: IDs of images that named the removed layer as a mapped copy.
    """

    id: str
    kind: Kind
    record: Record
    layers: tuple[Layer, ...]
    removed_ns: int
    limits: Mapping[str, int] = field(default_factory=dict, hash=False)
    mapped_by: tuple[str, ...] = ()

    @property
    def object_id(self) -> str:
        """The full ID of the removed object."""
        return self.record.id

    @property
    def names(self) -> tuple[str, ...]:
        """The names it had."""
        return self.record.names

    @property
    def top(self) -> str:
        """ID of the layer that holds its whole tree; empty if that stayed, or never was."""
        layer_id = self.record.id if isinstance(self.record, Layer) else self.record.layer
        return layer_id if any(layer.id == layer_id for layer in self.layers) else ""


class Entries:
    """The entries below one directory. Anybody may delete one meanwhile: :class:`TrashUnknown`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, entry_id: str) -> Path:
        """Where an entry is, or would be; ``TrashUnknown`` for what cannot be one."""
        if not entry_id or "/" in entry_id or "\0" in entry_id or entry_id in (".", ".."):
            raise TrashUnknown(f"{entry_id!r} is no entry of the trash")
        return self.root / entry_id

    def ids(self, stage: str = COMPLETE) -> list[str]:
        """The entries in one stage."""
        with suppress(FileNotFoundError):
            return sorted(path.name for path in self.root.iterdir() if (path / stage).exists())
        return []

    def strays(self) -> list[str]:
        """Directories without a stage: what a process left that died when it made one."""
        with suppress(FileNotFoundError):
            stages = (COMPLETE, PENDING, PURGING)
            return [p.name for p in self.root.iterdir() if not any((p / stage).exists() for stage in stages)]
        return []

    def read(self, entry_id: str, stage: str = COMPLETE) -> Entry:
        """One entry; ``TrashUnknown``, ``BadRecord`` (its file is damaged)."""
        path = self.directory(entry_id) / stage
        try:
            return _parse(entry_id, codec.loads(path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            raise TrashUnknown(f"the trash has no entry {entry_id!r}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise BadRecord(f"{path} cannot be read: {error!r}") from error

    def all(self) -> Iterator[Entry]:
        """Every complete entry that can be read, by ID."""
        for entry_id in self.ids():
            with suppress(TrashUnknown, BadRecord):
                yield self.read(entry_id)

    def begin(self, entry: Entry) -> Entry:
        """Write a new entry as pending; its ID gets a number if it is taken."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, taken = 0, entry
        while True:
            try:
                self.directory(taken.id).mkdir(mode=0o700)
                break
            except FileExistsError:
                number += 1
                taken = replace(entry, id=f"{entry.id}_{number}")
        self.write(taken)
        return taken

    def write(self, entry: Entry) -> None:
        """Write the file of a pending entry."""
        text = json.dumps(_fields(entry), indent=1)
        durable.write_atomic(self.directory(entry.id) / PENDING, codec.to_bytes(text))
        durable.sync_directory(self.root)

    def advance(self, entry_id: str, stage: str, to: str) -> None:
        """Put an entry into another stage; ``TrashUnknown`` if it is not in ``stage`` any more."""
        directory = self.directory(entry_id)
        try:
            os.rename(directory / stage, directory / to)
        except (FileNotFoundError, NotADirectoryError):
            raise TrashUnknown(f"the trash has no entry {entry_id!r} any more") from None
        durable.sync_directory(directory)

    def erase(self, entry_id: str) -> None:
        """Delete an entry's directory; the file that tells its stage goes last."""
        directory = self.directory(entry_id)
        for name in ("data", "layers"):
            durable.remove_tree(directory / name)
        durable.remove_tree(directory)


def new_id(record: Record, now_ns: int) -> str:
    """The ID of an entry made now."""
    stamp = time.strftime(TIMESTAMP, time.gmtime(now_ns // 10**9))
    label = record.names[0].replace("%", "%25").replace("/", "%2F") if record.names else record.id[:12]
    if len(label.encode(errors="surrogateescape")) > NAME_MAX - len(stamp) - 8:
        label = record.id[:12]
    return f"{label}@{stamp}"


def _fields(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "removed": entry.removed_ns,
        "record": _packed(entry.record),
        "layers": [_packed(layer) for layer in entry.layers],
        "limits": dict(entry.limits),
        "mapped-by": list(entry.mapped_by),
    }


def _packed(record: Record) -> dict[str, Any]:
    """The record's own JSON as text, and which file of its table it was in."""
    return {"json": encode(record), **{mark: getattr(record, mark, False) for mark in _MARKS}}


def _unpacked(cls: type[Any], value: dict[str, Any]) -> Any:
    marks = tuple(mark for mark in _MARKS if value.get(mark))
    return decode(cls, codec.loads(value["json"].encode()), marks)


def _parse(entry_id: str, value: Any) -> Entry:
    kind: Kind = value["kind"]
    return Entry(
        id=entry_id,
        kind=kind,
        record=_unpacked(_CLASSES[kind], value["record"]),
        layers=tuple(_unpacked(Layer, item) for item in value["layers"]),
        removed_ns=int(value["removed"]),
        limits={str(key): int(size) for key, size in value["limits"].items()},
        mapped_by=tuple(str(image_id) for image_id in value["mapped-by"]),
    )
