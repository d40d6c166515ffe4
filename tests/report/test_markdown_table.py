"""Tables in Markdown: as many cells a line as the header has, whatever the cells hold."""

from __future__ import annotations

import re

from moec.report.markdown_table import markdown_table


def test_cells_stay_in_their_places() -> None:
    lines = markdown_table(("a", "b"), [("x|y", "two\nlines"), ("\x1b[2J", "")])
    assert lines == ["| a | b |", "|---|---|", "| x\\|y | two\\nlines |", "| \\x1b[2J |  |", ""]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines[:-1]} == {4}


def test_no_rows_are_no_table() -> None:
    assert markdown_table(("a",), []) == []
