"""The ``tar-split.gz`` of a layer: written through a compressing thread, read back plain."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, BinaryIO, cast

_LEVEL = 1
"""Headers repeat so much that better levels buy little; containers/storage uses the same."""
_BATCH = 1 << 18
_QUEUED_MAX = 1 << 23


class TarSplitFile(io.RawIOBase):
    """Write plain tar-split lines, get a gzip file.

    Args:
        file: an empty file open for reading and writing; it stays the caller's and is complete, but
            not synced, once this object is closed.

    Raises (``write``, ``close``):
        OSError: writing failed, possibly that of an earlier call.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._start()

    def _start(self) -> None:
        self._queue: deque[bytes | None] = deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="tar-split", daemon=True
        )
        self._thread.start()

    def writable(self) -> bool:
        """Always true."""
        return True

    def write(self, data: Any) -> int:
        """Queue lines for the compressing thread."""
        piece = bytes(data)
        self._pending.append(piece)
        self._pending_size += len(piece)
        if self._pending_size >= _BATCH:
            self._send()
        return len(piece)

    def _send(self) -> None:
        batch = b"".join(self._pending)
        self._pending, self._pending_size = [], 0
        with self._changed:
            self._changed.wait_for(lambda: self._queued < _QUEUED_MAX or self._error is not None)
            self._check()
            self._queue.append(batch)
            self._queued += len(batch)
            self._changed.notify_all()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._file.write(self._encoder.compress(batch))
            self._file.write(self._encoder.flush())
            self._file.flush()
        except BaseException as error:  # raised again by the writer's next call
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue))
            batch = self._queue.popleft()
            self._queued -= len(batch or b"")
            self._changed.notify_all()
            return batch

    def _finish(self) -> None:
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        try:
            self._send()
        finally:
            with self._changed:
                self._queue.append(None)
                self._changed.notify_all()
            thread.join()
        self._check()

    def close(self) -> None:
        """Complete the gzip stream; the underlying file stays open."""
        if not self.closed:
            try:
                self._finish()
            finally:
                super().close()

    def rewrite(self, change: Callable[[BinaryIO, BinaryIO], None]) -> None:
        """Replace everything written so far by what ``change(old, new)`` makes of it."""
        self._finish()
        with tempfile.TemporaryFile() as copy:
            self._file.seek(0)
            shutil.copyfileobj(self._file, copy)
            copy.seek(0)
            self._file.seek(0)
            self._file.truncate()
            self._start()
            with gzip.GzipFile(fileobj=copy) as old:
                change(cast("BinaryIO", old), cast("BinaryIO", self))


def create(path: str | os.PathLike[str]) -> _OwnedTarSplitFile:
    """Make the file ``path`` (mode 0600, must not exist) and write tar-split into it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return _OwnedTarSplitFile(os.fdopen(fd, "w+b"))


class _OwnedTarSplitFile(TarSplitFile):
    """Closes its file too."""

    def close(self) -> None:
        if self.closed:
            return
        try:
            super().close()
        finally:
            self._file.close()


def open_lines(path: str | os.PathLike[str]) -> BinaryIO:
    """Plain lines of a ``tar-split.gz``."""
    return cast("BinaryIO", gzip.open(path, "rb"))
