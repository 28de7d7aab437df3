"""How long indented JSON is, without making it: Python's own indenting is slow."""

from __future__ import annotations

import json
import re
from typing import Any

_STRING = re.compile(r'"[^"]*"')
_PLAIN = re.compile(r"[\[\]{},:0-9a-z\"-]*")


def plain_indented_length(text: str) -> int:
    """Bytes with an indent of two of compact JSON whose strings stand as they would be written; else 0.

    Only the marks between the strings are looked at, which is what makes it fast.
    """
    marks = _STRING.sub('"', text)
    if "\\" in text or not text.isascii() or not _PLAIN.fullmatch(marks):
        return 0
    length, depth, before = len(text), 0, ""
    for mark in marks:
        if mark in "]}":
            depth -= 1
            length += 0 if before in "[{" else 1 + 2 * depth
        elif before and before in "[{":
            length += 1 + 2 * depth
        if mark in "[{":
            depth += 1
        elif mark == ",":
            length += 1 + 2 * depth
        elif mark == ":":
            length += 1
        before = mark
    return length


_compact = json.JSONEncoder(ensure_ascii=False).encode


def indented_length(value: Any, depth: int) -> int:
    """Bytes of JSON with an indent of two."""
    if not value or not isinstance(value, dict | list):
        return len(_compact(value).encode("utf-8", "surrogateescape"))
    inner = sum(
        indented_length(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)
    )
    if isinstance(value, dict):
        inner += sum(len(_compact(key).encode("utf-8", "surrogateescape")) + 2 for key in value)
    lines = len(value) * (2 * (depth + 1) + 1)  # an indent and a newline for each
    return inner + lines + len(value) - 1 + 2 + 1 + 2 * depth
