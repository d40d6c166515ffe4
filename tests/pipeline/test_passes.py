"""A pass gets what it declares, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from moec.errors import MoecError
from moec.frontend.export import capture
from moec.passes.quantize import Quantize
from moec.passes.upcycle import Upcycle
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.notation import make_pass
from moec.pipeline.passes import Context, Miss, Pass, kebab
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program


class Tower(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.relu(torch.relu(x))) + 1


def make() -> Program:
    return capture(Tower(), {"x": torch.randn(3, 4)}, {"x": ("batch", None)})


@dataclass(frozen=True)
class Peel(Pass):
    """Removes the first relu and notes what it was given."""

    leaves: bool = False

    def apply(self, program: Program, context: Context) -> int:
        relus = program.nodes(torch.ops.aten.relu.default)
        if self.leaves:
            context.miss(relus[-1], "the last one stays")
        context.facts["given"] = (context.calibration, context.unquantized, [m.reason for m in context.earlier])
        relus[0].replace_all_uses_with(relus[0].args[0])
        return 1


@dataclass(frozen=True)
class Coarsen(Peel):
    quantizes = True


@dataclass(frozen=True)
class Refit(Peel):
    needs_weights = "quantized"
    after = ("peel",)

    def needs_calibration(self) -> bool:
        return True


@dataclass(frozen=True)
class Judge(Peel):
    needs_weights = "unquantized"


TEXT = Calibration(CalibrationText("text", 0, 8), "", torch.arange(64))


def test_a_pass_gets_what_it_declares_and_nothing_else() -> None:
    program, context = make(), Context(calibration=TEXT)
    _, steps = Pipeline((Peel(True), Coarsen(True), Refit())).run(program, context)
    assert [s.facts["given"] for s in steps[:2]] == [(None, None, []), (None, None, [])]
    calibration, unquantized, earlier = steps[2].facts["given"]
    assert calibration is TEXT and earlier == ["the last one stays"]  # of `peel`, not of `coarsen`
    assert len(unquantized.nodes(torch.ops.aten.relu)) == 2  # as the first pass left it
    assert [m.pass_name for m in context.misses] == ["peel", "coarsen"]


def test_what_a_pass_notes_does_not_reach_the_next() -> None:
    own = Context(misses=[Miss("other", "x", "no")], facts={"a": 1}, calibration=TEXT).given_to(Peel())
    assert own == Context(current="peel")


@pytest.mark.parametrize(
    ("passes", "calibrated", "code", "what"),
    [
        ((Coarsen(), Refit(), Peel()), True, "M201", "refit must run after peel"),
        ((Peel(), Coarsen(), Refit()), False, "M203", "refit needs a text"),
        ((Peel(), Refit(), Coarsen()), True, "M203", "no pass before it made weights coarser"),
        ((Peel(), Coarsen(), Judge()), True, "M203", "the weights are coarser already"),
    ],
)
def test_declarations_are_checked_before_any_work(
    passes: tuple[Pass, ...], calibrated: bool, code: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(calibration=TEXT if calibrated else None)
    monkeypatch.setattr(Peel, "apply", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(MoecError, match=what) as caught:
        Pipeline(passes).run(make(), context)
    assert caught.value.code == code
    with pytest.raises(pytest.fail.Exception, match="has begun"):
        Pipeline((Peel(), Judge(), Coarsen())).run(make(), context)


def test_a_pass_that_may_rest_and_does_leaves_nothing_to_refit() -> None:
    @dataclass(frozen=True)
    class Rests(Coarsen):
        def apply(self, program: Program, context: Context) -> int:
            return 0

    pipeline = Pipeline((Peel(), Rests(), Refit()), frozenset({"rests"}))
    with pytest.raises(MoecError, match="no pass before it made weights coarser"):
        pipeline.run(make(), Context(calibration=TEXT))


def test_what_needs_data_and_says_no_more_is_planned_as_unknown() -> None:
    plans = Pipeline((Peel(True), Coarsen(), Refit())).plan(make())
    assert [(p.least, p.most) for p in plans] == [(1, 1), (1, 1), (0, None)]
    assert [len(p.program.nodes(torch.ops.aten.relu)) for p in plans] == [2, 1, 1]
    assert [[m.reason for m in p.misses] for p in plans] == [["the last one stays"], [], []]


def test_names() -> None:
    assert [kebab(n) for n in ("FuseMoe", "Upcycle")] == ["fuse-moe", "upcycle"]
    assert make_pass("fuse-moe", {}).name == "fuse-moe"


def test_what_a_pass_holds_does_not_change() -> None:
    layers = [0, 1]
    upcycle = Upcycle(layers=layers)
    layers.append(7)
    assert upcycle.layers == (0, 1) and upcycle == Upcycle(layers=(0, 1))
    assert Quantize(rules={"x": {"bits": 4, "y": [1, [2]]}}).rules == {"x": {"bits": 4, "y": (1, (2,))}}


def test_only_options_that_differ_from_the_defaults_are_given() -> None:
    assert Upcycle(8, 3).given == {"top_k": 3} and str(Upcycle(8, 3)) == "upcycle(top_k=3)"
    assert Upcycle(reinit=0).given == {"reinit": 0}  # equal to 0.0, and not the same


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    assert str(Upcycle(np.int64(4), reinit=np.float64(0.5))) == "upcycle(experts=4, reinit=0.5)"


def test_a_miss_names_the_models_own_line() -> None:
    context, node = Context(current="fuse-moe"), fx.Graph().placeholder("x")
    node.meta["stack_trace"] = 'File "model.py", line 7, in forward\n    return x + 1\n'
    context.miss(node, "no")
    assert (context.misses[0].pass_name, context.misses[0].node, context.misses[0].source_line) == (
        "fuse-moe",
        "x",
        'File "model.py", line 7, in forward',
    )
