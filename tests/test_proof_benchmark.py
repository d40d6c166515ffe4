"""`benchmarks/proof.py`: its wrong engines are wrong, its right ones are not called wrong, and every report can be
looked up."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmark's modules, which import each other by bare names."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import proof
        import proof_changes
        import proof_mutants

        yield proof, proof_changes, proof_mutants
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def right(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The right engine of a small Qwen3-MoE, and its own distance from the untouched model."""
    found = bench[0].Right(bench[2].QWEN3, tmp_path_factory.mktemp("proof"))
    return found, found.distance(found.engine)


def rows_of(bench: Any, mutant: Any, right: Any) -> dict[str, Any]:
    people = ["moec", "optimum's validation", "64 greedy tokens, 10 prompts"]
    rows = bench[0].judge_mutant(mutant, *right, people, False)
    return {row["who"]: row for row in rows}


def test_the_failures_are_many_and_each_names_its_report(bench: Any) -> None:
    mutants, found = bench[2].MUTANTS, bench[2].FOUND
    assert len(mutants) >= 80
    assert len({m.name for m in mutants}) == len(mutants)
    assert all(m.report == found or re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", m.report) for m in mutants)
    assert len({m.report for m in mutants} - {found}) >= 60
    assert next(m for m in mutants if m.report != found).url.startswith("https://github.com/")


def test_forty_engines_are_right(bench: Any) -> None:
    assert len({case.title for case in bench[0].RIGHT}) == 40


def test_nobody_refuses_the_right_engine(bench: Any, right: Any) -> None:
    from proof_contestants import judged

    assert right[1] < 1e-4
    assert set(
        judged(right[0], right[0].engine, ["transformers' exporter tests", "64 greedy tokens, 10 prompts"]).values()
    ) == {""}


@pytest.mark.parametrize("name", ["norm_topk_prob ignored", "attention mask ignored"])
def test_a_wrong_engine_is_wrong_and_found(bench: Any, right: Any, name: str) -> None:
    rows = rows_of(bench, next(m for m in bench[2].MUTANTS if m.name == name), right)
    assert rows["how wrong"]["value"] > 0.1
    assert rows["moec"]["value"] and "outputs" in rows["moec"]["unit"]
    assert rows["optimum's validation"]["value"]


def test_a_change_that_changes_nothing_is_no_failure(bench: Any, right: Any) -> None:
    nothing = bench[2].Mutant("nothing", bench[2].QWEN3, bench[1].File(lambda model: None))
    rows = rows_of(bench, nothing, right)
    assert list(rows) == ["how wrong"] and rows["how wrong"]["unit"].startswith("NOT wrong")


def test_the_table_says_who_missed_what(bench: Any) -> None:
    from proof_report import table

    row = bench[0]._row
    name = "softmax for sigmoid"
    rows = [
        row(name, "how wrong", 4.4, "max |d|/std"),
        row(name, "moec", True, "outputs"),
        row(name, "optimum's validation", False, ""),
        row("right: llama", "moec", False, ""),
        row("right: llama", "optimum's validation", True, "logits"),
        row("everything", "seconds", 1, "1 jobs"),
    ]
    machine = {"cpu": "this", "cores": 1, "load": [0.0]}
    text = table({"machine": machine, "versions": {}, "reports": {name: "NVIDIA/some#1"}, "rows": rows})
    assert "| moec | 1 of 1 | 0 of 1 |" in text and "| optimum's validation | 0 of 1 | 1 of 1 |" in text
    assert "| softmax for sigmoid | [NVIDIA/some#1](https://github.com/NVIDIA/some/issues/1) | 4.4 |" in text
    assert "**missed**" in text and "- llama: optimum's validation, logits" in text
