"""The directories of an overlay layer, and the short links by which mounts name them (FORMAT 1.3).

::

    l/<link>        symbolic link to ../<id>/diff; 26 characters, because mount options must fit a page
    <id>/link       the layer's <link>
    <id>/lower      l/<link> of the parent, its parent, … separated by colons; absent in a base layer
    <id>/diff       what the layer changes: the upper directory
    <id>/work       the kernel's scratch space for it
    <id>/merged     the mount point
    <id>/empty      base layers: a lower directory, since a mount needs one
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drivers.errors import LayerUnknown

if TYPE_CHECKING:
    from collections.abc import Iterator

LINKS = "l"
LINK_LENGTH = 26
MAX_DEPTH = 500
"""Lower layers one mount can have (OVL_MAX_STACK in the kernel), and what containers/storage allows."""
_LINK = re.compile(r"[A-Z2-7]{26}")
_ENTRY = re.compile(r"l/[A-Z2-7]{26}")
RESERVED = frozenset({LINKS, "staging", "tempdirs", "fsd"})
"""Names beside the layers: of containers/storage (1.59 and later have the middle two) and our own."""


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """One layer's directory; ``home`` is the driver's or that of an additional image store."""

    directory: Path
    home: Path
    additional: bool = False

    @property
    def diff(self) -> Path:
        """The upper directory."""
        return self.directory / "diff"

    @property
    def merged(self) -> Path:
        """The mount point, for layers of the primary store."""
        return self.directory / "merged"

    def link(self) -> str:
        """The layer's short name; ``LayerUnknown`` if its file is missing or malformed."""
        try:
            text = (self.directory / "link").read_text("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            text = ""
        if not _LINK.fullmatch(text):
            raise LayerUnknown(f"{self.directory} is no overlay layer: its link file names no link")
        return text

    def lower(self) -> list[str]:
        """``l/<link>`` of every layer below, nearest first; empty for a base layer.

        Raises:
            LayerUnknown: an entry is anything else, which would name a directory outside the store.
        """
        try:
            text = (self.directory / "lower").read_text("ascii").strip()
        except FileNotFoundError:
            return []
        entries = [entry for entry in text.split(":") if entry]
        bad = [entry for entry in entries if not _ENTRY.fullmatch(entry)]
        if bad:
            raise LayerUnknown(f"{self.directory}/lower holds {bad[0]!r}, which is no link of a layer")
        return entries

    def rotated(self) -> Iterator[Path]:
        """``diff1``, ``diff2``, …: parts of the layer below ``diff`` that an owner rewrite has left."""
        number = 1
        while (part := self.directory / f"diff{number}").is_dir():
            yield part
            number += 1


def new_link() -> str:
    """A fresh random short name."""
    return base64.b32encode(os.urandom(17)).decode("ascii")[:LINK_LENGTH]


def make_link(home: Path, link: str, layer_id: str) -> None:
    """Make ``l/<link>`` point to a layer's ``diff``; replaces one that points elsewhere."""
    place = home / LINKS / link
    target = f"../{layer_id}/diff"
    try:
        place.symlink_to(target)
    except FileExistsError:
        if os.readlink(place) == target:
            return
        place.unlink()
        place.symlink_to(target)


def layer_names(home: Path) -> list[str]:
    """Names of the layer directories in ``home``."""
    with os.scandir(home) as entries:
        return [
            entry.name
            for entry in entries
            if entry.name not in RESERVED and entry.is_dir(follow_symlinks=False)
        ]


def restore_links(home: Path) -> int:
    """Make the links that are missing from the layers' own ``link`` files; returns how many."""
    restored = 0
    for name in layer_names(home):
        try:
            link = LayerPlace(home / name, home).link()
        except LayerUnknown:
            continue
        if not os.path.lexists(home / LINKS / link):
            make_link(home, link, name)
            restored += 1
    return restored


def linked_layer(home: Path, entry: str) -> LayerPlace:
    """The layer whose ``diff`` the link ``entry`` of ``home`` names; that may itself be a link elsewhere."""
    return LayerPlace((home / LINKS / os.readlink(home / entry)).parent.resolve(), home)


def lower_directories(entries: list[str], homes: list[Path], own: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """Where each ``l/<link>`` is: the home that has it and the entry, in order.

    Args:
        homes: where to look.
        own: where missing links may be made again.

    Raises:
        LayerUnknown: a link that is in no store, even after missing ones were made again.
    """
    found = []
    for entry in entries:
        home = next((home for home in homes if (home / entry).is_dir()), None)
        if home is None:
            home = next((h for h in own if restore_links(h) and (h / entry).is_dir()), None)
        if home is None:
            raise LayerUnknown(f"lower layer {entry} is missing from {', '.join(map(str, homes))}")
        found.append((home, entry))
    return found
