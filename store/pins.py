"""Pins: objects that nothing removes until somebody takes the pin away.

A pin is the setting ``pinned`` of an object in fsd's state, where other tools do not see it: podman
removes a pinned image all the same. Here every way of removal asks :meth:`Pins.refuse` first, under
the locks of the removal; :class:`~store.history.History` makes it the guard of its store.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, get_args

from store.errors import BadValue, NotAnID, Pinned
from store.objects import find_object, split_snapshot
from store.records import Container, Image, Layer

if TYPE_CHECKING:
    from store.state import State
    from store.trash import Trash

Kind = Literal["containers", "images", "layers", "trash"]
"""What can be pinned; an entry of the trash by its ID, which keeps it from expiring."""

KINDS: Final[tuple[str, ...]] = get_args(Kind)
SETTING: Final = "pinned"
_KINDS: Final[dict[type, Kind]] = {Container: "containers", Image: "images", Layer: "layers"}


class Pins:
    """The pins of one store; safe to use from any thread. Methods may raise ``OSError``."""

    def __init__(self, state: State) -> None:
        self._state = state

    def pin(self, kind: Kind, object_id: str) -> None:
        """Protect an object; harmless when it is protected already.

        Args:
            object_id: a full ID. Whether the object exists is for the caller to know.

        Raises:
            BadValue: no such kind
        """
        obj = _setting_of(kind, object_id)
        if SETTING not in self._state.settings(obj):
            self._state.set_setting(obj, SETTING, str(time.time_ns()))

    def unpin(self, kind: Kind, object_id: str) -> None:
        """Stop protecting an object; harmless when it is not protected. ``BadValue``."""
        self._state.set_setting(_setting_of(kind, object_id), SETTING, None)

    def pinned_ns(self, kind: Kind, object_id: str) -> int | None:
        """When an object was pinned, in nanoseconds since the epoch; ``None`` if it is not."""
        value = self._state.settings(_setting_of(kind, object_id)).get(SETTING)
        return None if value is None else int(value) if value.isdigit() else 0

    def is_pinned(self, kind: Kind, object_id: str) -> bool:
        """Whether an object is protected."""
        return self.pinned_ns(kind, object_id) is not None

    def all(self) -> frozenset[tuple[str, str]]:
        """Every pin as kind and ID, also those of objects that other tools removed."""
        pairs = (obj.partition("/") for obj in self._state.settings_of(SETTING))
        return frozenset((kind, object_id) for kind, _, object_id in pairs if kind in KINDS)

    def refuse(self, record: Container | Image | Layer) -> None:
        """Raise :class:`Pinned` if the object is protected."""
        kind = _KINDS[type(record)]
        if self.is_pinned(kind, record.id):
            label = record.names[0] if record.names else record.id[:12]
            raise Pinned(f"{kind[:-1]} {label} is pinned; remove the pin to remove it")


def pin_object(trash: Trash, text: str, pinned: bool) -> tuple[str, str]:
    """Pin what ``text`` names, or take its pin away: an object, ``CONTAINER@SNAPSHOT``, or ``trash/ENTRY``.

    Returns:
        kind, and full ID, ID of the entry, or ``<container ID>/<snapshot>``.

    Raises:
        NotAnID, BadName, TrashUnknown, ContainerUnknown, SnapshotUnknown
    """
    history = trash.history
    change = history.pins.pin if pinned else history.pins.unpin
    if text.startswith("trash/"):
        entry = trash.get(text.removeprefix("trash/"))
        change("trash", entry.id)
        return "trash", entry.id
    try:
        found = find_object(history.store, text)
    except NotAnID:
        if "@" not in text and "/snapshots/" not in text:
            raise
        owner, name = split_snapshot(text)
        snapshot = history.pin(owner, name, pinned)
        return "snapshot", f"{snapshot.container_id}/{snapshot.name}"
    change(found.table, found.id)
    return found.table[:-1], found.id


def _setting_of(kind: str, object_id: str) -> str:
    if kind not in KINDS:
        raise BadValue(f"{kind!r} cannot be pinned; {', '.join(KINDS)} can")
    return f"{kind}/{object_id}"
