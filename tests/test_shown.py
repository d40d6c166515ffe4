"""Escape sequences in texts of others are seen, not obeyed."""

from __future__ import annotations

import pytest

from moec.errors import MoecError
from moec.shown import one_line, shown


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("a\rb\x9bc\x7f", "a\\rb\\x9bc\\x7f"),
        ("right\u202eleft", "right\\u202eleft"),
        ("\ud800", "\\ud800"),
        ("two\nlines\tand a tab, Grüße, 数, \u200d", "two\nlines\tand a tab, Grüße, 数, \u200d"),
    ],
)
def test_what_steers_is_spelled(text: str, want: str) -> None:
    assert shown(text) == want


def test_a_name_cannot_pose_as_a_line_of_ours() -> None:
    assert one_line("x\n  fix:   none") == "x\\n  fix:   none"
    error = MoecError("M204", "no\nerror[M101]: model\x1b[31m", "a\nb", "c\x1b")
    assert str(error).splitlines() == [
        "error[M204]: no",
        "    error[M101]: model\\x1b[31m",
        "  where: a\\nb",
        "  fix:   c\\x1b",
    ]
