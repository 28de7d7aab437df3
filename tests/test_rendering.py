"""What is found out about an entry without making it is what making it would give."""

from __future__ import annotations

import json
import os

from hypothesis import given
from hypothesis import strategies as st

from fsd.lengths import indented_length, plain_indented_length
from fsd.nodes import relative_target
from fsd.plane import ENTRY, _plane

SCALARS = st.none() | st.booleans() | st.integers()
ANYTHING = st.recursive(
    SCALARS | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
PLAIN = st.recursive(
    SCALARS | st.sampled_from(["", "a", "sha256:00, {x}", "[b c]"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("abcde"), inner),
    max_leaves=20,
)
PATHS = st.lists(st.sampled_from(["a", "b", "c:1", "..c"]), min_size=1, max_size=5).map("/".join)


def bytes_of(value: object) -> int:
    return len(json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "surrogateescape"))


@given(ANYTHING)
def test_length_of_indented_json(value):
    compact = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert indented_length(value, 0) == bytes_of(value)
    assert plain_indented_length(compact) in (0, bytes_of(value))


@given(PLAIN)
def test_length_of_plain_indented_json_is_found_by_its_marks(value):
    assert plain_indented_length(json.dumps(value, separators=(",", ":"))) == bytes_of(value)


@given(PATHS, PATHS | st.just(""))
def test_target_relative_to_a_directory(target, directory):
    assert relative_target(target, directory) == os.path.relpath(f"/{target}", f"/{directory}")
    assert relative_target(f"/{target}", directory) == f"/{target}"


def test_entry_is_as_long_as_the_plane_reads_it():
    assert _plane.ffi.sizeof("fsd_entry") == ENTRY.size
