"""What parts may differ in together follows from what each may."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import moec
from moec.proof.checks.proven_parts import ProvenParts
from moec.proof.joint import joint_tolerance, outputs_alone, proven_parts
from moec.proof.verification import Verification


@pytest.fixture(scope="module")
def alone(translator_engine: Path) -> dict[str, Verification]:
    return {part: moec.api.read_report(translator_engine / part).proof for part in ("encoder", "decoder")}


def test_budgets_add_up(alone: dict[str, Verification]) -> None:
    exact = alone["encoder"].comparison
    approximate = replace(exact, tolerance=None, max_rms=0.1)
    assert joint_tolerance([exact, exact]).deviation == exact.tolerance
    found = joint_tolerance([approximate, replace(approximate, max_rms=0.2)])
    assert found.rms == pytest.approx(0.3) and found.deviation == float("inf")


def test_each_part_is_named_with_what_was_found(alone: dict[str, Verification]) -> None:
    found = proven_parts(alone)
    assert found.ok and [p.part for p in found.parts] == ["encoder", "decoder"] and len(outputs_alone(alone)) == 2
    wrong = replace(alone["decoder"], checks=(ProvenParts(()), *alone["decoder"].checks))
    failed = proven_parts({**alone, "decoder": wrong})
    assert not failed.ok and failed.parts[1].problem and not failed.parts[0].problem
