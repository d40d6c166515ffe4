"""Broken models, engines and command lines end in three lines or in a result: no traceback, no bug's exit status, no
escape sequence, no code that runs. `benchmarks/fuzz.py` tries thousands."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.mutations import KINDS, Bases, attempt, command, judged, make_bases

EACH = {"config": 40, "weights": 55, "index": 15, "manifest": 30, "engine": 20, "arrays": 20, "line": 20}  # 200


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return make_bases(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize("kind", KINDS)
def test_broken_input_is_refused_or_taken(
    kind: str, bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses, wrong = set(), []
    for seed in range(EACH[kind]):
        place = tmp_path / str(seed)
        place.mkdir()
        arguments = command(kind, seed, bases, place)
        monkeypatch.chdir(place / "here" if (place / "here").exists() else place)
        outcome = attempt(arguments, place / "mark")
        statuses.add(outcome.status)
        wrong += [(seed, outcome.wrong, arguments, outcome.text[-300:])] if outcome.wrong else []
        os.chdir(tmp_path)
        shutil.rmtree(place)
    assert wrong == []
    assert statuses & {1, 2}, "nothing was broken"


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    """So that the test above can fail."""
    assert judged(2, "error[M204]: no\n", tmp_path / "mark").wrong == []
    assert judged(70, "", tmp_path / "mark").wrong and judged(-11, "", tmp_path / "mark").wrong
    assert judged(2, "Traceback (most recent call last):", tmp_path / "mark").wrong
    assert judged(0, "\x1b[31m", tmp_path / "mark").wrong
    (tmp_path / "mark").touch()
    assert judged(0, "", tmp_path / "mark").wrong
