"""The check of outputs names the worst one, and its table fails exactly where the check does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moec.errors import MoecError
from moec.proof.checks.outputs import Outputs
from moec.proof.compare import Comparison, OutputError

GOOD = OutputError("a", 40, 1e-6, 1e-7, 1e-5, 1e-6, 1.0, 0.97, 0.02, "")
CHECK = Outputs(Comparison("eager", "engine", 1e-3, 2, (GOOD, replace(GOOD, name="b"))))


def wrong(**figures: object) -> Outputs:
    worst = replace(GOOD, name="b", **figures)  # type: ignore[arg-type]
    return Outputs(replace(CHECK.comparison, outputs=(GOOD, worst)))


def test_a_right_output_passes() -> None:
    CHECK.require()
    assert CHECK.ok and [f.ok for f in CHECK.figures()] == [True, True]
    assert CHECK.figures()[0].values["top-1"] == "97 % + 2 % undecided" and "2 inputs" in CHECK.note


@pytest.mark.parametrize(
    "found", [wrong(deviation=1.1e-3), wrong(deviation=float("inf")), wrong(problem="the output is missing")]
)
def test_a_wrong_output_is_named(found: Outputs) -> None:
    assert not found.ok and [f.ok for f in found.figures()] == [True, False]
    with pytest.raises(MoecError, match="'b'") as error:
        found.require()
    assert error.value.code == "M101" and "--bisect" in error.value.fix


def test_a_nan_is_never_within() -> None:
    assert not wrong(deviation=float("nan")).ok


def test_what_decides_about_approximate_passes_is_said() -> None:
    comparison = replace(CHECK.comparison, tolerance=None, max_rms=0.4, why="4 bits")
    check = Outputs(replace(comparison, outputs=(replace(GOOD, deviation=1.8, rms=0.3),)), approximate=True)
    assert check.ok and "rms(d)/std 0.3 of 0.4 allowed (4 bits), cosine 1" in str(check) and "rms(d)/std" in check.note
    assert check.figures()[0].values["rms allowed"] == "0.4"
    far = replace(check, comparison=replace(comparison, outputs=(GOOD, replace(GOOD, name="b", rms=0.5))))
    assert [f.ok for f in far.figures()] == [True, False]
    with pytest.raises(MoecError, match=r"'b': rms\(d\)/std 0.5 where 0.4 is allowed"):
        far.require()


def test_where_a_text_decides_no_bound_is_named() -> None:
    check = Outputs(replace(CHECK.comparison, tolerance=None), approximate=True)
    assert check.ok and "allowed" not in check.figures()[0].values and "allowed" in CHECK.figures()[0].values
    assert "quality on a text" in check.note and "decides: the largest" in CHECK.note


def test_every_bound_that_decides_is_named_and_the_cache_s_worst_is_by_it() -> None:
    few, many = (replace(GOOD, name=f"present.{k}.key", top1=None, top1_undecided=None) for k in (0, 1))
    few, many = replace(few, deviation=1.8, rms=0.1, row=0.2), replace(many, deviation=1.0, rms=0.3, row=0.9)
    check = Outputs(Comparison("eager", "engine", None, 2, (few, many), 0.4, "4 bits", 1.1), approximate=True)
    (row,) = check.figures()
    assert row.name.startswith("present.1.key, the worst of 2") and row.values["row allowed"] == "1.1"
    assert "1.1 for that of the worst row" in check.note and "largest difference" not in check.note
    tighter = replace(check, comparison=replace(check.comparison, tolerance=2.0))
    assert "largest difference" in tighter.note and "2 is allowed" in tighter.note
    assert tighter.figures()[0].name.startswith("present.0.key")
