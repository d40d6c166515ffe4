"""Moments of experts' inputs: by weight, with a share of all tokens; and how much text it takes until every expert was
reached."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moec.compiler.open import open_source
from moec.dialect import Activation
from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.quantization.hessians import (
    BLEND,
    GROWTH,
    SAMPLE,
    Arrivals,
    count_tokens,
    coverage,
    enough_text,
    second_moments,
    weighted_moments,
)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def arrivals(scaled: bool = False) -> Arrivals:
    """Four tokens, three experts of which the last is never chosen; one weight is zero."""
    ids = torch.tensor([[0, 1], [0, 1], [1, 0], [0, 1]])
    return Arrivals(normal(4, 3), ids, torch.tensor([[0.9, 0.1], [0.5, 0.5], [1.0, 0.0], [0.7, 0.3]]), 3, scaled)


def program_of(folder: Path) -> Program:
    return open_source(str(folder), cache=False).capture()


def calibration(tokens: int, length: int = 4000) -> Calibration:
    ids = torch.randint(0, 90, (length,), generator=torch.Generator().manual_seed(0))
    return Calibration(CalibrationText("text", tokens, 20), "", ids)


# ---------------------------------------------------------------------- moments
def test_moments_are_means_over_all_rows_of_all_parts() -> None:
    rows = normal(10, 3)
    want = torch.stack([torch.outer(x, x) for x in rows]).mean(0)
    torch.testing.assert_close(second_moments([rows[:4].reshape(2, 2, 3), rows[4:].half()]), want, atol=2e-3, rtol=0)
    torch.testing.assert_close(second_moments([rows[:4].reshape(2, 2, 3), rows[4:]]), want)


def test_an_expert_counts_its_tokens_by_weight_and_all_by_a_share() -> None:
    given = arrivals()
    own, everything = given.rows[[0, 1, 3]], second_moments([given.rows])
    want = (
        0.9 * torch.outer(own[0], own[0]) + 0.5 * torch.outer(own[1], own[1]) + 0.7 * torch.outer(own[2], own[2])
    ) / 2.1
    torch.testing.assert_close(given.first(0), want + BLEND * everything)
    assert given.counts.tolist() == [3, 4, 0]  # a weight of zero is none
    torch.testing.assert_close(given.first(2), BLEND * everything)  # nothing but all tokens
    torch.testing.assert_close(weighted_moments(own[:0], torch.ones(0)), torch.zeros(3, 3))


def test_scores_before_the_experts_are_in_their_inputs() -> None:
    given = arrivals(scaled=True)
    rows, counts = given.of_expert(0)
    torch.testing.assert_close(rows, given.rows[[0, 1, 3]] * torch.tensor([[0.9], [0.5], [0.7]]))
    assert counts.tolist() == [1, 1, 1]
    mean = float(torch.tensor([0.9, 0.5, 0.7, 0.0]).mean())
    torch.testing.assert_close(given.first(0), second_moments([rows]) + BLEND * mean**2 * second_moments([given.rows]))


def test_the_second_moments_are_of_what_the_first_product_makes() -> None:
    given, rule, matrix = arrivals(), Activation(), normal(8, 3)
    hidden = lambda rows: rule(rows @ matrix.T)  # noqa: E731
    rows, counts = given.of_expert(1)
    want = weighted_moments(hidden(rows), counts) + BLEND * second_moments([hidden(given.rows)])
    torch.testing.assert_close(given.second(1, hidden), want)
    assert not torch.allclose(given.second(1, lambda rows: rule(rows @ -matrix.T)), want)


def test_of_many_tokens_a_sample_goes_through_every_expert() -> None:
    seen: list[int] = []
    count = 3 * SAMPLE + 1
    given = Arrivals(normal(count, 3), torch.zeros(count, 1, dtype=torch.int64), torch.ones(count, 1), 2)
    given.second(1, lambda rows: seen.append(len(rows)) or rows)  # type: ignore[func-returns-value]
    assert seen[0] == 0 and SAMPLE / 2 < seen[1] <= SAMPLE


@pytest.mark.parametrize("name", ["mixtral", "fused"])
def test_both_operators_are_read_alike(mixtral: Path, name: str) -> None:
    from moec.pipeline.pipeline import Pipeline

    program = program_of(mixtral)
    if name == "fused":
        program, _ = Pipeline.parse("find-moe, fuse-moe").all_optional().run(program)
    found: list[Arrivals] = []
    run_in_lockstep(
        program,
        calibration(60).batches(program.inputs),
        lambda calls: found.append(_of(calls)) if calls.node in moe_nodes(program) else None,
    )
    assert [a.counts.sum() for a in found] == [2 * 60] * 2 and found[0].rows.shape == (60, 32)
    torch.testing.assert_close(found[0].weights.sum(-1), torch.ones(60))


def _of(calls: OperatorCalls) -> Arrivals:
    return Arrivals.of(calls)


# ---------------------------------------------------------------------- how much text
def test_text_is_read_on_until_every_expert_was_reached(mixtral: Path) -> None:
    program = program_of(mixtral)
    few = {n: int(c.min()) for n, c in count_tokens(program, calibration(200).batches(program.inputs)).items()}
    floor = min(few.values()) + 5
    more, counts = enough_text(program, calibration(200), floor)
    assert more.windows().numel() == 400 and more.windows()[:10].equal(calibration(200).windows())
    again = count_tokens(program, more.batches(program.inputs))
    assert {n: c.tolist() for n, c in counts.items()} == {n: c.tolist() for n, c in again.items()} and min(
        int(c.min()) for c in counts.values()
    ) >= floor
    assert enough_text(program, calibration(200), floor - 5)[0].windows().numel() == 200


@pytest.mark.parametrize(("length", "used"), [(4000, GROWTH * 200), (500, 500)])
def test_it_ends_with_the_text_or_with_four_times_what_was_allowed(mixtral: Path, length: int, used: int) -> None:
    more, counts = enough_text(program_of(mixtral), calibration(200, length), 10**6)
    assert more.windows().numel() == used and all(int(c.sum()) == 2 * used for c in counts.values())


def test_a_dense_model_has_nothing_to_count(llama: Path) -> None:
    more, counts = enough_text(program_of(llama), calibration(200), 10**6)
    assert not counts and more.windows().numel() == 200 and coverage(counts) == []


def test_coverage_names_the_block(mixtral: Path) -> None:
    program = program_of(mixtral)
    rows = coverage(count_tokens(program, calibration(200).batches(program.inputs)))
    assert [r["module"] for r in rows] == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert rows[0]["least"] == min(rows[0]["tokens"]) and sum(rows[0]["tokens"]) == 400
