"""A root filesystem of tens of thousands of real files: those of the Debian packages on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

DPKG_LISTS = Path("/var/lib/dpkg/info")
LARGEST = 32768
"""Largest file that is taken, in bytes."""


def package_paths(entries: int) -> list[str]:
    """Existing paths of installed packages, each after its directory: ``entries`` or what there is."""
    found: dict[str, None] = {}
    for listing in sorted(DPKG_LISTS.glob("*.list")):
        for path in listing.read_text(errors="surrogateescape").splitlines():
            if path.count("/") > 1 and _small(path) and _below_real_directories(path):
                found[path] = None
        if len(found) >= entries:
            break
    return sorted(found)


def build_big_tar(path: Path, entries: int) -> int:
    """Write an archive of at least ``entries`` entries with GNU tar; returns how many it holds.

    Where the packages have fewer, they are added again below ``again/``, ``again/again/`` and so on.
    """
    paths = package_paths(entries)
    listing = path.with_suffix(".list")
    listing.write_text("".join(f"{name[1:]}\n" for name in paths), errors="surrogateescape")
    command = ["tar", "--directory=/", "--no-recursion", "--format=pax", f"--files-from={listing}"]
    path.unlink(missing_ok=True)
    rounds = -(-entries // len(paths))
    for number in range(rounds):
        below = [f"--transform=flags=rh;s,^,{'again/' * number},"]
        subprocess.run([*command, *below, "--append", f"--file={path}"], check=True, capture_output=True)
    return len(paths) * rounds


def _small(path: str) -> bool:
    """Exists and is no large file: many entries are wanted, not many bytes."""
    try:
        return os.lstat(path).st_size <= LARGEST
    except OSError:
        return False


def _below_real_directories(path: str) -> bool:
    """Not reached through a symlink (``/lib`` is one on a merged-/usr system): tar would write both."""
    parent = os.path.dirname(path)
    return os.path.realpath(parent) == parent
