"""What people and programs see: tables, trees, progress on a terminal; JSON on request.

Tables fit the terminal: the widest column gives way. Where the output is no terminal nothing is cut, so
that ``fsd images | awk`` sees whole values.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

GAP = "  "
COLOURS = {"bold": 1, "red": 31, "green": 32, "yellow": 33}
BAR = 20
"""Characters of a progress bar."""
REDRAW_SECONDS = 0.1
NARROWEST = 8
"""A column is never cut below this many characters."""
VERDICTS = {"ok": "green", "warn": "yellow", "note": "yellow", "fail": "red", "bad": "red"}
"""Words in the first two columns of a table, and their colours on a terminal."""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
AGES = ((365 * 86400, "year"), (30 * 86400, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def print_json(value: object, file: TextIO | None = None) -> None:
    """One indented JSON document; paths and other unknown types become text."""
    import json  # tables need none of it

    print(json.dumps(value, indent=2, ensure_ascii=False, default=str), file=file)


def print_table(
    rows: Iterable[Sequence[object]], headers: Sequence[str], *, right: Sequence[str] = ()
) -> None:
    """A table with a header line; the columns named in ``right`` are right-aligned."""
    head, _, rest = table(rows, headers, right=right, width=terminal_width(sys.stdout)).partition("\n")
    lines = [colour(head, "bold"), *map(_judged, rest.splitlines())]
    print("\n".join(lines))


def _judged(line: str) -> str:
    """A line of a table, its verdict in colour if it has one."""
    words = line.split()
    for word, name in VERDICTS.items():
        if word in words[:2]:
            return line.replace(word, colour(word, name), 1)
    return line


def table(
    rows: Iterable[Sequence[object]],
    headers: Sequence[str],
    *,
    right: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """The table's text; ``width`` is how many characters a line may have, ``None`` for any number."""
    cells = [list(headers), *([_clean(value) for value in row] for row in rows)]
    widths = _fit([max(map(len, column)) for column in zip(*cells, strict=True)], headers, width)
    lines = []
    for row in cells:
        parts = []
        for text, size, header in zip(row, widths, headers, strict=True):
            text = text if len(text) <= size else f"{text[: size - 1]}…"
            parts.append(text.rjust(size) if header in right else text.ljust(size))
        lines.append(GAP.join(parts).rstrip())
    return "\n".join(lines) + "\n"


def _clean(value: object) -> str:
    """Text for one cell: control characters would break the line, or the terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(value))


def _fit(widths: list[int], headers: Sequence[str], width: int | None) -> list[int]:
    if width is None:
        return widths
    least = [min(size, max(NARROWEST, len(header))) for size, header in zip(widths, headers, strict=True)]
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    while excess > 0 and widths != least:
        widest = max(range(len(widths)), key=lambda n: widths[n] - least[n])
        widths[widest] -= 1
        excess -= 1
    return widths


def tree(label: str, children: Mapping[str, Any]) -> str:
    """A drawn tree; ``children`` maps a label to the mapping of what is below it. Any depth will do."""
    lines = [label]
    todo = _branches(children, "")
    while todo:
        head, name, below, indent = todo.pop()
        lines.append(f"{head}{_clean(name)}")
        todo += _branches(below, indent)
    return "\n".join(lines) + "\n"


def _branches(children: Mapping[str, Any], indent: str) -> list[tuple[str, str, Mapping[str, Any], str]]:
    """The children with what stands before them and before their own children, the first one last."""
    last = len(children)
    return [
        (
            f"{indent}{'└── ' if number == last else '├── '}",
            label,
            below,
            f"{indent}{'    ' if number == last else '│   '}",
        )
        for number, (label, below) in enumerate(children.items(), 1)
    ][::-1]


def terminal_width(file: TextIO) -> int | None:
    """Columns of the terminal behind ``file``; ``None`` when it is no terminal."""
    if not file.isatty():
        return None
    chosen = os.environ.get("COLUMNS", "")
    columns = int(chosen) if chosen.isdigit() else 0
    return columns or os.get_terminal_size(file.fileno()).columns or 80


def human_size(size: int) -> str:
    """``size`` bytes with a binary unit and three significant digits; ``-`` for an unknown one (negative)."""
    if size < 0:
        return "-"
    value, unit = float(size), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.{2 if unit and value < 10 else 1 if unit and value < 100 else 0}f} {UNITS[unit]}"


def human_age(created_ns: int, now: float | None = None) -> str:
    """How long ago a time in nanoseconds since the epoch was; ``-`` for the zero time."""
    if created_ns <= 0:
        return "-"
    seconds = (time.time() if now is None else now) - created_ns / 1e9
    for length, unit in AGES:
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def colour(text: str, name: str, file: TextIO | None = None) -> str:
    """``text`` in a colour on a terminal; as it is elsewhere, or where ``NO_COLOR`` is set."""
    if os.environ.get("NO_COLOR") or not (file or sys.stdout).isatty():
        return text
    return f"\x1b[{COLOURS[name]}m{text}\x1b[0m"


class Progress:
    """A bar on a terminal that shows how far a task is; silent everywhere else.

    Args:
        label: what is being done.
        total: bytes or items expected, 0 when unknown.
        passes: how often each of them is counted.
        items: whether it counts items, not bytes.
    """

    def __init__(
        self, label: str, total: int = 0, file: TextIO | None = None, *, passes: int = 1, items: bool = False
    ) -> None:
        self._label, self._total, self._file = label, total, file or sys.stderr
        self._passes, self._items = passes, items
        self._done, self._drawn, self._shown = 0, 0.0, self._file.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=self._file, flush=True)

    def add(self, count: int) -> None:
        """``count`` more bytes or items are done."""
        self._done += count
        if self._shown and time.monotonic() - self._drawn > REDRAW_SECONDS:
            self._drawn = time.monotonic()
            print(f"\r\x1b[K{self._line()}", end="", file=self._file, flush=True)

    def item(self, *_: object) -> None:
        """One more item is at hand, whatever it is."""
        self.add(1)

    def _line(self) -> str:
        done = self._done // self._passes
        if not self._total:
            return f"{self._label} {self._figure(done)}"
        part = min(1.0, done / self._total)
        full = int(part * BAR)
        bar = "█" * full + "░" * (BAR - full)
        figures = f"{self._figure(min(done, self._total))} of {self._figure(self._total)}"
        return f"{self._label} {bar} {part:4.0%} {figures}"

    def _figure(self, number: int) -> str:
        return str(number) if self._items else human_size(number)
