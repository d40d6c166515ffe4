"""A decoder's cache is part of every proof."""

from __future__ import annotations

from pathlib import Path

from moec import api
from moec.proof.cache_consistency import WAYS
from moec.report.page import html, markdown
from tests.proving import cache


def test_it_is_part_of_every_proof_and_of_the_report(mixtral_engine: Path) -> None:
    report = api.read_report(mixtral_engine)
    found = cache(report.proof)
    steps = [w.steps for w in found.consistency.ways]
    assert found.ok and steps[:3] == list(WAYS.values()) and not found.beyond
    assert [sum(s) for s in steps] == [16, 16, 16, 256] and steps[3][0] == 255  # the context of the model
    assert "token by token" in markdown(report) and "token by token" in html(report)
