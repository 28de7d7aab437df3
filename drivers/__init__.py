"""Graph drivers: layers as directory trees, behind one interface.

::

    base, errors, idmap     the interface, what it raises, ID mappings; snapshots, aside: parts of it
    options, reconfigure    values of options, and others for a driver that is open
    syscalls, processes     Linux calls the standard library lacks; names that tell who uses them
    copytree, usage         whole trees copied, removed and counted; staging: where that is done
    shifting, selinux       owners and labels of whole layers

    vfs                     a plain directory per layer
    btrfs, btrfs_home       a subvolume per layer; where they are. btrfs_ioctl, btrfs_tree: the kernel's
                            interface, and over it
      btrfs_commits, btrfs_flush, btrfs_removal     what is on the disk; subvolumes removed
      btrfs_quota, btrfs_usage, btrfs_freed         limits and sizes
      btrfs_snapshots, btrfs_aside                  snapshots; layers in the trash
      btrfs_changes           quick diffs, on btrfs_send, btrfs_names, btrfs_lineage, pruned, sparse
    overlay                 upper directories, put together by a mount. overlay_links, overlay_upper,
                            overlay_changes: what is in them; overlay_mount, overlay_views, overlay_features:
                            mounts; overlay_options; overlay_layers: layers of additional stores

    naive, changes          differences between any two trees
    archive, archive_input  layer archives in, on compress, zstdframes, ahead, limits; archive_native: in C
      unpack, confine, beneath, rescue   entries into a tree, and never outside it
    tarwriter, tarreader, tarformat      archives out, and their format
    tarsplit, tarsplit_file, tarindex    what makes an archive the same again, byte for byte, at any offset

    conformance, conformance_*           the checks every driver passes

Implementations are imported when they are opened, so that naming a driver costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from drivers.errors import (
    BadOption,
    IncompatibleFilesystem,
    NotSupported,
    PrerequisitesMissing,
    SeveralDrivers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from drivers.base import Driver

__all__ = ["driver_class", "driver_names", "driver_options", "open_driver", "prior_drivers"]

_REGISTERED = {
    "overlay": ("drivers.overlay", "OverlayDriver"),
    "btrfs": ("drivers.btrfs", "BtrfsDriver"),
    "vfs": ("drivers.vfs", "VfsDriver"),
}
"""In order of priority, which is containers/storage's (FORMAT 8.2)."""

_ALIASES = {"overlay2": "overlay"}
_FOREIGN = frozenset({"aufs", "zfs", "devicemapper", "thinpool", "windows"})
_COPIES_EVERYTHING = "vfs"
_UNUSABLE = (NotSupported, PrerequisitesMissing, IncompatibleFilesystem)


def driver_names() -> tuple[str, ...]:
    """Names of the drivers there are, in order of priority."""
    return tuple(_REGISTERED)


def driver_class(name: str) -> type[Driver]:
    """The class of driver ``name``; ``NotSupported`` names the ones there are."""
    try:
        module, attribute = _REGISTERED[_ALIASES.get(name, name)]
    except KeyError:
        known = ", ".join(_REGISTERED)
        raise NotSupported(f"there is no storage driver {name!r}; known are {known}") from None
    found: type[Driver] = getattr(importlib.import_module(module), attribute)
    return found


def prior_drivers(graphroot: Path) -> tuple[str, ...]:
    """Drivers that have a home directory in ``graphroot``, in order of priority."""
    return tuple(name for name in _REGISTERED if (graphroot / name).is_dir())


def open_driver(
    graphroot: Path,
    name: str = "",
    options: Mapping[str, str] | Sequence[str] = (),
    priority: Sequence[str] = (),
) -> Driver:
    """Open the driver of a store as containers/storage chooses it (FORMAT 8.2).

    A driver that is named is used. Otherwise the one whose home directory exists, unless that is vfs and
    ``priority`` does not ask for it; otherwise the first by ``priority`` that works here.

    Args:
        options: ``<driver>.<key>=<value>`` texts or a mapping of the same; other drivers' are skipped.

    Raises:
        SeveralDrivers: home directories of two or more drivers exist and none was named.
        NotSupported, PrerequisitesMissing, IncompatibleFilesystem, BadOption
    """
    if name:
        return _open(graphroot, name, options)
    prior = _prior(graphroot, priority)
    if len(prior) > 1:
        raise SeveralDrivers(
            f"{graphroot} contains several graph drivers: {', '.join(prior)}; "
            "name the one to use, or remove the others' directories"
        )
    if prior:
        return _open(graphroot, prior[0], options)
    return _first_usable(graphroot, priority, options)


def _prior(graphroot: Path, priority: Sequence[str]) -> list[str]:
    present = prior_drivers(graphroot)
    return [name for name in present if name != _COPIES_EVERYTHING or name in priority]


def _first_usable(
    graphroot: Path, priority: Sequence[str], options: Mapping[str, str] | Sequence[str]
) -> Driver:
    reasons = []
    for name in dict.fromkeys([*priority, *_REGISTERED]):
        try:
            return _open(graphroot, name, options)
        except _UNUSABLE as error:
            reasons.append(f"{name}: {error}")
    raise NotSupported(f"no storage driver works at {graphroot} ({'; '.join(reasons)})")


def _open(graphroot: Path, name: str, options: Mapping[str, str] | Sequence[str]) -> Driver:
    real = _ALIASES.get(name, name)
    return driver_class(real)(graphroot / real, driver_options(real, options))


def driver_options(name: str, options: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """The options that concern driver ``name``, without its prefix (``.key`` and ``key`` are generic).

    Raises:
        BadOption: a text without ``=``.
    """
    pairs = options.items() if hasattr(options, "items") else [_pair(text) for text in options]
    chosen = {}
    for key, value in pairs:
        prefix, dot, rest = key.partition(".")
        if not dot:
            chosen[key.lower()] = value
        elif prefix in ("", name):
            chosen[rest.lower()] = value
        elif prefix not in _REGISTERED and prefix not in _FOREIGN:
            raise BadOption(f"storage option {key!r} names no storage driver")
    return chosen


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadOption(f"storage option {text!r} is not of the form key=value")
    return key.strip(), value.strip()
