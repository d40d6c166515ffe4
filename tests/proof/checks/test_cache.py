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
    assert found.ok and [w.steps for w in found.consistency.ways] == list(WAYS.values())
    assert "token by token" in markdown(report) and "token by token" in html(report)
