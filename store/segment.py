"""One file of a table, and what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from itertools import chain
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from store import codec
from store.durable import FileState, file_state
from store.records import Identified, encode
from store.replacing import Kept, Replacement, prepare

R = TypeVar("R", bound=Identified)

VOLATILE: Final = "volatile"
IN_IMAGE_STORE: Final = "in_image_store"
"""Marks: see :attr:`Segment.mark`."""


class Broken(NamedTuple):
    """A record, or a whole file, that cannot be used: where, whose, why, and its text."""

    table: str
    id: str
    why: str
    text: str


class Compared(NamedTuple):
    """How many items at both ends stayed, and the values and texts of those between."""

    before: int
    after: int
    values: list[object]
    pieces: list[str]


class Segment(Generic[R]):
    """One file of a table, parsed: its items in order, and the text of each when it is to be rewritten."""

    __slots__ = (
        "_pieces",
        "_positions",
        "_source",
        "items",
        "mark",
        "path",
        "place",
        "state",
        "tight",
        "unreadable",
    )

    def __init__(self, path: Path, mark: str = "") -> None:
        self.path = path
        self.place = path
        """Where the file is now: under another name until it is put in place."""
        self.mark = mark
        """Attribute that the records of this file have, and those of the table's main file have not."""
        self.state = FileState()
        self.items: list[R | Broken] = []
        self.unreadable = ""
        self.tight = False
        """Whether the file is known to be the items' texts with a comma between, and nothing else."""
        self._source: tuple[str, list[int]] = ("", [])
        """The text of a file just parsed, and where the items stand in it; cut up when somebody writes."""
        self._pieces: list[str] | None = []
        self._positions: dict[str, int] | None = {}

    @property
    def fresh(self) -> bool:
        """Whether the file on disk is still the one that was parsed."""
        return file_state(self.path) == self.state

    def parse(self, data: bytes, older: Segment[R] | None, make: Callable[[object, int], R | Broken]) -> None:
        """Take in the content of the file.

        Args:
            older: an earlier version, whose items are taken over where the text is the same.
            make: makes an item of a parsed value and its number.

        Raises:
            ValueError, RecursionError: the content is no JSON list.
        """
        text = data.decode("utf-8", "replace")
        found = older.compared(text) if older is not None else None
        if found is None or older is None:
            values, spans = codec.scan_array(text)
            self._source, self._pieces, self._positions = (text, spans), None, None
            self.tight = _is_tight(text, spans) and _is_valid(text, data)
            self.items = [make(value, number) for number, value in enumerate(values)]
            return
        end = len(older.items) - found.after
        self._pieces = [*older.pieces[: found.before], *found.pieces, *older.pieces[end:]]
        self._positions = None
        self.tight = _is_valid(text, data)
        new = [make(value, number) for number, value in enumerate(found.values, found.before)]
        self.items = [*older.items[: found.before], *new, *older.items[end:]]

    def compared(self, text: str) -> Compared | None:
        """How another content of the file differs; ``None`` where only parsing all of it can tell."""
        if not self.tight or text[:1] != "[" or text[-1:] != "]":
            return None
        if any(isinstance(item, Broken) for item in self.items):  # why one is broken may lie in another
            return None
        pieces = self.pieces
        before, at = _alike(text, pieces)
        after, end = _alike_at_end(text, pieces, at, len(pieces) - before)
        try:
            values, spans = codec.scan_array(f"[{text[at : end - 1]}]") if end > at else ([], [])
        except (ValueError, RecursionError):
            return None
        cut = [text[at + a - 1 : at + b - 1] for a, b in zip(spans[::2], spans[1::2], strict=True)]
        if len(cut) + sum(map(len, cut)) != end - at:  # a comma is missing or one too many, or there is space
            return None
        return Compared(before, after, values, cut)

    def text_of(self, number: int) -> str:
        """The text of one item of a file just parsed."""
        text, spans = self._source
        if self._pieces is not None:
            return self._pieces[number]
        return text[spans[2 * number] : spans[2 * number + 1]]

    @property
    def pieces(self) -> list[str]:
        """The text of every item."""
        text, spans = self._source  # before the question: another thread may be cutting it up
        if self._pieces is None:
            self._pieces = [text[a:b] for a, b in zip(spans[::2], spans[1::2], strict=True)]
            self._source = ("", [])
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
        self, replaced: Mapping[int, R], removed: Set[int], added: Iterable[R], *, durable: bool
    ) -> tuple[Segment[R], Replacement]:
        """This file with other items, and its content, complete but not in place yet."""
        result = Segment[R](self.path, self.mark)
        items, pieces = list(self.items), list(self.pieces)
        for number, record in replaced.items():
            items[number], pieces[number] = record, encode(record)
        for number in sorted(removed, reverse=True):
            del items[number], pieces[number]
        for record in added:
            items.append(record)
            pieces.append(encode(record))
        result.items, result._pieces = items, pieces
        same = min(chain(replaced, removed), default=len(self.items))
        result._positions = self._positions_after(removed, items)
        tail = codec.to_bytes("," * (same < len(pieces)) + ",".join(pieces[same:]) + "]")
        made = prepare(
            self.path,
            tail,
            lambda: codec.to_bytes("[" + ",".join(pieces) + "]"),
            kept=self._kept(same),
            durable=durable,
        )
        result.state, result.place, result.tight = made.state, made.temporary, True
        return result, made

    def set_duplicate_aside(self, number: int, table: str) -> Broken:
        """Let an item count as broken whose ID another record before it has."""
        item = self.items[number]
        broken = Broken(table, item.id, "another record before it has the same ID", self.pieces[number])
        self.items[number] = broken
        return broken

    def _positions_after(self, removed: Set[int], items: list[R | Broken]) -> dict[str, int]:
        """Where the records of ``items`` are, which differ from ours at the end and where some went."""
        positions = self.positions.copy()
        for number in removed:
            item = self.items[number]
            if not isinstance(item, Broken):
                del positions[item.id]
        for number in range(min(removed, default=len(self.items)), len(items)):
            item = items[number]
            if not isinstance(item, Broken):
                positions[item.id] = number
        return positions

    def _kept(self, same: int) -> Kept | None:
        """The beginning of the file with its first ``same`` items."""
        if not self.tight or same == 0:
            return None
        rest = self.pieces[same:]
        size = self.state.size - 1 - sum(len(codec.to_bytes(piece)) + 1 for piece in rest)
        return Kept(self.place, self.state, size)


def _is_tight(text: str, spans: list[int]) -> bool:
    """Whether there is nothing in the text but the items, a comma between each two, and the brackets."""
    return bool(spans) and sum(spans[1::2]) - sum(spans[::2]) + len(spans) // 2 + 1 == len(text)


def _is_valid(text: str, data: bytes) -> bool:
    """Whether the bytes are the text in UTF-8, with nothing replaced."""
    return len(text) == len(data) or text.encode() == data


def _alike(text: str, pieces: list[str]) -> tuple[int, int]:
    """How many items at the beginning of ``text`` are these, and where the next one would be."""
    at, last = 1, len(text) - 1
    for number, piece in enumerate(pieces):
        end = at + len(piece)
        if end > last or not text.startswith(piece, at) or not (text[end] == "," or end == last):
            return number, at
        at = end + 1
    return len(pieces), at


def _alike_at_end(text: str, pieces: list[str], least: int, most: int) -> tuple[int, int]:
    """How many of at most ``most`` items at the end of ``text``, from ``least`` on, are the last of these.

    Also gives where the first of them begins, or one past the bracket.
    """
    end = len(text)
    for number in range(most):
        piece = pieces[-1 - number]
        start = end - 1 - len(piece)
        if start < least or not text.startswith(piece, start) or text[start - 1] not in "[,":
            return number, end
        end = start
    return most, end
