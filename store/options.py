"""What may be said about a new layer, image or container."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from drivers.idmap import IDMap, IDMappings


class BigData(NamedTuple):
    """A blob for a new object; the digest is computed when it is not given."""

    key: str
    data: bytes
    digest: str = ""


DigestManifest = Callable[[bytes], str]
"""Gives the ``sha256:…`` digest by which a manifest is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IDMapOptions:
    """ID mappings of a new layer or container.

    Attributes:
        uidmap, gidmap: mappings wanted; empty inherits them from the parent layer, or from the store's
            options when there is none.
        host_uidmap, host_gidmap: the host's own IDs are wanted, whatever the parent has.
    """

    uidmap: tuple[IDMap, ...] = ()
    gidmap: tuple[IDMap, ...] = ()
    host_uidmap: bool = False
    host_gidmap: bool = False

    @property
    def mappings(self) -> IDMappings:
        """The mappings asked for."""
        return IDMappings(self.uidmap, self.gidmap)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions(IDMapOptions):
    """Options of a new layer.

    Attributes:
        template: a layer whose content, digests and diff are copied although ``parent`` is recorded.
        original_digest, uncompressed_digest: digests known already; checked against the archive.
        storage_opts: driver's storage options such as ``size``.
        volatile: record it where a reboot may lose it; older tools do not see such records, so this
            only has an effect where the table already has a volatile file.
    """

    template: str = ""
    original_digest: str = ""
    uncompressed_digest: str = ""
    storage_opts: Mapping[str, str] = field(default_factory=dict)
    metadata: str = ""
    flags: Mapping[str, Any] = field(default_factory=dict)
    big_data: tuple[BigData, ...] | list[BigData] = ()
    volatile: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """Options of a new image.

    Attributes:
        created: RFC 3339 time; now when empty.
        digest: digest the image is known by; that of its manifest when big data brings one.
        names_history: names it had before.
        flags: free map of the caller's.
    """

    created: str = ""
    digest: str = ""
    big_data: tuple[BigData, ...] | list[BigData] | list[tuple[str, bytes]] = ()
    names_history: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoUserNs:
    """How an automatic user namespace is chosen.

    Attributes:
        size: IDs wanted; 0 derives it from the image's user database.
        initial_size: smallest size when it is derived.
        passwd_file, group_file: files of the host that are read instead of the image's own.
        additional_uidmap, additional_gidmap: mappings to add.
    """

    size: int = 0
    initial_size: int = 0
    passwd_file: str = ""
    group_file: str = ""
    additional_uidmap: tuple[IDMap, ...] = ()
    additional_gidmap: tuple[IDMap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions(IDMapOptions):
    """Options of a new container.

    Attributes:
        mount_label, process_label: SELinux labels; both or neither.
        mount_options: options its layer is mounted with.
        storage_opts: driver's storage options such as ``size``.
        layer_names: names of its layer; none by default.
        auto_userns: choose a free range of host IDs.
        volatile: sets the ``Volatile`` flag: its content need not survive a crash.
        flags: further flags of the caller's.
    """

    mount_label: str = ""
    process_label: str = ""
    mount_options: tuple[str, ...] = ()
    storage_opts: Mapping[str, str] = field(default_factory=dict)
    layer_names: tuple[str, ...] = ()
    auto_userns: AutoUserNs | None = None
    volatile: bool = False
    flags: Mapping[str, Any] = field(default_factory=dict)
    big_data: tuple[BigData, ...] | list[BigData] = ()
