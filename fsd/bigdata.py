"""``big-data/``: the named blobs of an object. ``cp FILE big-data/KEY`` sets one, ``rm`` removes it."""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fsd.nodes import Attributes, DirectoryKind, Kind
from fsd.site import ObjectSubject, PartSubject
from fsd.uploads import BytesUpload
from store.bigdata import file_name
from store.erase import remove_big_data
from store.records import Layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsd.contents import Sink
    from fsd.nodes import Node


@dataclass(frozen=True)
class BigDataItem(Kind):
    """One blob, byte for byte."""

    mode = stat.S_IFREG | 0o644
    blocking = True
    writable = True
    takes_attributes = True
    takes_empty = True

    def attributes(self, node: Node) -> Attributes:
        """The recorded size; layers keep none, so theirs is that of the item."""
        return Attributes(self.mode, _size(_part(node)), node.subject.changed_ns())

    def content(self, node: Node) -> bytes:
        """All of it."""
        part = _part(node)
        return _read(part) if _exists(part) else b""

    def open_sink(self, node: Node, emptied: bool) -> Sink:
        """Replaces the item; what is not written over or cut off stays."""
        part = _part(node)
        file_name(part.name)
        sink = BytesUpload(part.site, node.path, lambda data: _write(part, data))
        if not emptied and _exists(part):
            try:
                sink.write_at(0, _read(part))
            except BaseException:
                sink.close()
                raise
        return sink


@dataclass(frozen=True)
class BigData(DirectoryKind):
    """All blobs of an object; ``/`` in a key is written ``%2F``."""

    writable = True  # so who copies into it can set its time at the end, though not its mode

    def lookup(self, node: Node, name: str) -> Node | None:
        """The item of that key."""
        part = _item(node, name)
        return node.child(name, _ITEM, part) if _exists(part) else None

    def entries(self, node: Node) -> Iterator[tuple[str, Node]]:
        """All items."""
        for key in _owner(node).found().big_data_names:
            name = key.replace("/", "%2F")
            yield name, node.child(name, _ITEM, _item(node, name))

    def create(self, node: Node, name: str, regular: bool) -> Node:
        """A new item; it is there once its content was written."""
        if not regular:
            return super().create(node, name, regular)
        part = _item(node, name)
        file_name(part.name)
        return node.child(name, _ITEM, part)

    def unlink(self, node: Node, name: str) -> None:
        """Remove an item."""
        part = _item(node, name)
        if not _exists(part):
            node.refuse(errno.ENOENT, f"there is no big data item {part.name!r}")
        remove_big_data(part.site.store, part.owner.found(), part.name)


_ITEM = BigDataItem()


def _owner(node: Node) -> ObjectSubject:
    return cast("ObjectSubject", node.subject)


def _part(node: Node) -> PartSubject:
    return cast("PartSubject", node.subject)


def _item(node: Node, name: str) -> PartSubject:
    owner = _owner(node)
    return PartSubject(owner.site, owner, name.replace("%2F", "/"))


def _exists(part: PartSubject) -> bool:
    return part.name in part.owner.found().big_data_names


def _size(part: PartSubject) -> int:
    record = part.owner.found()
    if not _exists(part):
        return 0
    return len(_read(part)) if isinstance(record, Layer) else record.big_data_sizes.get(part.name, 0)


def _read(part: PartSubject) -> bytes:
    store = part.site.store
    read = {
        "layers": store.layer_big_data,
        "images": store.image_big_data,
        "containers": store.container_big_data,
    }[part.owner.table]
    return read(part.owner.id, part.name)


def _write(part: PartSubject, data: bytes) -> None:
    store = part.site.store
    if part.owner.table == "layers":
        store.set_layer_big_data(part.owner.id, part.name, data)
    elif part.owner.table == "images":
        store.set_image_big_data(part.owner.id, part.name, data)
    else:
        store.set_container_big_data(part.owner.id, part.name, data)
