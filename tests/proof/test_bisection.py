"""A spoiled expert is found again, whoever spoiled it: a pass, the capture, the backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moec.execution.engine import EagerEngine
from moec.execution.trace import trace
from moec.pipeline.hooks import RecordHook
from moec.pipeline.passes import Context, Pass
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.proof.bisection import Bounds, Divergence, Stage, bisect
from moec.proof.compare import Tolerance
from moec.weights.lazy import from_tensor, scale
from tests.moe_module import MoeModel, source_of

FP32 = Tolerance.of(torch.float32)


@dataclass(frozen=True)
class Commute(Pass):
    """Changes the text of the program and nothing else: a + b becomes b + a."""

    def apply(self, program: Program, context: Context) -> int:
        sums = program.nodes(torch.ops.aten.add.Tensor)
        for node in sums:
            node.args = (node.args[1], node.args[0])
        return len(sums)


@dataclass(frozen=True)
class Spoil(Pass):
    """Multiplies one expert's output matrix by 1.2."""

    block: int = 1
    expert: int = 2

    def apply(self, program: Program, context: Context) -> int:
        spoil(program, self.block, self.expert)
        return 1


def spoil(program: Program, block: int, expert: int) -> None:
    name = f"blocks.{block}.w_out"
    value = program.weights[name].load().clone()
    value[expert] *= 1.2
    program.weights[name] = from_tensor(value, f"spoiled {name}")


class Transparent(EagerEngine):
    """Shows its intermediate values, under names of its own."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._program = program

    def intermediates(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: list[Tensor] = []
        trace(self._program, inputs, lambda node, value, args, kwargs: found.append(value))
        return {f"v{i}": v.flatten() for i, v in enumerate(found) if isinstance(v, Tensor) and v.is_floating_point()}


def made(*passes: Pass) -> tuple[list[tuple[str, Program]], object, list[dict[str, Tensor]]]:
    source, record = source_of(MoeModel()), RecordHook()
    Pipeline(passes).run(source.capture(), hooks=[record])
    return record.programs, source.reference(), [source.sample({"batch": 2, "sequence": n}, n) for n in (7, 19)]


def test_nothing_is_blamed_when_all_agree() -> None:
    programs, reference, samples = made(Commute())
    found = bisect(reference, programs, samples, Bounds(FP32), EagerEngine(programs[-1][1]))  # type: ignore[arg-type]
    assert found.stage == "" and [s.name for s in found.stages] == ["capture", "commute", "the backend's lowering"]
    assert all(s.ok and s.deviation < 1e-5 for s in found.stages) and str(found).startswith("nothing diverges")


def test_the_pass_the_layer_and_the_expert_are_named() -> None:
    programs, reference, samples = made(Commute(), Spoil(0, 3), Commute(), Spoil(1, 1))
    found = bisect(reference, programs, samples, Bounds(FP32))  # type: ignore[arg-type]
    assert found.stage == "spoil(block=0, expert=3)" and [s.ok for s in found.stages] == [True, True, False]
    assert found.layer == "blocks.0" and found.layer_deviation > FP32.deviation
    assert found.experts == (3,) and 0 < found.wrong_tokens < found.tokens
    assert (
        "first pass:  spoil" in str(found) and "first layer: blocks.0" in str(found) and "expert:      3" in str(found)
    )


def test_the_fused_operator_is_bisected_too() -> None:
    programs, reference, samples = made(Spoil(1, 0))
    found = bisect(reference, programs, samples, Bounds(FP32))  # type: ignore[arg-type]
    assert (found.layer, found.experts) == ("blocks.1", (0,))


def test_a_wrong_capture_is_bisected_with_the_modules_own_values() -> None:
    programs, reference, samples = made(Commute())
    spoil(programs[0][1], 1, 2)
    found = bisect(reference, programs, samples, Bounds(FP32))  # type: ignore[arg-type]
    assert (found.stage, found.layer, found.experts) == ("capture", "blocks.1", (2,))


def test_the_backend_is_blamed_when_all_programs_agree() -> None:
    programs, reference, samples = made(Commute())
    lowered = programs[-1][1].clone()
    spoil(lowered, 1, 2)
    seen = bisect(reference, programs, samples, Bounds(FP32), Transparent(lowered))  # type: ignore[arg-type]
    assert (seen.stage, seen.layer, seen.experts) == ("the backend's lowering", "blocks.1", (2,))
    opaque = bisect(reference, programs, samples, Bounds(FP32), EagerEngine(lowered))  # type: ignore[arg-type]
    assert (opaque.stage, opaque.layer) == ("the backend's lowering", "")
    assert "not found" in str(opaque)


@dataclass(frozen=True)
class Roughen(Pass):
    """Multiplies the head by a little more than one, and says that it is approximate."""

    factor: float = 1.01
    contract = "approximate"

    def apply(self, program: Program, context: Context) -> int:
        program.weights["head.weight"] = scale(program.weights["head.weight"], self.factor)
        return 1


def test_a_pass_that_keeps_its_budget_is_not_blamed() -> None:
    programs, reference, samples = made(Roughen(), Commute())
    last, bounds = programs[-1][1], Bounds(FP32, budget=Tolerance(0.5), lowering=FP32)
    assert bisect(reference, programs, samples, bounds, EagerEngine(last)).stage == ""  # type: ignore[arg-type]
    wrong = last.clone()
    spoil(wrong, 1, 2)
    found = bisect(reference, programs, samples, bounds, EagerEngine(wrong))  # type: ignore[arg-type]
    assert found.stage == "the backend's lowering" and [s.ok for s in found.stages] == [True, True, True, False]


def test_a_pass_that_breaks_its_budget_or_its_word_is() -> None:
    programs, reference, samples = made(Roughen(3.0), Commute())
    bounds = Bounds(FP32, budget=Tolerance(0.5), lowering=FP32)
    assert bisect(reference, programs, samples, bounds).stage == "roughen(factor=3.0)"  # type: ignore[arg-type]
    programs, reference, samples = made(Roughen(), Spoil())
    assert bisect(reference, programs, samples, bounds).stage == "spoil"  # type: ignore[arg-type]


def test_what_a_judge_says_stands_beside_the_step() -> None:
    programs, reference, samples = made(Roughen())
    bounds = Bounds(FP32, judge=lambda program: "mean KL divergence 0.3 nats a token, 0.05 allowed")
    found = bisect(reference, programs, samples, bounds)  # type: ignore[arg-type]
    assert found.stage == "roughen" and str(found.stages[-1]).startswith("WRONG ")
    assert str(found.stages[-1]).endswith("a text decides  roughen: mean KL divergence 0.3 nats a token, 0.05 allowed")


def test_a_bisection_does_not_contradict_the_proof() -> None:
    right = Divergence((Stage("capture", 1e-6, True, allowed=0.001),))
    assert str(right).splitlines() == ["nothing diverges", "  ok    1.0e-06, 0.001 allowed  capture"]
    assert str(replace(right, proof="")) == str(right)
    failed = str(replace(right, proof="expert 3 was reached by none of 8 inputs")).splitlines()
    assert "nothing diverges" not in failed[0] and failed[0].endswith(
        "fails all the same: expert 3 was reached by none of 8 inputs"
    )
    over = Divergence((Stage("capture", 0.32, False, allowed=1e6),), "capture", proof="")
    assert "within its bounds as a whole" in str(over) and "1,000,000 allowed" in str(over) and "e+06" not in str(over)
