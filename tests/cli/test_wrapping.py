"""Sentences on a terminal."""

from __future__ import annotations

from moec.cli.wrapping import wrapped


def test_a_sentence_is_broken_between_words_and_goes_on_further_in() -> None:
    assert wrapped("  one two three four five six", 20) == ["  one two three four", "    five six"]
    assert wrapped("short", 80) == ["short"] and wrapped("", 80) == [""]
    assert max(map(len, wrapped("word " * 100, 400))) <= 120
    assert wrapped("see /a/path-that-is/longer/than/a/line", 20) == ["see", "  /a/path-that-is/longer/than/a/line"]
