"""Weights are fitted one after the other: each to what the weights before it, already quantized, bring to it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, fx

from moec.execution.lockstep import OperatorCalls, run_in_lockstep
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.quantization.gptq import encode_with
from moec.quantization.grid import Grid
from moec.quantization.hessians import second_moments
from moec.quantization.packed_result import unpacked
from moec.quantization.rounding import encode
from moec.quantization.sequential import Matrix, Sequential, key_of
from moec.recognition.weight_roles import Use, weight_uses
from tests import zoo

GPTQ, RTN = Grid(4, 16, True, "gptq"), Grid(4, 16)


@cache
def program(name: str, fused: bool = False) -> Program:
    captured = zoo.captured(name)
    return Pipeline.parse("find-moe, fuse-moe").all_optional().run(captured)[0] if fused else captured


def inputs(of: Program, tokens: int = 240) -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 90, (tokens,), generator=torch.Generator().manual_seed(0))
    return list(Calibration(CalibrationText("text", 0, 20), "", ids).batches(of.inputs))


def uses(of: Program, *kinds: str) -> list[Use]:
    return [u for u in weight_uses(of) if u.kind in kinds and u.weight is not None]


def done(of: Program, todo: list[tuple[Use, Grid]]) -> Sequential:
    job = Sequential(of, todo, "label")
    job.run(inputs(of))
    return job


def seen(of: Program, node: fx.Node, place: int, given: dict[fx.Node, dict[int, object]]) -> list[Tensor]:
    """An operator's argument for every input, computed with other arguments of the operators before it."""
    found: list[Tensor] = []

    def visit(calls: OperatorCalls) -> None:
        for at, value in given.get(calls.node, {}).items():
            calls.replace(at, value)
        if calls.node is node:
            found.extend(calls.values(place))

    run_in_lockstep(of, inputs(of), visit, until=node)
    return found


@pytest.mark.parametrize("before", [RTN, GPTQ])
def test_a_layer_sees_the_quantized_ones_before_it(before: Grid) -> None:
    of = program("llama")
    first, last = uses(of, "attention")[0], uses(of, "dense")[-1]
    job = done(of, [(first, before), (last, GPTQ)])
    made = job.made[key_of(first, before)]
    rows = {
        True: seen(of, last.node, 0, {first.node: {first.place: unpacked(made, before)}}),
        False: seen(of, last.node, 0, {}),
    }
    assert last.weight is not None
    want = {k: encode_with(last.weight.load(), second_moments(r), GPTQ) for k, r in rows.items()}
    assert want[True] is not None and want[False] is not None
    found = job.made[key_of(last, GPTQ)].scale.load()
    assert torch.equal(found, want[True][1]) and not torch.equal(found, want[False][1])  # and not the untouched ones


def test_queries_keys_and_values_share_their_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    monkeypatch.setattr(
        "moec.quantization.sequential.moments", lambda pool, parts: computed.append(1) or second_moments(parts)
    )
    of = program("llama")
    todo = [(u, GPTQ) for u in uses(of, "attention", "dense")]
    done(of, todo)
    assert len(todo) == 14 and len(computed) == 8  # of queries, of the output, of gate and up, of down: in two layers


@pytest.mark.parametrize("fused", [False, True])
def test_an_experts_second_matrix_is_fitted_to_its_quantized_first(fused: bool) -> None:
    of = program("mixtral", fused)
    pair = uses(of, "experts")[:2]
    node, both = pair[0].node, done(of, [(u, GPTQ) for u in pair])
    alone = done(of, [(pair[1], GPTQ)])
    second = key_of(pair[1], GPTQ)
    assert node is moe_nodes(of)[0] and not torch.equal(
        both.made[second].packed.load(), alone.made[second].packed.load()
    )
    rounded = done(of, [(pair[0], RTN), (pair[1], GPTQ)])
    assert pair[0].weight is not None
    torch.testing.assert_close(rounded.made[key_of(pair[0], RTN)].scale.load(), encode(pair[0].weight.load(), RTN)[1])


def test_both_operators_get_the_same_experts() -> None:
    found = []
    for fused in (False, True):
        of = program("mixtral", fused)
        job = done(of, [(u, GPTQ) for u in uses(of, "experts")])
        found.append([unpacked(p, GPTQ).load() for p in job.made.values()])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-3, atol=1e-3)


def test_products_with_transposed_matrices() -> None:
    of = program("gpt2")
    todo = [(u, GPTQ) for u in uses(of, "attention", "dense")]
    job = done(of, todo)
    assert all(job.made[key_of(u, g)].packed.shape[0] == u.weight.shape[0] for u, g in todo if u.weight is not None)


def test_what_shares_a_weight_is_done_once() -> None:
    of = program("mixtral")
    (use, *_) = uses(of, "attention")
    job = done(of, [(use, GPTQ), (replace(use, module="again"), GPTQ)])
    assert len(job.made) == 1


def test_what_cannot_be_fitted_is_rounded_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    of = program("mixtral")
    pair = uses(of, "experts")[:2]
    monkeypatch.setattr(
        "moec.quantization.hessians.Arrivals.first",
        lambda self, e: torch.full((32, 32), float("nan")) if e == 3 else torch.eye(32) + 0.9,
    )
    job = done(of, [(u, GPTQ) for u in pair])
    assert job.rounded == [Matrix(pair[0].name, 3)] and pair[0].weight is not None
    scales = job.made[key_of(pair[0], GPTQ)].scale.load()
    same = [torch.equal(scales[e], encode(pair[0].weight.load()[e], RTN)[1]) for e in range(8)]
    assert same == [e == 3 for e in range(8)]


def test_nothing_behind_the_last_weight_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    of = program("mixtral")
    (head,) = uses(of, "lm_head")
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "moec.execution.lockstep._OneInput.keep",
        lambda self, node, value: shapes.append(tuple(getattr(value, "shape", ()))) or _keep(self, node, value),
    )
    done(of, [(head, GPTQ)])
    assert shapes and not any(s[-1:] == (zoo.VOCAB,) for s in shapes if len(s) == 3)


def _keep(run: object, node: fx.Node, value: object) -> None:
    own = run.here[node.name]  # type: ignore[attr-defined]
    run.env[own] = value  # type: ignore[attr-defined]


def test_results_can_be_trained_with_and_are_the_same_again() -> None:
    of = program("mixtral")
    todo = [(u, GPTQ) for u in uses(of, "experts", "attention")]
    one, two = done(of, todo), done(of, todo)
    for key, found in one.made.items():
        assert not found.packed.load().is_inference() and "label" in found.packed.origin
        assert all(torch.equal(a.load(), b.load()) for a, b in zip(found.parts(), two.made[key].parts(), strict=True))
