"""The graph driver interface.

A graph driver keeps *layers*: directory trees named by ID, each either empty at birth or a
writable copy of its *parent*. It knows nothing of names, tables or images; the store does.

Vocabulary: ``layer_id`` is the full ID and a single directory name; ``parent`` is the ID of the
layer a new one starts as a copy of, ``None`` for a base layer; a *template* is a layer whose
content is copied although another layer is recorded as the parent.

Every method is synchronous and may block on the disk. A method either does all of its work or
leaves the driver as it was, and raises a :class:`~drivers.errors.DriverError` or an ``OSError``
that carries errno and path.
"""

from __future__ import annotations

import enum
import os
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from drivers.errors import BadLayerID, LayerUnknown, NotSupported
from drivers.idmap import IDMappings
from drivers.reconfigure import IMAGEROOT, Reconfigurable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from drivers.aside import Aside
    from drivers.overlay_layers import AdditionalLayer
    from drivers.snapshots import Snapshots

NAME_MAX = 255
"""Longest directory entry in bytes (limits.h; BTRFS_NAME_LEN)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver declares it can do; code and tests ask these, never a driver's name."""

    snapshots: bool = False
    """Keeps read-only point-in-time copies in constant time (:meth:`Driver.snapshots`)."""
    quota: bool = False
    """Can limit the size of a layer."""
    shifting: bool = False
    """Can mount a layer with shifted IDs instead of rewriting owners."""
    native_changes: bool = False
    """Finds changes in time proportional to them instead of walking both trees."""
    reproduces_exact_diffs: bool = False
    """``diff`` gives the same bytes as the archive that was applied."""
    additional_stores: bool = False
    """Supports additional read-only image stores of containers/storage."""


class ChangeKind(enum.Enum):
    """The letter is containers/storage's: what ``containers-storage changes`` prints."""

    MODIFIED = "C"
    ADDED = "A"
    DELETED = "D"


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """One changed path, absolute within the layer (``/etc/hosts``), as bytes."""

    path: bytes
    kind: ChangeKind = field(compare=False)


class Compression(enum.IntEnum):
    """How a layer's archive was compressed; the numbers are those of ``layers.json``."""

    NONE = 0
    BZIP2 = 1
    GZIP = 2
    XZ = 3
    ZSTD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What :meth:`Driver.apply_diff` learnt while it unpacked an archive.

    Digests are ``sha256:<hex>``; sizes are bytes. ``diff_*`` speak of the uncompressed archive,
    ``compressed_*`` of the bytes as given. ``content_size`` is the sum of the header sizes. ``ended``: the
    archive ends with the two zero blocks of an end; without them it may have been cut off between two
    entries, or is of a writer that leaves them out.
    """

    diff_digest: str
    diff_size: int
    compressed_digest: str
    compressed_size: int
    compression: Compression
    content_size: int
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    ended: bool = True


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """``size`` in bytes and number of ``inodes`` below a layer's root."""

    size: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """Bytes on disk only this layer refers to, bytes others refer to as well, and how it was found.

    ``method`` is ``qgroup`` (data and metadata, after compression) or ``extents`` (data only, each extent
    with its uncompressed length).
    """

    exclusive: int
    shared: int
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What one tree changes against another, while both stay as they were.

    Attributes:
        changes: sorted by path; all ADDED without an older tree.
        archive: opens an uncompressed tar of the changes, as often as wanted.
        archive_size: bytes of that archive, from the files' attributes alone.
        generations: :meth:`Snapshots.generation` of the very content that was compared, of the new tree and
            the old one; ``None`` where there is no such number.
    """

    changes: Sequence[Change]
    archive: Callable[[], BinaryIO]
    archive_size: Callable[[], int]
    generations: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """Options of a new layer: SELinux label, storage options (``size``), ID mappings, and where it goes."""

    mount_label: str = ""
    storage_opts: Mapping[str, str] = field(default_factory=dict)
    mappings: IDMappings = field(default_factory=IDMappings)
    in_image_store: bool = False
    """In the split image store, if the driver has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """Options of :meth:`Driver.get`; ``options`` are mount options such as ``ro``."""

    mount_label: str = ""
    options: tuple[str, ...] = ()
    mappings: IDMappings = field(default_factory=IDMappings)


DEFAULT_CREATION = Creation()
DEFAULT_MOUNT = MountOptions()


class Driver(Reconfigurable, ABC):
    """One graph driver over its home directory ``<graphroot>/<name>``, and another in the image store.

    Args:
        home: the driver's own directory; created when missing, mode 0700.
        options: driver options without the ``<name>.`` prefix, as text. ``imageroot`` is the split image
            store's graphroot, for every driver.

    Attributes:
        homes: ``home``, and then the driver's directory in the image store, if there is one.

    Raises:
        PrerequisitesMissing, IncompatibleFilesystem, NotSupported, BadOption
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def __init__(self, home: Path, options: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.options = dict(options or {})
        split = self.options.pop(IMAGEROOT, "")
        self.homes: tuple[Path, ...] = (home, *([Path(split) / self.name] if split else ()))

    @abstractmethod
    def create(self, layer_id: str, parent: str | None = None, creation: Creation = DEFAULT_CREATION) -> None:
        """Make a layer: empty with root mode 0555, or a copy of ``parent``.

        Raises:
            BadLayerID, LayerExists, LayerUnknown (the parent), BadOption, OSError
        """

    def create_read_write(
        self, layer_id: str, parent: str | None = None, creation: Creation = DEFAULT_CREATION
    ) -> None:
        """Make a container's layer; the same as :meth:`create` unless a driver tells them apart."""
        self.create(layer_id, parent, creation)

    @abstractmethod
    def create_from_template(
        self,
        layer_id: str,
        template: str,
        parent: str | None = None,
        creation: Creation = DEFAULT_CREATION,
        template_mappings: IDMappings | None = None,
    ) -> None:
        """Make a layer with the content of ``template``, owners shifted to ``creation.mappings``."""

    def settle(self, layer_id: str) -> None:
        """Wait until a layer just made is on the disk, name and content: only then may a record name it."""
        from drivers.syscalls import sync_filesystem

        sync_filesystem(self.path_of(layer_id))

    def precedes(self, layer_id: str, fd: int) -> bool:
        """Whether nothing done to the filesystem of an open file from now on is on the disk before a layer.

        Records of the layer may then be put in place there before :meth:`settle`, which has both on the disk.
        """
        return False

    @abstractmethod
    def remove(self, layer_id: str) -> None:
        """Delete a layer and everything in it; ``LayerUnknown``, ``LayerMounted``."""

    @abstractmethod
    def get(self, layer_id: str, mount: MountOptions = DEFAULT_MOUNT) -> Path:
        """Make the layer's tree available and return its directory; every call needs one :meth:`put`."""

    @abstractmethod
    def put(self, layer_id: str) -> None:
        """Release what :meth:`get` made available; harmless when nothing is."""

    @contextmanager
    def mounted(self, layer_id: str, mount: MountOptions = DEFAULT_MOUNT) -> Iterator[Path]:
        """The layer's directory for the length of a ``with`` block."""
        path = self.get(layer_id, mount)
        try:
            yield path
        finally:
            self.put(layer_id)

    @abstractmethod
    def path_of(self, layer_id: str) -> Path:
        """Where the layer's own files lie on disk, or would in ``home``, without mounting.

        Where a layer only holds its difference to the parent (overlay), this is not its whole tree.

        Raises:
            BadLayerID
        """

    @abstractmethod
    def exists(self, layer_id: str) -> bool:
        """Whether the driver holds the layer; false for an ID no layer can have."""

    @abstractmethod
    def layer_ids(self) -> Iterator[str]:
        """IDs of all layers the driver holds, in no particular order."""

    @abstractmethod
    def status(self) -> list[tuple[str, str]]:
        """Label and value pairs for people, as ``containers-storage status`` prints them."""

    def metadata(self, layer_id: str) -> dict[str, str]:
        """Driver's own facts about a layer; empty where there are none."""
        return {}

    @abstractmethod
    def read_write_disk_usage(self, layer_id: str) -> DiskUsage:
        """Bytes and inodes of the layer's tree."""

    def ownership(self, layer_id: str) -> Ownership:
        """What removing the layer would free, and what it shares; ``NotSupported``, ``LayerUnknown``."""
        raise NotSupported(f"driver {self.name} does not know which bytes layer {layer_id} shares")

    def freed(
        self,
        layer_ids: Sequence[str],
        *,
        snapshots: Sequence[str] = (),
        aside: Sequence[str] = (),
        beside: str | None = None,
    ) -> Ownership:
        """What removing all of these together would free (``exclusive``), and what would stay.

        Args:
            snapshots, aside: keys of snapshots, and of layers set aside.
            beside: a layer that stays and that they were made from; makes the answer come sooner.

        Raises:
            NotSupported, LayerUnknown, SnapshotUnknown, OSError
        """
        raise NotSupported(f"driver {self.name} does not know which bytes layers share")

    def limit(self, layer_id: str) -> int:
        """The layer's size limit in bytes, 0 without one; needs the capability ``quota``."""
        raise NotSupported(f"driver {self.name} cannot limit layer {layer_id}")

    def charged(self, layer_id: str) -> int | None:
        """Bytes that count against the layer's limit, as of the last commit; ``None`` if not known."""
        return None

    def set_limit(self, layer_id: str, size: int) -> None:
        """Limit the layer to ``size`` bytes from now on, 0 lifts it; needs the capability ``quota``.

        Raises:
            NotSupported, LayerUnknown, BadOption (a size the driver does not allow)
        """
        raise NotSupported(f"driver {self.name} cannot limit layer {layer_id} to {size} bytes")

    def cleanup(self) -> None:
        """Undo what the driver did to the system, when no layer is mounted."""
        return None

    def additional_image_stores(self) -> Sequence[Path]:
        """Read-only stores this driver was configured with."""
        return ()

    def find_additional_layer(self, digest: str, reference: str) -> AdditionalLayer | None:
        """A layer that an additional layer store serves, ``None`` if no store does; ``NotSupported``."""
        raise NotSupported(f"driver {self.name} uses no additional layer stores")

    def served_by(self, layer_id: str) -> AdditionalLayer | None:
        """Where an adopted layer has its content, ``None`` if that is its own; :meth:`adopt`."""
        raise NotSupported(f"driver {self.name} uses no additional layer stores")

    def adopt(
        self,
        layer: AdditionalLayer,
        layer_id: str,
        parent: str | None = None,
        creation: Creation = DEFAULT_CREATION,
    ) -> None:
        """Make a layer whose content stays in its layer store; ``NotSupported``, and as :meth:`create`."""
        raise NotSupported(f"driver {self.name} uses no additional layer stores")

    def update_id_map(self, layer_id: str, old: IDMappings, new: IDMappings) -> None:
        """Rewrite every owner in the layer from ``old`` to ``new``."""
        raise NotSupported(f"driver {self.name} cannot rewrite owners of layer {layer_id}")

    def supports_shifting(self) -> bool:
        """Whether :meth:`get` can shift IDs here and now (kernel and filesystem permitting)."""
        return False

    def backlog(self) -> int | None:
        """How many removed directories have not given their space back yet; ``None`` if it is not known."""
        return None

    def snapshots(self) -> Snapshots:
        """The driver's snapshots; ``NotSupported`` without the capability."""
        raise NotSupported(f"driver {self.name} keeps no snapshots")

    def aside(self) -> Aside:
        """Where the driver sets layers aside; ``NotSupported`` without the capability ``snapshots``."""
        raise NotSupported(f"driver {self.name} cannot set layers aside")

    def born_ns(self, layer_id: str) -> int:
        """When the layer was made, in nanoseconds since the epoch; at least, since when it did not change.

        Raises:
            LayerUnknown, BadLayerID
        """
        try:
            status = self.path_of(layer_id).stat()
        except FileNotFoundError:
            raise LayerUnknown(f"driver {self.name} holds no layer {layer_id}") from None
        return min(status.st_ctime_ns, status.st_mtime_ns)

    # -- differences ---------------------------------------------------------------------------

    @abstractmethod
    def changes(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> list[Change]:
        """What the layer changes against ``parent``, sorted by path; all ADDED without a parent."""

    @abstractmethod
    def diff(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> BinaryIO:
        """An uncompressed tar of the changes as a readable stream; close it when done."""

    @abstractmethod
    def diff_size(
        self,
        layer_id: str,
        parent: str | None,
        mappings: IDMappings | None = None,
        parent_mappings: IDMappings | None = None,
    ) -> int:
        """Bytes of file content that :meth:`diff` would carry."""

    @abstractmethod
    def compared(
        self,
        new: Path,
        old: Path | None,
        mappings: IDMappings | None = None,
        old_mappings: IDMappings | None = None,
    ) -> AbstractContextManager[Compared]:
        """Compare two trees of this driver, layers (mounted) or snapshots, by their directories.

        Where the driver can, the result speaks of one point in time until the context is left.

        Raises:
            OSError
        """

    def is_untouched(self, layer_id: str, parent: str) -> bool:
        """Whether the layer is known, without any comparison, to be as it was copied from ``parent``.

        Constant time; false where that cannot be told.
        """
        return False

    @abstractmethod
    def apply_diff(
        self,
        layer_id: str,
        archive: BinaryIO,
        *,
        mappings: IDMappings | None = None,
        tar_split: BinaryIO | None = None,
    ) -> Applied:
        """Unpack a layer archive (plain or compressed tar, whiteouts included) into the layer.

        Args:
            archive: the bytes as they came, read to their end.
            mappings: owners in the archive are container IDs; they are translated to host IDs.
            tar_split: receives uncompressed tar-split JSON lines (FORMAT 5) when given.

        Raises:
            MalformedArchive, HostileArchive, OSError; the layer's content is then undefined and
            the caller removes the layer.
        """


def first_with(directories: Sequence[Path], name: str) -> Path:
    """The entry of that name in the first of the directories that has one, else in the very first."""
    if len(directories) > 1:
        for directory in directories:
            if os.path.lexists(directory / name):
                return directory / name
    return directories[0] / name


def check_layer_id(layer_id: str) -> None:
    """Raise :class:`BadLayerID` unless ``layer_id`` can be one directory name."""
    raw = layer_id.encode("utf-8", "surrogateescape")
    if not raw or layer_id in (".", "..") or b"/" in raw or b"\0" in raw:
        raise BadLayerID(f"layer ID {layer_id!r} is not a directory name")
    if len(raw) > NAME_MAX:
        raise BadLayerID(f"layer ID {layer_id[:32]!r}… has {len(raw)} bytes, {NAME_MAX} are possible")
