"""A table's text read by what changed: the same result as reading all of it, whatever the change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.segment import Segment

VALUES = st.one_of(
    st.integers(0, 3).map(lambda n: {"id": str(n)}),
    st.sampled_from([{"id": "a", "names": ["x", "],[{"]}, {"id": "é"}, [], [{"id": "1"}], 1, 12, "]", None]),
)
LISTS = st.lists(VALUES, max_size=6)
DAMAGE = st.sampled_from(["", ",", "]", "[", " ", "}", "1"])


def parsed(text: str, older: Segment | None = None) -> Segment | None:
    """The segment with the JSON of each value as its item; ``None`` where the text is no list."""
    segment: Segment = Segment(Path("t.json"), False)
    try:
        segment.parse(text.encode(), older, lambda value, number: (segment.text_of(number), repr(value)))
    except (ValueError, RecursionError):
        return None
    return segment


@settings(max_examples=300, deadline=None)
@given(before=LISTS, after=LISTS, damage=DAMAGE, place=st.integers(0, 200), loose=st.booleans())
def test_text_read_by_what_changed_gives_what_reading_all_gives(before, after, damage, place, loose):
    older = parsed(json.dumps(before, separators=(",", ":"), ensure_ascii=False))
    text = json.dumps(after, separators=(", " if loose else ",", ":"), ensure_ascii=False)
    text = text[: place % (len(text) + 1)] + damage + text[place % (len(text) + 1) :]
    all_of_it, changed = parsed(text), parsed(text, older)
    assert (all_of_it is None) == (changed is None)
    if all_of_it is not None and changed is not None:
        assert changed.items == all_of_it.items
        assert changed.pieces == all_of_it.pieces
        assert not changed.tight or f"[{','.join(changed.pieces)}]" == text


@pytest.mark.parametrize(
    ("text", "before", "after", "new"),
    [
        ("[1,2,3]", 3, 0, 0),
        ("[1,2,3,4]", 3, 0, 1),
        ("[1,3]", 1, 1, 0),
        ("[0,1,2,3]", 0, 3, 1),
        ("[1,9,3]", 1, 1, 1),
        ("[1]", 1, 0, 0),
    ],
)
def test_only_what_changed_is_parsed(text, before, after, new):
    older = parsed("[1,2,3]")
    assert older is not None
    found = older.compared(text)
    assert found is not None
    assert (found.before, found.after, len(found.values)) == (before, after, new)
