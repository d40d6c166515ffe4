"""Advice on a terminal."""

from __future__ import annotations

from moec.cli.plan_advice import advice_lines
from moec.planning.question import Advice


def test_a_sentence_follows_its_rule_and_verdict() -> None:
    said = advice_lines([Advice("bound", "memory-bound", "decode reads 16 GB", {"bytes": 16e9})])
    assert said == ["", "advice", "  bound → memory-bound: decode reads 16 GB"] and advice_lines([]) == []
