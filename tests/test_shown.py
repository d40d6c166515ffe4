"""Escape sequences in texts of others are seen, not obeyed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moec.errors import MoecError
from moec.shown import count_of, one_line, shown, size_of, span_of, time_of
from tests.pages import blocks


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


@pytest.mark.parametrize(
    ("count", "size", "number"),
    [
        (0, "0 B", "0"),
        (31, "31 B", "31"),
        (1023.7, "1.00 KiB", "1.02 K"),
        (29_000, "28.3 KiB", "29.0 K"),
        (999_999, "977 KiB", "1.00 M"),
        (1_048_576, "1.00 MiB", "1.05 M"),
        (7_615_616, "7.26 MiB", "7.62 M"),
        (30_500_000_000, "28.4 GiB", "30.5 B"),
        (4e15, "3,638 TiB", "4,000 T"),
    ],
)
def test_units_fit(count: float, size: str, number: str) -> None:
    assert (size_of(count), count_of(count)) == (size, number)
    assert count_of(count, "FLOP") == number.replace("B", "G") + ("" if number[-1:].isalpha() else " ") + "FLOP"


def test_pages_show_sizes_as_moec_prints_them() -> None:
    shown = [
        (block.place, number)
        for page in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
        for block in blocks(page)
        if block.marker == "output of the block above"
        for number in re.findall(r"(\d[\d.]*) [KMGT]iB", block.text)
    ]
    assert shown and [(place, n) for place, n in shown if len(n.replace(".", "")) < 3] == []
    assert size_of(1.7 * 2**20) == "1.70 MiB"


def test_an_interval_keeps_its_digits() -> None:
    assert [span_of(*ends) for ends in ((0.034, 2.5), (9.96, 40.5), (1000, 20_000))] == [
        "0.03–2.50", "9.96–40.5", "1,000–20,000",
    ]  # fmt: skip
    assert span_of(1.2, 1.4, ",.0f") == "1" and span_of(2, 1, ",.0f") == "1–2"
    assert span_of(0.5, 0.25, ".0%") == "25%–50%"


@pytest.mark.parametrize(
    ("seconds", "want"),
    [
        (0.2, "0 seconds"),
        (1.2, "1 second"),
        (10.01, "10 seconds"),
        (119, "119 seconds"),
        (240.02, "4 minutes"),
        (7199, "120 minutes"),
        (44_000, "12 hours"),
    ],
)
def test_a_time_is_rounded_in_a_unit_that_fits(seconds: float, want: str) -> None:
    assert time_of(seconds) == want
