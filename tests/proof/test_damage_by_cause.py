"""A change of weights alone and of routes alone is told from the other, however the blocks are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moec.compiler.open import open_source
from moec.execution.engine import EagerEngine
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.proof import damage_by_cause as expert_shift
from moec.proof.damage_by_cause import ExpertShift, measure_shift, unfused
from moec.proof.exam import Exam
from moec.proof.quality import measure
from moec.weights.lazy import from_tensor, scale
from tests.moe_module import MoeModel, source_of

WINDOWS = list(torch.randint(0, 50, (3, 2, 12), generator=torch.Generator().manual_seed(0)))
NOISE = 1e-9


@pytest.fixture(scope="module")
def captured() -> Program:
    return source_of(MoeModel()).capture()


def spoiled(program: Program, *names: str) -> Program:
    """Other routers, or scaled matrices."""
    changed = program.clone()
    for name in names:
        old = changed.weights[name]
        new = torch.randn(old.shape, generator=torch.Generator().manual_seed(3))
        changed.weights[name] = from_tensor(new, "other") if "router" in name else scale(old, 1.2)
    return changed


def shift(captured: Program, program: Program) -> ExpertShift:
    found = measure_shift(captured, program, WINDOWS)
    assert found is not None and found.tokens == 66
    return found


def test_nothing_changed_costs_nothing(captured: Program) -> None:
    found = shift(captured, Pipeline.parse("fuse-moe").run(captured)[0])
    assert max(found.weights, found.routes, found.both) < NOISE


def test_other_routers_cost_by_their_routes_alone(captured: Program) -> None:
    found = shift(captured, spoiled(captured, "blocks.0.router", "blocks.1.router"))
    assert found.weights < NOISE < 1e-3 < found.both and found.routes == pytest.approx(found.both, rel=1e-6)


def test_matrices_behind_the_last_choice_cost_by_themselves_alone(captured: Program) -> None:
    found = shift(captured, spoiled(captured, "blocks.1.w_out"))
    assert found.routes < NOISE < 1e-3 < found.both and found.weights == pytest.approx(found.both, rel=1e-6)


def test_matrices_before_a_choice_cost_in_both_ways(captured: Program) -> None:
    found = shift(captured, spoiled(captured, "blocks.0.w_out"))
    assert min(found.weights, found.routes) > 1e-5


def test_the_whole_is_the_divergence_that_the_quality_tells(captured: Program) -> None:
    program = spoiled(captured, "blocks.0.w_out", "blocks.1.router")
    quality = measure(EagerEngine(captured), EagerEngine(program), WINDOWS, Exam("text"))
    assert shift(captured, program).both == pytest.approx(quality.kl_mean, rel=1e-4)


def test_how_blocks_are_written_makes_no_difference(captured: Program) -> None:
    program = spoiled(captured, "blocks.0.w_out", "blocks.1.router")
    want = shift(captured, program)
    for a, b in ((unfused(captured), program), (captured, Pipeline.parse("fuse-moe").run(program)[0])):
        found = shift(a, b)
        assert [found.weights, found.routes, found.both] == pytest.approx(
            [want.weights, want.routes, want.both], rel=1e-4
        )


def test_windows_run_in_groups(captured: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program = spoiled(captured, "blocks.0.w_out")
    want = shift(captured, program)
    monkeypatch.setattr(expert_shift, "_LOGITS_BYTES", 4 * 50 * 48)  # two windows
    assert shift(captured, program).both == pytest.approx(want.both, rel=1e-6)
    monkeypatch.setattr(expert_shift, "_LOGITS_BYTES", 1)
    assert shift(captured, program).weights == pytest.approx(want.weights, rel=1e-6)


def test_written_out_blocks_compute_the_same() -> None:
    program = source_of(MoeModel((True, True))).capture()
    copy, ids = unfused(program), WINDOWS[0]
    assert not copy.nodes(torch.ops.moec.moe) and len(copy.nodes(torch.ops.moec.experts)) == 2 == len(
        program.nodes(torch.ops.moec.moe)
    )
    torch.testing.assert_close(copy.run(input_ids=ids)["logits"], program.run(input_ids=ids)["logits"])
    copy.weights["blocks.1.b_in"] = scale(copy.weights["blocks.1.b_in"], 2.0)  # the mutant: a bias that is another
    assert not torch.allclose(copy.run(input_ids=ids)["logits"], program.run(input_ids=ids)["logits"])


def test_routes_of_other_blocks_are_not_exchanged(captured: Program) -> None:
    assert measure_shift(captured, source_of(MoeModel((False,))).capture(), WINDOWS) is None
    other = MoeModel()
    for name, value in list(other.blocks[0].named_parameters()):
        setattr(other.blocks[0], name, torch.nn.Parameter(value[:3]))
    assert measure_shift(captured, source_of(other).capture(), WINDOWS) is None


def test_a_decoder_with_a_cache(mixtral: Path) -> None:
    captured = open_source(str(mixtral)).capture()
    program, _ = Pipeline.parse("quantize(bits=2, group=16)").run(captured)
    fused, _ = Pipeline.parse("find-moe, fuse-moe").run(program)
    assert len(moe_nodes(fused)) == len(fused.nodes(torch.ops.moec.moe)) == 2
    windows: list[Tensor] = [torch.randint(3, 90, (1, 40), generator=torch.Generator().manual_seed(1))]
    want, found = measure_shift(captured, program, windows), measure_shift(captured, fused, windows)
    assert want is not None and found is not None and found.both == pytest.approx(want.both, rel=1e-3)
    assert 0 < found.routes < found.both and found.weights > 0
