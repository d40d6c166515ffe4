"""An expert that no input reached is not proven, however it is written and by whichever way the proof is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moec.cli import main
from moec.compiler.compile import compile_source
from moec.compiler.options import Options
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.program.program import Program
from moec.proof.checks.experts import ExpertsReached
from moec.proof.coverage import Coverage, ExpertLoad
from moec.proof.subject import Reference, Subject
from moec.proof.verification import prove
from moec.targets.target import Target
from moec.weights.lazy import from_tensor
from tests import mixtures
from tests.mixtures import Loop, Mixture, OneHot, Stacked, Switch, mixture
from tests.moe_module import EXPERTS, Block, MoeModel, source_of
from tests.proof.test_influence import Whispered
from tests.zoo import build


class Closed(Block):
    """A block whose correction bias never lets expert 3 be chosen: no row can drive it either."""

    def __init__(self) -> None:
        super().__init__(True)
        self.selection = torch.nn.Parameter(torch.tensor([0.0] * (EXPERTS - 1) + [-1e9]))

    def forward(self, x: Tensor) -> Tensor:
        tensors = self.w_in, self.w_out, self.b_in, self.b_out
        return torch.ops.moec.moe(x, self.router, None, self.selection, *tensors, top_k=2)


class Faint(Block):
    """A block that gives expert 3 a billionth of a token."""

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = torch.ops.moec.route(nn.functional.linear(x, self.router), top_k=2)
        weights = torch.where(ids == 3, 1e-9 * weights, weights)
        return torch.ops.moec.experts(x, ids, weights, self.w_in, self.w_out)


def with_block(block: Block) -> MoeModel:
    model = MoeModel()
    model.blocks[1] = block
    return model


def test_a_model_with_an_expert_that_nothing_reaches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MoecError, match="1 of 8 experts were reached by none") as caught:
        compile_source(source_of(with_block(Closed())), Options(Target("onnxruntime")), tmp_path / "engine")
    assert caught.value.code == "M104" and "blocks.1: 3" in caught.value.where and not list(tmp_path.iterdir())


def test_beside_a_streamed_reference_it_is_refused_too() -> None:
    source = source_of(with_block(Closed()))
    program = source.capture()
    with pytest.raises(MoecError, match="1 of 8 experts") as caught:
        prove(Subject(source, program, program, reference="streamed"), EagerEngine(program)).require()
    assert caught.value.code == "M104"


def negated(program: Program, *names: str) -> Program:
    """The program with one expert's numbers negated; `name[3]` is a row of a stack."""
    wrong = program.clone()
    for name in names:
        stem, _, row = name.partition("[")
        value = program.weights[stem].load().clone()
        value[int(row[:-1]) if row else slice(None)] *= -1
        wrong.weights[stem] = from_tensor(value, "negated")
    return wrong


@pytest.mark.parametrize("way", [Loop, OneHot, Switch, Stacked])
def test_a_twin_with_an_unreached_expert_negated_is_not_called_equal(way: type[Mixture]) -> None:
    """Nothing that is compared differs; so it must be said that nothing is known of this expert."""
    source = mixtures.source_of(mixture(way).close(1))
    program = source.capture()
    stacked = "up" in program.weights
    names = ("up[1]", "down[1]") if stacked else ("experts.1.up.weight", "experts.1.down.weight")
    proof = prove(Subject(source, program, program), EagerEngine(negated(program, *names)))
    assert proof.comparison.ok and not proof.ok
    with pytest.raises(MoecError, match="1 of 4 experts") as caught:
        proof.require()
    assert caught.value.code == "M104" and caught.value.exit_code == 1 and caught.value.where.endswith(": 1")
    whole = mixtures.source_of(mixture(way))
    right = whole.capture()
    assert prove(Subject(whole, right, right), EagerEngine(right)).ok
    assert not prove(Subject(whole, right, right), EagerEngine(negated(right, *names))).comparison.ok


@pytest.mark.parametrize("reference", ["full", "streamed"])
def test_an_expert_that_counts_for_a_billionth_is_not_reached(reference: Reference) -> None:
    source = source_of(with_block(Faint(False)))
    program = source.capture()
    wrong = negated(program, "blocks.1.w_out[3]")
    proof = prove(Subject(source, program, program, reference=reference), EagerEngine(wrong))
    load = proof.coverage.loads[1]
    assert proof.comparison.ok and load.assignments[3] and load.faint == load.missed == (3,)
    error = ExpertsReached(proof.coverage).error()
    assert error is not None and error.code == "M104" and "too weakly" in error.where


def test_so_it_is_where_the_mixture_is_written_by_hand() -> None:
    source = mixtures.source_of(mixture(Whispered))
    program = source.capture()
    with pytest.raises(MoecError, match="1 of 4 experts"):
        prove(Subject(source, program, program), EagerEngine(program)).require()


def test_beside_a_streamed_reference_a_mixture_in_plain_operators_is_not_proven() -> None:
    source = mixtures.source_of(mixture(Loop))
    program = source.capture()
    with pytest.raises(MoecError, match="4 of 4 experts") as caught:
        prove(Subject(source, program, program, reference="streamed"), EagerEngine(program)).require()
    assert caught.value.code == "M104" and "--verify full" in caught.value.fix


def test_another_matrix_that_no_input_reached_fails_too() -> None:
    error = ExpertsReached(Coverage((), 3, 5, 0, 0, ("other.weight",))).error()
    assert error is not None and error.code == "M104" and error.where == "other.weight"


def test_an_expert_that_was_driven_counts_and_one_that_differed_is_an_error() -> None:
    driven = Coverage((ExpertLoad("moe", "blocks.0", (5, 0), driven=(1,)),), 2, 3, 8, 0)
    assert ExpertsReached(driven).ok and driven.reached == 1
    wrong = Coverage((ExpertLoad("moe", "blocks.0", (5, 0), wrong=(1,)),), 2, 3, 8, 0)
    error = ExpertsReached(wrong).error()
    assert error is not None and error.code == "M101" and not all(f.ok for f in ExpertsReached(wrong).figures())


def test_the_command_line_ends_with_1_and_publishes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("deepseek_v3")
    with torch.no_grad():
        model.model.layers[1].mlp.gate.e_score_correction_bias[2] = -1e9  # type: ignore[union-attr, index]
    model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    with pytest.raises(SystemExit) as stop:
        main(["compile", str(tmp_path / "model"), "-o", str(tmp_path / "engine"), "--json", "--no-cache"])
    found = json.loads(capsys.readouterr().out)
    assert stop.value.code == 1 and found["error"]["code"] == "M104" and "2" in found["error"]["where"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
