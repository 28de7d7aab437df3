"""What the store raises.

::

    StoreError
    ├── Unknown                     nothing of that ID or name
    │   ├── LayerUnknown            ├── ImageUnknown          ├── ContainerUnknown
    │   ├── ParentUnknown           ├── NotALayer             ├── NotAnImage
    │   ├── NotAContainer           ├── NotAnID               ├── BigDataUnknown
    │   ├── SnapshotUnknown         ├── NoSuchSource          ├── TrashUnknown
    │   ├── OrphanUnknown           └── PlanUnknown
    ├── Taken                       the ID or name belongs to something else
    │   ├── DuplicateID             ├── DuplicateName         └── SnapshotExists
    ├── Busy                        something else needs it
    │   ├── LayerHasChildren        ├── LayerUsedByImage      ├── LayerUsedByContainer
    │   ├── ImageUsedByContainer    ├── InUse                 └── Pinned
    ├── Invalid                     what was asked for cannot be
    │   ├── BadName                 ├── BadValue              ├── BadID
    │   ├── BadBigDataKey           ├── IncompleteOptions     ├── InvalidMappings
    │   ├── NoAvailableIDs          ├── ParentIsContainer     └── NotPristine
    ├── StoreReadOnly               the store, or the part that holds the object, is read-only
    ├── LockTimeout                 a lock stayed taken for too long; names the holder
    ├── BadRecord                   a table or record on disk cannot be used as it is
    ├── LayerNotMounted             no one mounted the layer
    └── SizeUnknown, DigestUnknown  never recorded, and not computable

``original`` is the text containers/storage prints for the condition (its ``types/errors.go``);
it is empty where that library knows no such condition. It fails for a read-only store that gives one
name to several objects too; here the last one has the name, as in a store that can be written. What its
check reports as errors are :class:`store.check.Kind`. Driver errors (``drivers.errors``) and
``OSError`` pass through the store unchanged.
"""

from __future__ import annotations

from typing import ClassVar


class StoreError(Exception):
    """Base of everything the store raises on purpose.

    Attributes:
        holder: ID of the object that has the ID or name, or needs the object; empty where there is none.
    """

    original: ClassVar[str] = ""

    def __init__(self, text: str = "", *, holder: str = "") -> None:
        super().__init__(text)
        self.holder = holder


class Unknown(StoreError):
    """No object of that ID or name."""


class LayerUnknown(Unknown):
    """No such layer."""

    original = "layer not known"


class ParentUnknown(Unknown):
    """The layer named as parent does not exist."""

    original = "parent of layer not known"


class ImageUnknown(Unknown):
    """No such image."""

    original = "image not known"


class ContainerUnknown(Unknown):
    """No such container."""

    original = "container not known"


class NotALayer(Unknown):
    """The text names no layer."""

    original = "identifier is not a layer"


class NotAnImage(Unknown):
    """The text names no image."""

    original = "identifier is not an image"


class NotAContainer(Unknown):
    """The text names no container."""

    original = "identifier is not a container"


class NotAnID(Unknown):
    """The text names no layer, image or container."""

    original = "identifier is not a layer, image, or container"


class BigDataUnknown(Unknown):
    """The object has no big data item of that key."""

    original = "file does not exist"


class SnapshotUnknown(Unknown):
    """The container has no snapshot of that name."""


class NoSuchSource(Unknown):
    """The text names nothing a container could be filled from."""


class TrashUnknown(Unknown):
    """The trash has no entry of that name (any more)."""


class OrphanUnknown(Unknown):
    """No orphan of that kind and ID (any more)."""


class PlanUnknown(Unknown):
    """No preview gave that token, or it is too old."""


class Taken(StoreError):
    """The ID or name already belongs to something."""


class DuplicateID(Taken):
    """The ID is in use."""

    original = "that ID is already in use"


class DuplicateName(Taken):
    """The name is in use by another object of the same kind."""

    original = "that name is already in use"


class SnapshotExists(Taken):
    """The container already has a snapshot of that name."""


class Busy(StoreError):
    """Something else still needs the object."""


class LayerHasChildren(Busy):
    """Other layers were made from this one."""

    original = "layer has children"


class LayerUsedByImage(Busy):
    """An image has this layer as its top or as a mapped top layer."""

    original = "layer is in use by an image"


class LayerUsedByContainer(Busy):
    """A container's content is in this layer, or the layer is mounted."""

    original = "layer is in use by a container"


class ImageUsedByContainer(Busy):
    """A container was made from the image."""

    original = "image is in use by a container"


class InUse(Busy):
    """Mounted, or otherwise held; the text names the holder."""


class Pinned(Busy):
    """Protected by its ``pinned`` mark."""


class Invalid(StoreError):
    """The request cannot be fulfilled as it was put."""


class BadName(Invalid):
    """Not usable as a name."""


class BadValue(Invalid):
    """Not a value this setting or option takes."""


class BadID(Invalid):
    """Not usable as the ID of a new object."""


class BadBigDataKey(Invalid):
    """A big data key that is empty, or has no safe file name."""

    original = "not a valid name for a big data item"


class IncompleteOptions(Invalid):
    """The store options lack a graphroot or a runroot."""

    original = "missing necessary StoreOptions"


class InvalidMappings(Invalid):
    """ID mappings that overlap or are empty, or text that is no mapping."""

    original = "invalid mappings specified"


class NoAvailableIDs(Invalid):
    """Too few unused host IDs for an automatic user namespace."""

    original = "not enough unused IDs in user namespace"


class ParentIsContainer(Invalid):
    """A container's writable layer cannot be the parent of another layer."""

    original = "would-be parent layer is a container"


class NotPristine(Invalid):
    """The container already has content."""


class StoreReadOnly(StoreError):
    """A write was asked of a read-only store."""

    original = "called a write method on a read-only store"


class LockTimeout(StoreError):
    """A lock stayed taken longer than the caller wanted to wait.

    Attributes:
        path: the lock file.
        holders: process IDs that hold the lock, as far as the kernel tells.
    """

    def __init__(self, text: str, *, path: str = "", holders: tuple[int, ...] = ()) -> None:
        super().__init__(text)
        self.path = path
        self.holders = holders


class BadRecord(StoreError):
    """A table, or one record of it, is malformed; nothing on disk was changed."""


class LayerNotMounted(StoreError):
    """The layer is not mounted."""

    original = "layer is not mounted"


class SizeUnknown(StoreError):
    """The size was never recorded and cannot be computed."""

    original = "size is not known"


class DigestUnknown(StoreError):
    """The digest was never recorded and cannot be computed."""

    original = "could not compute digest of item"
