"""JSON as containers/storage writes it, and its timestamps (FORMAT 2).

One line, no spaces, struct field order, map keys sorted, HTML characters escaped, other non-ASCII
raw. The module knows nothing of records; :mod:`store.records` maps fields to keys.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import date
from typing import Any, Final

from store.errors import BadValue

ZERO_TIME: Final = "0001-01-01T00:00:00Z"
"""Go's zero ``time.Time``: what a missing ``created`` is read as and written back as."""

_HTML: Final = (
    ("&", "\\u0026"),
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("\u2028", "\\u2028"),
    ("\u2029", "\\u2029"),
)
_NEEDS_ESCAPE: Final = re.compile("[&<>\u2028\u2029]")
_SHORT_CONTROLS: Final = re.compile(r"\\.")
_LONG_CONTROLS: Final = {"\\b": "\\u0008", "\\f": "\\u000c"}
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_dumps_sorted: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode
_dumps: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _go_number(text: str) -> int | float:
    """A JSON number with fraction or exponent; integral ones become ``int``, as Go prints them."""
    value = float(text)
    if value.is_integer() and abs(value) < 1e21:
        from decimal import Decimal  # a rare case, and a slow import

        return int(Decimal(repr(value)))
    return value


_decoder: Final = json.JSONDecoder(parse_float=_go_number, strict=False)
scan_value: Final[Callable[[str, int], tuple[Any, int]]] = _decoder.scan_once  # type: ignore[attr-defined]
"""``scan_value(text, index) -> (value, end)``: parse one JSON value out of a longer text."""

_SPACE: Final = " \t\n\r"


def dumps(value: Any, *, sort_keys: bool = True) -> str:
    """``value`` as Go's encoder would write it."""
    text = (_dumps_sorted if sort_keys else _dumps)(value)
    if _NEEDS_ESCAPE.search(text):
        for char, escaped in _HTML:
            text = text.replace(char, escaped)
    if "\\b" in text or "\\f" in text:
        text = _SHORT_CONTROLS.sub(lambda m: _LONG_CONTROLS.get(m[0], m[0]), text)
    return text


def to_bytes(text: str) -> bytes:
    """UTF-8; what is no valid text (a lone surrogate) becomes U+FFFD, as in Go."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text).encode()


def loads(data: bytes) -> Any:
    """Parse a JSON document; ``ValueError`` when it is none. Invalid UTF-8 reads as U+FFFD."""
    return _decoder.decode(data.decode("utf-8", "replace"))


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE and at < len(text):
        at += 1
    return at


def scan_array(text: str) -> tuple[list[Any], list[int]]:
    """Parse a JSON array and remember where its elements are.

    Returns:
        the elements, and a flat list of start and end offsets of each one in ``text``.

    Raises:
        ValueError: ``text`` is not one JSON array. Empty text and ``null`` are the empty array.
    """
    values: list[Any] = []
    spans: list[int] = []
    at = _skip(text, 0)
    if at == len(text) or text[at:].strip() == "null":
        return values, spans
    if text[at] != "[":
        raise ValueError(f"a list was expected, not {text[at : at + 20]!r}")
    at = _skip(text, at + 1)
    if text[at : at + 1] != "]":
        at = _scan_elements(text, at, values, spans)
    if text[at + 1 :].strip():
        raise ValueError(f"unexpected text after the list, at character {at + 1}")
    return values, spans


def _scan_elements(text: str, at: int, values: list[Any], spans: list[int]) -> int:
    """Append elements from ``at`` on; return the offset of the closing bracket."""
    while True:
        try:
            value, end = scan_value(text, at)
        except StopIteration:
            raise ValueError(f"no JSON value at character {at}") from None
        values.append(value)
        spans += (at, end)
        if text[end : end + 1] not in (",", "]"):
            end = _skip(text, end)
        if text[end : end + 1] == "]":
            return end
        if text[end : end + 1] != ",":
            raise ValueError(f"',' or ']' expected at character {end}")
        at = end + 1
        if text[at : at + 1] != "{":
            at = _skip(text, at)


# -- time ----------------------------------------------------------------------------------------

_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))"
)
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()
NANOSECONDS: Final = 1_000_000_000


def parse_time(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 time; negative before 1970.

    Raises:
        BadValue: ``text`` is no such time.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise BadValue(f"{text!r} is not an RFC 3339 time")
    day, hour, minute, second, fraction, sign, off_hours, off_minutes = match.groups()
    try:
        days = date.fromisoformat(day if day[:4] != "0000" else f"0001{day[4:]}").toordinal() - _EPOCH_DAY
    except ValueError as error:
        raise BadValue(f"{text!r} is not a date: {error}") from None
    seconds = days * 86400 + int(hour) * 3600 + int(minute) * 60 + int(second)
    if sign:
        offset = int(off_hours) * 3600 + int(off_minutes) * 60
        seconds -= offset if sign == "+" else -offset
    return seconds * NANOSECONDS + int((fraction or "0")[:9].ljust(9, "0"))


def format_time(ns: int) -> str:
    """An instant in UTC as Go's RFC3339Nano prints it: trailing zeros of the fraction are cut."""
    seconds, fraction = divmod(ns, NANOSECONDS)
    days, rest = divmod(seconds, 86400)
    day = date.fromordinal(days + _EPOCH_DAY)
    text = f"{day.isoformat()}T{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    if fraction:
        text += f".{fraction:09}".rstrip("0")
    return text + "Z"


def now() -> str:
    """The present, as a ``created`` value."""
    return format_time(time.time_ns())
