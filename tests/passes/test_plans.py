"""What every pass says that it would do, beside what it then does."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch

from moec import open_source, registry
from moec.errors import MoecError
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.hooks import RecordHook
from moec.pipeline.passes import Context, Pass, Plan
from moec.pipeline.pipeline import Pipeline, StepReport
from moec.program.program import Program

TWO_BITS = "quantize(bits=2, group=16, experts=16)"
# the last pass of each pipeline is meant
MIXTRAL = [
    "find-moe",
    "find-moe, fuse-moe",
    "skip-experts(alpha=0.5)",
    "quantize(bits=4, group=16)",
    "quantize(bits=8, group=32, experts=16, rules={'*.q_proj': 2})",
    "quantize(bits=4, group=16, method=hqq)",
    "quantize(bits=4, group=16, method=gptq, floor=0)",
    "quantize(format=fp8)",
    "prune-experts(score=random)",
    "prune-experts(keep=0.5)",
    f"{TWO_BITS}, calibrate-router(floor=150)",
]
LLAMA = ["upcycle", "upcycle(experts=2, top_k=2, granularity=2, layers='every:2', reinit=0.5)", "quantize(group=16)"]
LLAMA += ["carve(experts=4, active=2, shared=1)"]
# data decides which weights get which form, which blocks are changed at all, or a factor
OPEN = [
    "quantize(group=16, budget_bits=3.0)", "prune-experts(keep=0.8, per_layer=False)", "set-top-k(top_k=1)",
    "set-top-k(top_k=0.75)",
]  # fmt: skip


def text(count: int = 2048) -> Calibration:
    drawn = torch.randint(3, 50, (count,), generator=torch.Generator().manual_seed(0))
    return Calibration(CalibrationText("text", 0, 64), "ab" * 32, drawn)


@pytest.fixture(scope="module")
def captured(mixtral: Path, llama: Path) -> dict[str, Program]:
    return {p.name: open_source(str(p), cache=False).capture() for p in (mixtral, llama)}


def form(program: Program) -> str:
    """A program's operators, shapes and dtypes, without where its weights come from."""
    return re.sub(r"^(# \S+: \w+\[[\d, ]*\]) = .*$", r"\1", program.text(), flags=re.MULTILINE)


def differences(plan: Plan, step: StepReport, done: Program) -> list[str]:
    """Where a pass did something else than it had said."""
    found = [] if plan.name == step.name else [f"{step.name} was said to be {plan.name}"]
    if step.rewrites < plan.least or (plan.most is not None and step.rewrites > plan.most):
        found.append(f"{plan.name}: {step.rewrites} rewrites, {plan.least} to {plan.most} were said")
    if form(plan.program) != form(done):
        found.append(f"{plan.name}: another program")
    unsaid = [m for m in plan.misses if asdict(m) not in step.misses]
    return found + [f"{plan.name}: {m.node} was not left alone" for m in unsaid]


def planned_and_done(program: Program, pipeline: Pipeline) -> tuple[list[Plan], list[StepReport], list[Program]]:
    record = RecordHook()
    before = program.text()
    plans = pipeline.plan(program)
    assert program.text() == before
    _, steps = pipeline.run(program, Context(calibration=text()), [record])
    return plans, steps, [done for _, done in record.programs[1:]]


@pytest.mark.parametrize(("model", "pipeline"), [*(("mixtral", p) for p in MIXTRAL), *(("llama", p) for p in LLAMA)])
def test_a_pass_does_what_it_says(model: str, pipeline: str, captured: dict[str, Program]) -> None:
    plans, steps, programs = planned_and_done(captured[model], Pipeline.parse(pipeline))
    assert [differences(*each) for each in zip(plans, steps, programs, strict=True)] == [[] for _ in plans]
    exact = "calibrate-router" not in pipeline
    assert plans[-1].most and exact == (plans[-1].least == plans[-1].most)
    if exact and not any(p.needs_calibration() for p in Pipeline.parse(pipeline)):
        assert [len(p.misses) for p in plans] == [len(s.misses) for s in steps]  # nothing is left unsaid


@pytest.mark.parametrize("pipeline", OPEN)
def test_where_data_decides_the_number_is_right(pipeline: str, captured: dict[str, Program]) -> None:
    plans, steps, _ = planned_and_done(captured["mixtral"], Pipeline.parse(pipeline))
    least = 0 if "0.75" in pipeline else 1  # a share may leave every block as it is
    assert plans[-1].most is not None and least <= plans[-1].least <= steps[-1].rewrites <= plans[-1].most


def test_every_pass_is_among_them() -> None:
    meant = {Pipeline.parse(text).passes[-1].name for text in (*MIXTRAL, *LLAMA, *OPEN)}
    assert meant == set(registry.names("passes")) - {"merge", "add-expert"}, (
        "plans with other models have tests of their own"
    )


@dataclass(frozen=True)
class DropSilu(Pass):
    """Removes activations; says a number that a test chooses, or shows a program in which none was removed."""

    said: int = 1
    shown: bool = True

    def apply(self, program: Program, context: Context) -> int:
        silus = program.nodes(torch.ops.aten.silu.default)
        for node in silus:
            node.replace_all_uses_with(node.args[0])
        return len(silus)

    def plan(self, program: Program, context: Context) -> Plan:
        found = super().plan(program, context)
        return replace(found, least=self.said, most=self.said, program=found.program if self.shown else program.clone())


@pytest.mark.parametrize(("said", "shown", "what"), [(1, True, "2 rewrites, 1 to 1"), (2, False, "another program")])
def test_a_pass_that_says_something_else_is_seen(
    said: int, shown: bool, what: str, captured: dict[str, Program]
) -> None:
    pipeline = Pipeline((DropSilu(said, shown),))
    plans, steps, programs = planned_and_done(captured["llama"], pipeline)
    (found,) = differences(plans[0], steps[0], programs[0])
    assert what in found
    honest = replace(plans[0], least=2, most=2, program=programs[0], name=steps[0].name)
    assert differences(honest, steps[0], programs[0]) == []


def test_a_plan_refuses_what_the_pass_refuses(captured: dict[str, Program]) -> None:
    for pipeline, code in (("upcycle", "M103"), ("prune-experts(score=best)", "M203"), ("quantize(group=48)", "M203")):
        for act in (Pipeline.plan, Pipeline.run):
            with pytest.raises(MoecError) as caught:
                act(Pipeline.parse(pipeline), captured["mixtral"], Context(calibration=text()))
            assert caught.value.code == code
