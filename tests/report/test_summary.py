"""A proof as Markdown for the page of a job: the table has every check, the plots are of the proof's own numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from moec import api
from moec.proof.checks.outputs import Outputs
from moec.report.report import Report
from moec.report.summary import job_summary, used_bounds
from tests.report.test_report import QUALITY, make, with_check


@pytest.fixture(scope="module")
def report(mixtral_engine: Path) -> Report:
    return api.read_report(mixtral_engine)


def plots(text: str) -> list[tuple[str, list[str], float, list[float]]]:
    """Title, names, top and values of each plot, read as Mermaid's grammar has them."""
    found = []
    for block in re.findall(r"^```mermaid\n(.*?)^```$", text, re.M | re.S):
        number = r"\d+(?:\.\d+)?"
        lines = [
            "xychart-beta",
            'title "([^"]*)"',
            r"x-axis \[(.*)\]",
            rf'y-axis "[^"]*" 0 --> ({number})',
            r"bar \[(.*)\]",
        ]
        match = re.fullmatch("\n    ".join(lines) + "\n", block)
        assert match, block
        assert all(re.fullmatch(number, value) for value in match[4].split(", "))
        found.append(
            (match[1], re.findall(r'"([^"]*)"', match[2]), float(match[3]), list(map(float, match[4].split(", "))))
        )
    return found


def test_the_table_has_every_check(report: Report) -> None:
    text = job_summary(report)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(report.proof.checks) and all("| passed |" in row for row in rows[1:])
    assert "**Equal to the untouched model" in text and "## mixtral for onnxruntime" in text


def test_the_plots_are_of_the_proofs_numbers(report: Report) -> None:
    bounds, *loads = plots(job_summary(report))
    logits = next(o for o in report.comparison.outputs if o.name == "logits")
    assert bounds[1] == ["logits", "cache"] and bounds[2] == 100
    assert bounds[3][0] == pytest.approx(100 * logits.deviation / report.comparison.tolerance, rel=0.01)
    assert [load[3] for load in loads] == [list(load.assignments) for load in report.coverage.counted]
    assert all(top >= max(values) for _, _, top, values in loads)


def test_a_failure_is_seen() -> None:
    report = make()
    far = replace(report.comparison, outputs=tuple(replace(o, deviation=9.0) for o in report.comparison.outputs))
    wrong = with_check(report, Outputs(far))
    text = job_summary(wrong)
    assert text.count("**FAILED**") == 1 and "Not proven equal" in text
    (_, _, top, values), *_ = plots(text)
    assert values[0] > 100 and top == max(values)


def test_a_text_has_a_bound_too() -> None:
    from moec.proof.checks.text import TextQuality

    found = dict(used_bounds(with_check(make(), TextQuality(QUALITY))))
    assert found["KL on the text"] == pytest.approx(40)


def test_names_stay_in_their_quotes(report: Report) -> None:
    (block, *_) = report.coverage.loads
    from moec.proof.checks.experts import ExpertsReached

    named = replace(report.coverage, loads=(replace(block, module='a"]\n```\n# Free'),))
    found = report.proof.find(ExpertsReached)
    assert found is not None
    text = job_summary(with_check(report, replace(found, coverage=named)))
    assert "\n# Free" not in text and plots(text)


def test_every_bound_of_an_encoder_is_drawn() -> None:
    (output,) = make().comparison.outputs
    measured = replace(output, rms=0.2, row=0.55)
    found = replace(make().comparison, tolerance=None, max_rms=0.4, max_row=1.1, outputs=(measured,))
    used = used_bounds(with_check(make(), Outputs(found)))
    assert [round(share) for _, share in used] == [50, 50] and all(name.startswith(output.name) for name, _ in used)
