"""Files too large to keep in memory: made while they are read, at any offset, with their true size."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsd.nodes import Attributes, Kind

if TYPE_CHECKING:
    from fsd.contents import Content, Sink
    from fsd.nodes import Node


@dataclass(frozen=True)
class LargeFile(Kind):
    """A file served from a :class:`~fsd.contents.Content` of its own for every handle.

    Attributes:
        length: its size in bytes without making it; a ``stat`` asks for nothing else.
        opened: opens the content.
        sink: takes what is written to it; read-only without one. It raises where the subject takes nothing.
        unseen: whether the length may change without a change of the store's tables or of fsd's state.
        guard: a btrfs subvolume and the transaction that changed it last: the length holds as long as that.
    """

    length: Callable[[Any], int]
    opened: Callable[[Any], Content]
    sink: Callable[[Any], Sink] | None = None
    unseen: Callable[[Any], bool] | None = None
    guard: Callable[[Any], tuple[str, int] | None] | None = None
    blocking = True
    mode = stat.S_IFREG | 0o400
    """For the owner alone: it holds what the permissions of a rootfs keep from others."""

    @property
    def writable(self) -> bool:
        """Whether there is something that takes what is written."""
        return self.sink is not None

    @property
    def takes_attributes(self) -> bool:
        """Copying tools set mode and times of what they wrote."""
        return self.sink is not None

    def changes_unseen(self, node: Node) -> bool:
        """What its route says."""
        return self.unseen is not None and self.unseen(node.subject)

    def attributes(self, node: Node) -> Attributes:
        """The true size, where it is known."""
        return self.shown(node.subject, node.subject.changed_ns())

    def shown(self, subject: Any, changed_ns: int) -> Attributes:
        """The attributes for a subject that changed at that time."""
        return Attributes(self.mode | (0o200 if self.sink else 0), self.length(subject), changed_ns)

    def content(self, node: Node) -> bytes:
        """All of it; for small files."""
        content = self.open_content(node)
        try:
            return content.read_at(0, self.length(node.subject))
        finally:
            content.close()

    def open_content(self, node: Node) -> Content:
        """The content of one handle."""
        return self.opened(node.subject)

    def open_sink(self, node: Node, emptied: bool) -> Sink | None:
        """What takes the bytes written through one handle."""
        return None if self.sink is None else self.sink(node.subject)
