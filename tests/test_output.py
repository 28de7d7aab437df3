"""Tables, trees, sizes and ages as people see them."""

from __future__ import annotations

import io
import json

import pytest

from fsd import output


def test_table_without_a_terminal_cuts_nothing():
    text = output.table([["x" * 300, 1]], ["NAME", "N"], right=["N"])
    assert "x" * 300 in text
    assert text.splitlines()[0].startswith("NAME")


@pytest.mark.parametrize("width", [20, 30, 60])
def test_table_on_a_terminal_fits_and_cuts_the_widest_column(width):
    lines = output.table([["n" * 100, "short", 123]], ["NAME", "KIND", "N"], width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert "short" in lines[1]
    assert "…" in lines[1]


def test_table_narrower_than_its_headers_keeps_them():
    assert "HEADERONE" in output.table([["a", "b"]], ["HEADERONE", "HEADERTWO"], width=5)


def test_table_makes_control_characters_harmless():
    assert "\x1b" not in output.table([["a\x1b[31m\nb"]], ["NAME"])
    assert len(output.table([["a\nb"]], ["NAME"]).splitlines()) == 2


def test_tree_draws_branches():
    text = output.tree("top", {"a": {"b": {}}, "c": {}})
    assert text == "top\n├── a\n│   └── b\n└── c\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (-1, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (20 << 20, "20.0 MiB"),
        (300 << 30, "300 GiB"),
    ],
)
def test_human_size(size, text):
    assert output.human_size(size) == text


@pytest.mark.parametrize(
    ("ago", "text"),
    [(5, "just now"), (60, "1 minute ago"), (7200, "2 hours ago"), (86400 * 45, "1 month ago")],
)
def test_human_age(ago, text):
    now = 1_800_000_000.0
    assert output.human_age(int((now - ago) * 1e9), now) == text
    assert output.human_age(0, now) == "-"


def test_json_keeps_text_and_ends_the_line():
    file = io.StringIO()
    output.print_json({"name": "grüße"}, file)
    assert "grüße" in file.getvalue()
    assert json.loads(file.getvalue()) == {"name": "grüße"}
    assert file.getvalue().endswith("}\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_shows_on_a_terminal_only_and_cleans_up():
    for file, shown in ((Terminal(), True), (io.StringIO(), False)):
        with output.Progress("importing", 200, file) as progress:
            progress.add(100)
        assert ("50%" in file.getvalue()) is shown
        assert not shown or file.getvalue().endswith("\r\x1b[K")
