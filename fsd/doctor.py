"""``fsd doctor``: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fsd import mounts, output
from fsd.cli_store import pool_of, store_options
from fsd.pool import free_bytes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from store.config import StoreOptions

OLDEST_KERNEL = (5, 10)
"""The ioctls and mount options used here are all older."""
TOLD_OF_CHANGES = (6, 16)
"""With it, and as root, the kernel keeps what it knows of containers until somebody changes it."""
PROGRAMS = {"mkfs.btrfs": "btrfs-progs", "btrfs": "btrfs-progs", "losetup": "mount", "fusermount3": "fuse3"}
"""Program and the Debian package that has it."""
PEERS = ("podman", "buildah", "skopeo", "containers-storage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact; ``level`` is ``ok``, ``note`` or ``bad``, ``remedy`` what to do about it."""

    subject: str
    level: str
    text: str
    remedy: str = ""


def examine(args: argparse.Namespace) -> int:
    """``fsd doctor``."""
    findings = [finding for check in SYSTEM_CHECKS for finding in check()]
    findings += _configuration(args)
    if args.json:
        output.print_json([asdict(finding) for finding in findings])
    else:
        rows = [[f.level, f.subject, f.text, f.remedy] for f in findings]
        output.print_table(rows, ["", "SUBJECT", "FINDING", "REMEDY"])
    return 1 if any(finding.level == "bad" for finding in findings) else 0


def _kernel() -> Iterator[Finding]:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    old = numbers < OLDEST_KERNEL
    yield Finding(
        subject="kernel",
        level="bad" if old else "ok",
        text=release,
        remedy="use Linux 5.10 or later" if old else "",
    )
    told = numbers >= TOLD_OF_CHANGES and os.geteuid() == 0
    yield Finding(
        subject="coherence",
        level="ok" if told else "note",
        text="told of changes by the filesystem" if told else "asks every second what others changed",
        remedy="" if told else "Linux 6.16 or later, as root",
    )
    known = Path("/proc/filesystems").read_text(encoding="ascii").split()
    for name in ("btrfs", "fuse"):
        yield Finding(
            subject=f"{name} in the kernel",
            level="ok" if name in known else "bad",
            text="there" if name in known else "not loaded",
            remedy="" if name in known else f"modprobe {name}",
        )


def _privilege() -> Iterator[Finding]:
    root = os.geteuid() == 0
    yield Finding(
        subject="privilege",
        level="ok" if root else "note",
        text="root" if root else f"user {os.geteuid()}: no embedded pool, and only what this user may read",
    )


def _devices() -> Iterator[Finding]:
    for path, use, remedy in (
        ("/dev/fuse", "mounting", "modprobe fuse; check its permissions"),
        ("/dev/loop-control", "the embedded pool", "modprobe loop"),
    ):
        usable = os.access(path, os.R_OK | os.W_OK)
        yield Finding(
            subject=path,
            level="ok" if usable else "bad",
            text=f"usable for {use}" if usable else f"not usable, needed for {use}",
            remedy="" if usable else remedy,
        )


def _programs() -> Iterator[Finding]:
    for program, package in PROGRAMS.items():
        path = shutil.which(program)
        yield Finding(
            subject=program,
            level="ok" if path else "bad",
            text=path or "not installed",
            remedy="" if path else f"apt install {package}",
        )
    for program in PEERS:
        path = shutil.which(program)
        yield Finding(
            subject=program, level="ok" if path else "note", text=path or "not installed (not needed)"
        )


def _modules() -> Iterator[Finding]:
    for module in ("pyfuse3", "trio", "drivers._btrfs"):
        found = importlib.util.find_spec(module) is not None
        yield Finding(
            subject=f"Python module {module}",
            level="ok" if found else "bad",
            text="there" if found else "not built or not installed",
            remedy="" if found else "make up, or pip install --editable .",
        )


def _dead_mounts() -> Iterator[Finding]:
    for mount in mounts.mounts():
        if mount.fstype == "fuse.fsd" and mounts.is_dead(mount.point):
            yield Finding(
                subject=str(mount.point),
                level="bad",
                text="a mount whose daemon is gone",
                remedy=f"fsd up {mount.point}, or umount --lazy {mount.point}",
            )


SYSTEM_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _kernel,
    _privilege,
    _devices,
    _programs,
    _modules,
    _dead_mounts,
)


def _configuration(args: argparse.Namespace) -> Iterator[Finding]:
    try:
        options = store_options(args)
    except Exception as error:
        yield Finding(subject="storage.conf", level="bad", text=str(error), remedy="mend the file")
        return
    files = ", ".join(options.sources) or "no file; built-in defaults"
    yield Finding(subject="storage.conf", level="ok", text=files)
    for warning in options.warnings:
        yield Finding(subject="storage.conf", level="note", text=warning)
    yield Finding(subject="driver", level="ok", text=options.driver or "chosen by what the graphroot holds")
    yield from _graphroot(options)
    usual = mounts.default_mountpoint() or "none without XDG_RUNTIME_DIR: fsd up MOUNTPOINT"
    yield Finding(subject="default mountpoint", level="ok", text=str(usual))


def _graphroot(options: StoreOptions) -> Iterator[Finding]:
    graphroot = Path(options.graphroot)
    kind = mounts.filesystem_of(graphroot).fstype
    yield Finding(subject="graphroot", level="ok", text=f"{graphroot} on {kind}")
    pool = pool_of(options)
    if pool is None:
        return
    text = f"attached to {pool.device}" if pool.device else "detached" if pool.exists else "fsd up makes it"
    yield Finding(subject="embedded pool", level="ok", text=f"{pool.image}: {text}")
    host = mounts.filesystem_of(pool.image.parent)
    free = output.human_size(free_bytes(Path(host.point)))
    yield Finding(subject="space for the pool", level="ok", text=f"{free} free on {host.point}")
