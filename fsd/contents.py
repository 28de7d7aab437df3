"""What an open synthetic file is read from and written to.

A :class:`Content` belongs to one handle and is closed with it. Reads come at any offset, in any order and
from several threads; those of a ``blocking`` content run in worker threads. A :class:`Sink` takes what is
written to a file that is more than one value.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from drivers.tarindex import SeekableDiff
    from store.virtual import VirtualFile

FAR = 4 << 20
"""A jump of this many bytes is worth an index of the archive; shorter ones are read through."""


class Content(ABC):
    """Bytes of one open file."""

    blocking: ClassVar[bool] = True

    @abstractmethod
    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset`` on; fewer only at the end."""

    def close(self) -> None:
        """Release what the content holds."""
        return None


class Rendered(Content):
    """Bytes that were made when the file was opened."""

    blocking = False

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_at(self, offset: int, size: int) -> bytes:
        """A part of them."""
        return self._data[offset : offset + size]


class Stream(Content, ABC):
    """A file that grows: a read at its end waits until there is more. Reads run in the event loop."""

    blocking = False

    def read_at(self, offset: int, size: int) -> bytes:
        """What is there already."""
        raise NotImplementedError("a stream is read by waiting for it")

    @abstractmethod
    async def next_bytes(self, size: int) -> bytes:
        """Up to ``size`` bytes more, at least one; empty when nothing will ever follow."""

    @abstractmethod
    def ready(self, notify: Callable[[], None] | None) -> bool:
        """Whether a read would give something now.

        ``notify`` is called whenever there is more, until the file is closed or another one is given: who
        waits for edges (EPOLLET) does not ask again before each.
        """


class Streamed(Content):
    """A virtual file's own stream; what it needs meanwhile (a mount, a copy) goes with it."""

    def __init__(self, file: VirtualFile, held: ExitStack | None = None) -> None:
        self.size = file.size
        self._held = held or ExitStack()
        self._lock = threading.Lock()
        self._stream: BinaryIO | None = None
        self._file = file

    def read_at(self, offset: int, size: int) -> bytes:
        """A part; going back reads the stream again from where it can begin."""
        with self._lock:
            if self._stream is None:
                self._stream = self._file.open()
            if self._stream.tell() != offset:
                self._stream.seek(offset)
            return self._stream.read(max(0, min(size, self.size - offset)))

    def close(self) -> None:
        """Close the stream and what it needed."""
        with self._lock, self._held:
            if self._stream is not None:
                self._stream.close()


class Archive(Content):
    """An archive that can be rebuilt: streamed as long as it is read in order, indexed at the first jump.

    Args:
        index: opens the index, which costs a pass over the archive's description.
    """

    def __init__(self, file: VirtualFile, index: Callable[[], AbstractContextManager[SeekableDiff]]) -> None:
        self._stream = Streamed(file)
        self._size = file.size
        self._make_index = index
        self._index: SeekableDiff | None = None
        self._held = ExitStack()
        self._lock = threading.Lock()
        self._reached = 0

    def read_at(self, offset: int, size: int) -> bytes:
        """A part, from whichever is cheaper."""
        with self._lock:
            index = self._index
            if index is None and not self._reached <= offset <= self._reached + FAR and offset < self._size:
                index = self._index = self._held.enter_context(self._make_index())
            if index is None:
                data = self._stream.read_at(offset, size)
                self._reached = offset + len(data)
                return data
        return index.read_at(offset, size)

    def close(self) -> None:
        """Close stream and index."""
        with self._lock, self._held:
            self._stream.close()


class Sink(ABC):
    """Takes a file's worth of bytes. Calls run in worker threads, one at a time."""

    @abstractmethod
    def write_at(self, offset: int, data: bytes) -> None:
        """Keep ``data``."""

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Keep the first ``size`` bytes only."""

    @abstractmethod
    def apply(self) -> None:
        """Do with what was written so far what writing it asks for; called again when more was written.

        Raises what the work raises; nothing of it stays then.
        """

    def close(self) -> None:
        """The file is closed for good."""
        return None
