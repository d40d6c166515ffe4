"""`quantize(budget_bits=…)`, from the pass to the engine: its size, its numbers, what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
import transformers
from torch import Tensor

from moec.backends.onnxruntime.backend import Onnxruntime
from moec.errors import MoecError
from moec.execution.streaming import StreamingEngine
from moec.execution.trace import trace
from moec.frontend.stored_program import load_program, save_program
from moec.huggingface.source import HuggingFaceSource
from moec.pipeline.calibration import Calibration
from moec.pipeline.calibration_text import CalibrationText
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline, StepReport
from moec.program.decoder_signature import without_padding
from moec.program.program import Program
from moec.recognition.weight_roles import is_mixed, weight_uses
from moec.report.inspection import inspect_program
from moec.targets.target import Target
from tests import zoo

SIZES = {"batch": 2, "sequence": 9}


@cache
def source(name: str) -> HuggingFaceSource:
    if name != "mixtral":
        return zoo.source(name)
    config = zoo.moe_configs()[name]
    config.hidden_size, config.intermediate_size = (
        64,
        128,
    )  # weights that are no small constants, which are folded when an engine is built
    model = transformers.MixtralForCausalLM(config)
    zoo.randomize(model, 0)
    return HuggingFaceSource.from_model(model.eval())


@cache
def program(name: str) -> Program:
    return zoo.captured(name) if name != "mixtral" else source(name).capture()


def context() -> Context:
    tokens = torch.randint(0, 90, (400,), generator=torch.Generator().manual_seed(0))
    return Context(calibration=Calibration(CalibrationText("text", 0, 20), "", tokens))


@cache
def mixed(options: str = "") -> tuple[Program, StepReport]:
    found, (step,) = Pipeline.parse(f"quantize(budget_bits=3.0, sensitivity=frequency, group=16{options})").run(
        program("mixtral"), context()
    )
    return found, step


def logits(of: Program) -> Tensor:
    return of.run(**source("mixtral").sample(SIZES))["logits"]


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq"])
def test_the_graph_says_which_expert_has_how_many_bits(method: str) -> None:
    found, step = mixed(options=f", method={method}")
    uses = [u for u in weight_uses(found) if u.kind == "experts"]
    assert [u.name for u in uses] == [u.name for u in weight_uses(program("mixtral")) if u.kind == "experts"]
    assert all(is_mixed(u.node.args[u.place]) for u in uses) and step.facts["allocation"]["mean_bits"] == 3.0
    bits = [b["bits"] for b in step.facts["allocation"]["blocks"]]
    for use, own in zip(uses, [b for b in bits for _ in range(2)], strict=True):
        packed = [w for n, w in found.weights.items() if n.startswith(use.name) and n.endswith("_packed")]
        assert [w.shape[0] for w in packed] == [own.count(2), own.count(4)]
        sizes = {b: w.shape[-1] * 8 // b for b, w in zip((2, 4), packed, strict=True)}
        assert set(sizes.values()) == {use.node.args[use.place].meta["val"].shape[-1]}  # type: ignore[union-attr]


def test_each_expert_is_what_its_own_width_makes_of_it() -> None:
    found, step = mixed()
    uniform = {b: Pipeline.parse(f"quantize(experts={b}, group=16)").run(program("mixtral"))[0] for b in (2, 4)}
    for layer, block in enumerate(step.facts["allocation"]["blocks"]):
        values = {}
        for key, of in (("mixed", found), *uniform.items()):
            node = [u for u in weight_uses(of) if u.kind == "experts"][2 * layer]
            values[key] = _value(of, node.node.args[node.place])
        for e, bits in enumerate(block["bits"]):
            assert torch.equal(values["mixed"][e], values[bits][e]) and not torch.equal(
                values["mixed"][e], values[6 - bits][e]
            )


def _value(of: Program, node: object) -> Tensor:
    found: list[Tensor] = []

    def watch(seen: object, value: object, _args: object, _named: object) -> None:
        if getattr(seen, "name", "") == node.name:  # type: ignore[attr-defined]
            found.append(value.load())  # type: ignore[attr-defined]

    trace(of, source("mixtral").sample(SIZES), watch)
    return found[0]


def test_streamed_stored_and_inspected(tmp_path: Path) -> None:
    found, _ = mixed()
    want = logits(found)
    sample = source("mixtral").sample(SIZES)
    torch.testing.assert_close(StreamingEngine(found).run(sample)["logits"], want, rtol=1e-4, atol=1e-5)
    save_program(found, tmp_path)
    torch.testing.assert_close(logits(load_program(tmp_path)), want)
    blocks, own = inspect_program(program("mixtral")).blocks, inspect_program(found).blocks
    assert [(b.experts, b.hidden, b.intermediate, b.parameters) for b in own] == [
        (b.experts, b.hidden, b.intermediate, b.parameters) for b in blocks
    ]


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime:cpu,accuracy=int8"])
def test_the_engine_computes_the_program_and_has_the_size_of_its_bits(target: str, tmp_path: Path) -> None:
    found, _ = mixed()
    backend, at = Onnxruntime(), Target.parse(target)
    legal, _ = backend.legalize(at).run(found)
    facts = backend.build(legal, at, tmp_path)
    sample = source("mixtral").sample(SIZES)
    results = (backend.load(tmp_path, at).run(sample)["logits"], logits(found), logits(program("mixtral")))
    got, want, unquantized = (without_padding(values, sample, "logits", found.inputs) for values in results)
    deviation = float((got - want).norm() / want.norm())
    assert deviation < (1e-4 if target == "onnxruntime" else 0.2)
    assert float((got - unquantized).norm() / want.norm()) > 0.25
    assert all(block["bits"] == "2, 4" and block["kernel"] == "QMoE" for block in facts["blocks"])
    numbers = 2 * 8 * 3 * 64 * 128  # two layers of eight experts
    assert sum(block["bytes"] for block in facts["blocks"]) == numbers * 3.0 / 8 + numbers / 16 * 4, (
        "codes, and scales in float32"
    )
    written = sum(
        v.const_value.nbytes
        for v in ir.load(tmp_path / "model.onnx").graph.initializers.values()
        if v.const_value is not None
    )
    program_bytes = sum(w.size_bytes for w in {id(w): w for w in found.weights.values()}.values())
    assert abs(written - program_bytes) < 0.03 * program_bytes


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("budget_bits=1.5", "not between"), ("budget_bits=5.0", "not between"),
        ("budget_bits=3.0, widths=[4]", "two or more"),
        ("budget_bits=3.0, sensitivity=guess", "not one of"), ("budget_bits=3.0, experts=4", "both say"),
        ("budget_bits=3.0, rules={'*.experts*': 4}", "fits no experts"),
    ],
)  # fmt: skip
def test_what_is_refused(options: str, what: str) -> None:
    with pytest.raises(MoecError, match="M203") as error:
        Pipeline.parse(f"quantize(group=16, {options})").run(program("mixtral"), context())
    assert what in str(error.value)


def test_a_model_without_experts_and_a_compile_without_text() -> None:
    with pytest.raises(MoecError, match="M203"):
        Pipeline.parse("quantize(group=16, budget_bits=3.0)").run(program("llama"), context())
    (item,) = Pipeline.parse("quantize(budget_bits=3.0)")
    assert item.needs_calibration() and not Pipeline.parse("quantize").passes[0].needs_calibration()
    with pytest.raises(MoecError, match="M203") as error:
        Pipeline.parse("quantize(group=16, budget_bits=3.0)").run(program("mixtral"))
    assert "--calibration" in str(error.value)


def test_experts_of_a_rule_are_left_out_of_the_budget() -> None:
    found, step = mixed(options=", rules={'*.layers.0.*experts*': 8}")
    assert len(step.facts["allocation"]["blocks"]) == 1 and step.facts["allocation"]["mean_bits"] == 3.0
    kinds = [is_mixed(u.node.args[u.place]) for u in weight_uses(found) if u.kind == "experts"]
    assert kinds == [False, False, True, True]
