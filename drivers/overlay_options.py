"""Options of the overlay driver and of its mounts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from drivers import syscalls
from drivers.errors import BadOption, NotSupported
from drivers.options import parse_bool, parse_size, reject_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KNOWN = frozenset(
    {
        "additionallayerstore",
        "force_mask",
        "ignore_chown_errors",
        "imagestore",
        "inodes",
        "mount_program",
        "mountopt",
        "runroot",
        "size",
        "skip_mount_home",
    }
)
LIVE = frozenset({"additionallayerstore", "ignore_chown_errors", "imagestore"})
"""What may change in an open driver: nothing that was decided by mounting something."""
NAMED_MASKS = {"shared": 0o755, "private": 0o700}
_OCTAL = re.compile(r"0?o?[0-7]{1,4}")

# Flags of mount(2) by the words mount(8) has for them: (set, clear).
_FLAGS = {
    "ro": (syscalls.MS_RDONLY, 0),
    "rw": (0, syscalls.MS_RDONLY),
    "nosuid": (2, 0),
    "suid": (0, 2),
    "nodev": (4, 0),
    "dev": (0, 4),
    "noexec": (8, 0),
    "exec": (0, 8),
    "sync": (16, 0),
    "async": (0, 16),
    "dirsync": (128, 0),
    "noatime": (1024, 0),
    "atime": (0, 1024),
    "nodiratime": (2048, 0),
    "diratime": (0, 2048),
    "relatime": (1 << 21, 0),
    "norelatime": (0, 1 << 21),
    "strictatime": (1 << 24, 0),
    "nostrictatime": (0, 1 << 24),
    "defaults": (0, 0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStore:
    """An additional layer store: its mount point, and whether layers are looked up by image reference."""

    path: Path
    by_reference: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayOptions:
    """What the driver was configured with; see :func:`parse_options`."""

    mountopt: tuple[str, ...] = ()
    mount_program: str = ""
    skip_mount_home: bool = False
    force_mask: int | None = None
    ignore_chown_errors: bool = False
    image_stores: tuple[Path, ...] = ()
    layer_stores: tuple[LayerStore, ...] = ()
    runroot: Path | None = None


def parse_options(options: Mapping[str, str]) -> OverlayOptions:
    """The overlay options of storage.conf (FORMAT 8.1), as text, without their ``overlay.`` prefix.

    Raises:
        BadOption: unknown or malformed, a ``mount_program`` that is missing, ``force_mask`` without one.
        NotSupported: ``size`` or ``inodes``, which need project quotas.
    """
    reject_unknown("overlay", options, KNOWN)
    for key in ("size", "inodes"):
        reject_quota(f"overlay.{key}", options.get(key, "0"))
    parsed = OverlayOptions(
        mountopt=split_options(options.get("mountopt", "")),
        mount_program=_program(options.get("mount_program", "")),
        skip_mount_home=_truth(options, "skip_mount_home"),
        force_mask=_mask(options.get("force_mask", "")),
        ignore_chown_errors=_truth(options, "ignore_chown_errors"),
        image_stores=tuple(Path(text) for text in _words(options.get("imagestore", ""))),
        layer_stores=tuple(_layer_store(text) for text in _words(options.get("additionallayerstore", ""))),
        runroot=Path(options["runroot"]) if options.get("runroot") else None,
    )
    if parsed.force_mask is not None and not parsed.mount_program:
        raise BadOption("overlay.force_mask works with overlay.mount_program only")
    return parsed


def with_live(options: OverlayOptions, wanted: OverlayOptions) -> OverlayOptions:
    """``options`` with what is ``LIVE`` of ``wanted``."""
    return replace(
        options,
        layer_stores=wanted.layer_stores,
        ignore_chown_errors=wanted.ignore_chown_errors,
        image_stores=wanted.image_stores,
    )


def reject_quota(option: str, value: str) -> None:
    """Refuse a limit: it would need a project quota, which this driver does not set."""
    if parse_size(value or "0", option):
        raise NotSupported(
            f"{option}={value}: the overlay driver sets no project quotas, which a limit needs; "
            "the btrfs driver limits layers"
        )


def _truth(options: Mapping[str, str], key: str) -> bool:
    return parse_bool(options.get(key) or "false", f"overlay.{key}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _program(text: str) -> str:
    if text and not os.access(text, os.X_OK):
        raise BadOption(f"overlay.mount_program={text!r} is not a program")
    return text


def _mask(text: str) -> int | None:
    if not text:
        return None
    if text in NAMED_MASKS:
        return NAMED_MASKS[text]
    if not _OCTAL.fullmatch(text):
        raise BadOption(f"overlay.force_mask={text!r} is neither an octal mode nor shared nor private")
    return int(text.lstrip("0o") or "0", 8)


def _layer_store(text: str) -> LayerStore:
    path, colon, rest = text.partition(":")
    if colon and rest != "ref":
        raise BadOption(f"overlay.additionallayerstore={text!r} is not PATH or PATH:ref")
    if not path.startswith("/"):
        raise BadOption(f"overlay.additionallayerstore={text!r} is not an absolute path")
    return LayerStore(path=Path(path), by_reference=bool(colon))


def split_options(text: str) -> tuple[str, ...]:
    """Mount options separated by commas, empty ones left out."""
    return tuple(_words(text))


def mount_flags(options: Iterable[str]) -> tuple[int, list[str]]:
    """Flags of mount(2) that ``options`` stand for, and the options only the filesystem understands."""
    flags, data = 0, []
    for option in options:
        if option not in _FLAGS:
            data.append(option)
            continue
        on, off = _FLAGS[option]
        flags = (flags | on) & ~off
    return flags, data
