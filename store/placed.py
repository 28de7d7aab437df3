"""Readable streams of known size that keep their place."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from typing import Any


class Placed(io.RawIOBase):
    """A readable, seekable stream of ``size`` bytes; subclasses read at a place."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """The place from which the next read is made."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to another place; see ``io.IOBase.seek``."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as the stream goes; ``EOFError`` where it ends before its size."""
        wanted = min(len(buffer), max(0, self._size - self._at))
        if not wanted:
            return 0
        piece = self.read_piece(self._at, wanted)
        if not piece:
            raise EOFError(f"content ended after {self._at} of {self._size} bytes")
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    @abstractmethod
    def read_piece(self, at: int, size: int) -> bytes:
        """At most ``size`` bytes from ``at``; none where the content ends."""
