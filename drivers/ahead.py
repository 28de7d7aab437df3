"""Runs an iterator in a thread of its own, a few items ahead of whoever wants them."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_JOIN_SECONDS = 10.0
"""How long an abandoned thread may take over a blocked ``read`` before it is left behind."""


class Ahead:
    """Items of ``source`` in order, made by a thread; close it after use, or use ``with``.

    Worth it where making an item releases the GIL: reading, decompressing, hashing.
    """

    def __init__(self, source: Iterator[bytes], name: str, depth: int = 4) -> None:
        self._source = source
        self._depth = depth
        self._ready: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._abandoned = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread; one blocked in its source is waited for only so long."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()
        self._thread.join(_JOIN_SECONDS)

    def next(self) -> bytes:
        """The next item, ``b""`` at the end; raises what the source raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._finished)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            return b""

    def _run(self) -> None:
        try:
            for item in self._source:
                if not self._put(item):
                    break
        except BaseException as error:  # handed to the consumer, whatever it is
            self._error = error
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def _put(self, item: bytes) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._depth or self._abandoned)
            self._ready.append(item)
            self._changed.notify_all()
            return not self._abandoned


def run_ahead(source: Generator[bytes, None, None], name: str, depth: int = 2) -> Iterator[bytes]:
    """``source``'s items as an iterator; closing it closes ``source``."""
    with closing(source), Ahead(source, name, depth) as ahead:
        while item := ahead.next():
            yield item
