"""``control/events``: what happens to the store's objects, by whomever, as one JSON object a line.

Events come from comparing two readings of the tables, so that what podman does shows too, and from what the
mount itself does. A reader gets what happens after it opened the file, and waits for the next: in ``read``,
or in ``poll``, ``select`` and ``epoll``. Any number of readers may.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from fsd.contents import Stream
from fsd.nodes import Attributes, Kind
from store.watching import differences

if TYPE_CHECKING:
    from collections.abc import Callable

    from fsd.live import Now
    from fsd.nodes import Node

KEPT = 1024
"""Events a slow reader may lag behind; it is told how many it missed."""


class Events:
    """The events of one mount. :meth:`emit` may be called from any thread."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._last = 0
        self._lock = threading.Lock()
        self._token: trio.lowlevel.TrioToken | None = None
        self._news = trio.Event()
        self._polled: dict[EventStream, Callable[[], None]] = {}
        self.closed = False

    def attend(self) -> int:
        """Number of the newest event, for a reader that begins now; runs in the event loop."""
        self._token = trio.lowlevel.current_trio_token()
        return self._last

    def emit(self, table: str, action: str, id_: str, names: tuple[str, ...] = (), **more: Any) -> None:
        """Tell all readers that ``action`` was done to an object."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        event = {"time": stamp, "table": table, "action": action, "id": id_, "names": list(names), **more}
        line = json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"
        with self._lock:
            self._last += 1
            self._lines.append((self._last, line))
            token = self._token
        if token is not None:
            token.run_sync_soon(self._wake)

    def close(self) -> None:
        """End every reader; runs in the event loop."""
        self.closed = True
        self._wake()

    def after(self, number: int) -> tuple[int, bytes]:
        """The events after that one, and the number of the newest among them."""
        with self._lock:
            lines = [(n, line) for n, line in self._lines if n > number]
            last = self._last
        if lines and lines[0][0] > number + 1:
            missed = json.dumps({"action": "missed", "count": lines[0][0] - number - 1})
            return last, missed.encode() + b"\n" + b"".join(line for _, line in lines)
        return last, b"".join(line for _, line in lines)

    async def wait(self) -> None:
        """Return when something was emitted, or perhaps a little earlier."""
        await self._news.wait()

    def call(self, reader: EventStream, notify: Callable[[], None]) -> None:
        """Call ``notify`` at every event from now on, instead of what was called for that reader before."""
        self._polled[reader] = notify

    def leave(self, reader: EventStream) -> None:
        """Call nothing for that reader any more."""
        self._polled.pop(reader, None)

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()
        for notify in self._polled.values():
            with suppress(OSError):  # the reader may be gone
                notify()

    def compare(self, before: Now, now: Now) -> None:
        """Emit what two readings of the tables differ in."""
        for event in differences(before.catalog, now.catalog):
            self.emit(*event)


class EventStream(Stream):
    """One reader of the events."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._seen = events.attend()
        self._rest = b""

    async def next_bytes(self, size: int) -> bytes:
        """The next events, as soon as there are any; empty when the mount ends."""
        while not self._fetch():
            await self._events.wait()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def ready(self, notify: Callable[[], None] | None) -> bool:
        """Whether there are events it has not given yet, or there will be no more."""
        if notify is not None:
            self._events.call(self, notify)
        return self._fetch()

    def close(self) -> None:
        """Nobody waits for this reader any more."""
        self._events.leave(self)

    def _fetch(self) -> bool:
        if not self._rest:
            self._seen, self._rest = self._events.after(self._seen)
        return bool(self._rest) or self._events.closed


@dataclass(frozen=True)
class EventFile(Kind):
    """The stream as a file; it has no size, and only its owner may read it."""

    mode = Kind.mode & ~0o044

    def attributes(self, node: Node) -> Attributes:
        """Nothing is in it before somebody reads."""
        return Attributes(self.mode, 0, node.subject.changed_ns())

    def open_content(self, node: Node) -> EventStream:
        """A reader that begins now."""
        return EventStream(node.subject.site.events)
