"""One file of a table, and what is in it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from store import codec
from store.durable import FileState, file_state
from store.records import Identified, encode

R = TypeVar("R", bound=Identified)


class Broken(NamedTuple):
    """A record, or a whole file, that cannot be used: where, whose, why, and its text."""

    table: str
    id: str
    why: str
    text: str


class Segment(Generic[R]):
    """One file of a table, parsed: its items in order, and the text of each when it is to be rewritten."""

    __slots__ = (
        "_data",
        "_pieces",
        "_positions",
        "_spans",
        "_text",
        "items",
        "path",
        "state",
        "unreadable",
        "volatile",
    )

    def __init__(self, path: Path, volatile: bool) -> None:
        self.path = path
        self.volatile = volatile
        self.state = FileState()
        self.items: list[R | Broken] = []
        self.unreadable = ""
        self._text = ""
        self._spans: list[int] = []
        self._pieces: list[str] | None = []
        self._positions: dict[str, int] | None = {}
        self._data = b""
        """What the file was last written as, if we wrote it."""

    @property
    def fresh(self) -> bool:
        """Whether the file on disk is still the one that was parsed."""
        return file_state(self.path) == self.state

    def keep_text(self, text: str, spans: list[int]) -> None:
        """Remember where the items stand in the file's text; it is cut up when somebody writes."""
        self._text = text
        self._spans = spans
        self._pieces = self._positions = None

    def text_of(self, number: int) -> str:
        """The text of one item of a file just parsed."""
        return self._text[self._spans[2 * number] : self._spans[2 * number + 1]]

    @property
    def pieces(self) -> list[str]:
        """The text of every item."""
        if self._pieces is None:
            text, spans = self._text, self._spans
            self._pieces = [text[a:b] for a, b in zip(spans[::2], spans[1::2], strict=True)]
            self._text, self._spans = "", []
        return self._pieces

    @property
    def positions(self) -> dict[str, int]:
        """Where in ``items`` each record is, by ID."""
        if self._positions is None:
            self._positions = {
                item.id: n for n, item in enumerate(self.items) if not isinstance(item, Broken)
            }
        return self._positions

    def changed(
        self, replaced: Mapping[int, R], removed: Container[int], added: Iterable[R]
    ) -> tuple[Segment[R], bytes]:
        """This file with other items, and what to write for it."""
        result = Segment[R](self.path, self.volatile)
        items, pieces = list(self.items), list(self.pieces)
        for number, record in replaced.items():
            items[number], pieces[number] = record, encode(record)
        positions = dict(self.positions)
        if removed:
            kept = [number for number in range(len(items)) if number not in removed]
            items, pieces = [items[number] for number in kept], [pieces[number] for number in kept]
        for record in added:
            positions[record.id] = len(items)
            items.append(record)
            pieces.append(encode(record))
        result.items, result._pieces = items, pieces
        result._positions = None if removed else positions
        if self._data and not replaced and not removed and len(items) > len(self.items) > 0:
            tail = codec.to_bytes(",".join(pieces[len(self.items) :]))
            result._data = b"".join((memoryview(self._data)[:-1], b",", tail, b"]"))
        else:
            result._data = codec.to_bytes("[" + ",".join(pieces) + "]")
        return result, result._data
