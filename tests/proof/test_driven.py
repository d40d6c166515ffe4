"""An expert that no input reaches is compared on rows that its router sends to it, and a spoiled one is found so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moec.backends.onnxruntime.backend import Onnxruntime
from moec.compiler.compile import compile_source
from moec.compiler.options import Options
from moec.dialect import Routing, route_reference
from moec.errors import MoecError
from moec.execution.engine import EagerEngine, Engine
from moec.program.moe_call import MOE, MoeCall
from moec.program.program import Program
from moec.proof.checks.experts import ExpertsReached
from moec.proof.checks.outputs import Outputs
from moec.proof.driven import Seen, rows_to
from moec.proof.subject import Subject
from moec.proof.verification import prove
from moec.targets.target import Target
from moec.weights.lazy import from_tensor
from tests.moe_module import EXPERTS, HIDDEN, Block, MoeModel, source_of

SHY = 3


class Shy(Block):
    """A block whose router has a bias under which one expert is chosen by no token."""

    def __init__(self, bias: float = -60.0) -> None:
        super().__init__(True)
        self.bias = nn.Parameter(torch.tensor([0.0] * SHY + [bias]))

    def forward(self, x: Tensor) -> Tensor:
        tensors = self.w_in, self.w_out, self.b_in, self.b_out
        return torch.ops.moec.moe(x, self.router, self.bias, None, *tensors, top_k=2)


def shy(bias: float = -60.0) -> MoeModel:
    model = MoeModel()
    model.blocks[1] = Shy(bias)
    return model


def built(program: Program, target: str, folder: Path) -> Engine:
    folder.mkdir()
    Onnxruntime().build(program, Target.parse(target), folder)
    return Onnxruntime().load(folder, Target.parse(target))


def spoiled(program: Program, name: str, expert: int, by: float = -1.0) -> Program:
    wrong = program.clone()
    value = program.weights[name].load().clone()
    value[expert] *= by
    wrong.weights[name] = from_tensor(value, "spoiled")
    return wrong


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Engine, Engine]:
    """A right engine and one in which the expert that no input reaches is negated."""
    source, folder = source_of(shy()), tmp_path_factory.mktemp("twins")
    program = source.capture()
    wrong = built(spoiled(program, "blocks.1.w_in", SHY), "onnxruntime", folder / "wrong")
    return Subject(source, program, program), built(program, "onnxruntime", folder / "right"), wrong


def test_a_right_one_is_driven_and_a_spoiled_one_is_found(twins: tuple[Subject, Engine, Engine]) -> None:
    subject, right, wrong = twins
    proof = prove(subject, right)
    load = proof.coverage.loads[1]
    assert proof.ok and load.unreached == load.driven == (SHY,) and load.missed == ()
    assert proof.coverage.reached == 7 and "7/8 experts reached" in str(proof) and "1 driven directly" in str(proof)
    assert prove(subject, wrong, [Outputs]).ok, "no input shows it"
    error = prove(subject, wrong, [ExpertsReached]).checks[0].error()
    assert error is not None and error.code == "M101" and "expert 3" in error.what and error.where == "blocks.1"


def test_so_it_is_in_half_precision(tmp_path: Path) -> None:
    source, target = source_of(shy()), "onnxruntime:precision=fp16"
    program = source.capture(torch.float16)
    subject = Subject(source, program, program, torch.float16)
    right, wrong = (
        built(p, target, tmp_path / name)
        for name, p in (("right", program), ("wrong", spoiled(program, "blocks.1.w_out", SHY, 1.1)))
    )
    assert prove(subject, right, [ExpertsReached]).coverage.loads[1].driven == (SHY,)
    assert prove(subject, wrong, [ExpertsReached]).coverage.loads[1].wrong == (SHY,)


def test_an_engine_that_cannot_run_a_part_of_itself_is_refused() -> None:
    source = source_of(shy())
    program = source.capture()
    with pytest.raises(MoecError, match="1 of 8 experts") as caught:
        prove(Subject(source, program, program), EagerEngine(program)).require()
    assert caught.value.code == "M104" and caught.value.exit_code == 1


def test_a_compile_says_what_was_driven(tmp_path: Path) -> None:
    report = compile_source(source_of(shy()), Options(Target("onnxruntime")), tmp_path / "engine")
    assert report.ok and report.coverage.driven == 1 and "1 driven directly" in str(report.coverage)


def test_another_engine_is_driven_too(twins: tuple[Subject, Engine, Engine]) -> None:
    subject, right, wrong = twins
    assert prove(replace(subject, against=right), right).ok
    assert not prove(replace(subject, against=wrong), right).ok
    unable = prove(replace(subject, against=EagerEngine(subject.program)), right)
    with pytest.raises(MoecError, match="1 of 8 experts"):
        unable.require()


def seen(experts: int, hidden: int, bias: Tensor | None, selection: Tensor | None, rule: Routing) -> Seen:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, hidden, generator=generator)
    arguments = (x, torch.randn(experts, hidden, generator=generator), bias, selection)
    return Seen(x, x, MoeCall.evaluated(MOE, arguments, rule.arguments()))


@pytest.mark.parametrize("rule", [Routing(1), Routing(2, "sigmoid", "scores"), Routing(2, combine="softmax")])
@pytest.mark.parametrize(("experts", "hidden"), [(EXPERTS, HIDDEN), (24, 8)])
def test_rows_go_where_they_are_to_go(rule: Routing, experts: int, hidden: int) -> None:
    block = seen(experts, hidden, torch.linspace(-9.0, 3.0, experts), None, rule)
    found = 0
    for expert in range(experts):
        rows = rows_to(block, expert, torch.float32)
        if rows is not None:
            logits = torch.nn.functional.linear(rows, block.call.router, block.call.router_bias)
            assert (route_reference(logits, None, rule)[1] == expert).any(-1).all()
            assert len(rows.unique(dim=0)) == len(rows) > 1
            found += 1
    assert found == experts if experts < hidden else found >= experts // 2


def test_no_rows_for_what_a_selection_bias_shuts_out() -> None:
    rule = Routing(2, "sigmoid", "scores")
    block = seen(EXPERTS, HIDDEN, None, torch.tensor([0.0, 0.0, 0.0, -1e9]), rule)
    assert rows_to(block, SHY, torch.float32) is None and rows_to(block, 0, torch.float32) is not None


class Callable(Shy):
    """One whose experts can be called alone, as those of the transformers library can."""

    def forward(self, x: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None) -> Tensor:
        if top_k_index is None or top_k_weights is None:
            return super().forward(x)
        return torch.ops.moec.experts(x, top_k_index, top_k_weights, self.w_in, self.w_out, self.b_in, self.b_out)


def test_the_untouched_models_own_experts_have_to_agree(tmp_path: Path) -> None:
    model = MoeModel()
    model.blocks[1] = Callable()
    source = source_of(model)
    program = source.capture()
    assert prove(Subject(source, program, program), built(program, "onnxruntime", tmp_path / "right")).ok
    wrong = spoiled(program, "blocks.1.w_out", SHY)  # as a wrong reading would: program and engine agree
    proof = prove(Subject(source, program, wrong), built(wrong, "onnxruntime", tmp_path / "wrong"))
    assert proof.comparison.ok and proof.coverage.loads[1].wrong == (SHY,) and not proof.ok
