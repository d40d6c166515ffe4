"""A graph in the middle of its lowering computes what the program does, and a wrong step is found by its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.evaluation import GraphEngine, layers_of, stages_of
from moec.backends.onnx.export import strip_traces, to_onnx
from moec.backends.onnx.steps import EXPORT, Step
from moec.backends.onnx.tensors import WeightTensor
from moec.backends.onnxruntime.export import to_onnx as to_whole_blocks
from moec.backends.onnxruntime.lowering import steps_for
from moec.errors import MoecError
from moec.execution.engine import EagerEngine
from moec.program.program import Input, Program
from moec.proof.bisection import Bounds, Divergence, bisect
from moec.proof.compare import Tolerance
from moec.targets.target import Target
from moec.weights.lazy import from_tensor
from tests.backends.onnx.graphs import W, add, branch, product
from tests.moe_module import MoeModel, source_of

FP32, TARGET = Tolerance.of(torch.float32), Target("onnxruntime")
ROWS = (Input("x", torch.float32, ("rows", 6)),)


def make() -> tuple[Program, list[dict[str, Tensor]]]:
    source = source_of(MoeModel())
    return source.capture(), [source.sample({"batch": 2, "sequence": 19})]


def bisected(program: Program, samples: list[dict[str, Tensor]], steps: list[Step], right: bool = False) -> Divergence:
    """Which of the steps is wrong, of an engine that is known to be wrong, or right."""
    reference, spoiled = EagerEngine(program), program.clone()
    spoiled.weights["blocks.1.w_out"] = from_tensor(2 * program.weights["blocks.1.w_out"].load(), "spoiled")
    lowering = stages_of(to_whole_blocks(program), steps, program.inputs)
    engine = EagerEngine(program if right else spoiled)
    return bisect(reference, [("capture", program)], samples, Bounds(FP32), engine, lowering=lowering)


def test_ordinary_nodes_run_and_a_wrong_weight_is_seen() -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    (y,) = GraphEngine(product(), ROWS)(x=x).values()
    assert torch.allclose(y, (x @ W).relu(), atol=1e-5) and not torch.allclose(y, (x @ W.flip(0)).relu(), atol=1e-2)


@pytest.mark.parametrize("export", [lambda p: to_onnx(p, 20), to_whole_blocks], ids=["experts", "whole blocks"])
def test_opaque_nodes_run_as_the_dialects_references(export: Any) -> None:
    program, (sample,) = make()
    model = export(program)
    strip_traces(model)
    kinds = {node.op_type for node in model.graph if node.domain == "moec"}
    assert kinds == ({"Experts", "Moe"} if export is to_whole_blocks else {"Experts"})
    (want,), (got,) = EagerEngine(program)(**sample).values(), GraphEngine(model, program.inputs)(**sample).values()
    assert float((got - want).abs().max() / want.std()) < FP32.deviation
    wrong = program.clone()
    wrong.weights["blocks.1.w_out"] = from_tensor(program.weights["blocks.1.w_out"].load() * 1.2, "wrong")
    (other,) = EagerEngine(wrong)(**sample).values()
    assert float((got - other).abs().max() / want.std()) > FP32.deviation


def test_a_graph_is_cut_at_its_opaque_nodes() -> None:
    model = product()
    graph = model.graph
    first = add(graph, "Dequantize", [graph.inputs[0], graph.inputs[0]], "a", domain="moec")
    flag = add(graph, "IsInf", [first], "flag")
    chosen = add(graph, "If", [flag], "c", then_branch=branch(first, "then"), else_branch=branch(flag, "else"))
    add(graph, "Experts", [chosen], "b", domain="moec")
    found = [([n.op_type for n in plain], [n.op_type for n in opaque]) for plain, opaque in layers_of(graph)]
    assert found == [(["MatMul", "Relu"], ["Dequantize"]), (["IsInf", "If"], ["Experts"])]


def test_a_sequence_goes_from_part_to_part() -> None:
    model = product()
    graph, (y,) = model.graph, model.graph.outputs
    parts = add(graph, "SplitToSequence", [y], "parts", axis=1, keepdims=1)
    codes = add(graph, "Cast", [y], "codes", to=ir.DataType.UINT8)
    opaque = add(graph, "Dequantize", [codes, add(graph, "ReduceMean", [y], "m", axes=[1])], "d", domain="moec", bits=8)
    index = add(graph, "Cast", [add(graph, "ReduceMin", [opaque], "least", keepdims=0)], "i", to=ir.DataType.INT64)
    graph.outputs[0] = add(graph, "SequenceAt", [parts, index], "part")
    graph.outputs[0].type, graph.outputs[0].shape, graph.opset_imports[""] = y.type, ir.Shape(["rows", 1]), 17
    assert [len(plain) for plain, _ in layers_of(graph)] == [5, 3]
    found = GraphEngine(model, ROWS).intermediates({"x": torch.zeros(3, 6)})
    assert torch.equal(found["part"], torch.zeros(3, 1)) and "parts" not in found


# ---------------------------------------------------------------------- bisection
def spoil(model: ir.Model, factor: float = 1.2) -> None:
    """Multiply one expert's matrix of the second block."""
    name = next(n for n in model.graph.initializers if n.endswith("2.out.weight") and n.startswith("node_moe"))
    initializer = model.graph.initializers[name]
    weight = initializer.const_value.weight  # type: ignore[union-attr]
    initializer.const_value = WeightTensor(from_tensor(weight.load() * factor, "spoiled"), name)


def test_a_step_that_is_wrong_is_found_by_its_name_with_layer_and_expert() -> None:
    program, samples = make()
    steps = steps_for(TARGET)
    place = [s.name for s in steps].index("fuse-norms")
    none = bisected(program, samples, steps)
    assert [s.name for s in none.stages[:3]] == ["capture", EXPORT, "lower-experts"]
    assert none.stage == "the engine as it runs" and [s.ok for s in none.stages] == [True] * (len(none.stages) - 1) + [
        False
    ]
    wrong = bisected(program, samples, [*steps[:place], Step("wrong-step", spoil), *steps[place:]])
    assert wrong.stage == "wrong-step" and [s.ok for s in wrong.stages] == [True] * (len(wrong.stages) - 1) + [False]
    assert (wrong.layer, wrong.experts) == ("blocks.1", (2,)) and "wrong-step" in str(wrong)


def test_steps_of_a_right_engine_are_not_asked_for() -> None:
    def fail(model: ir.Model) -> None:
        raise AssertionError("asked for")

    program, samples = make()
    found = bisected(program, samples, [Step("fail", fail)], right=True)
    assert found.stage == "" and [s.name for s in found.stages] == ["capture", "the backend's lowering"]


def test_a_step_that_changes_nothing_is_no_stage() -> None:
    program, samples = make()
    found = bisected(program, samples, [Step("nothing", lambda model: None), *steps_for(TARGET)])
    assert "nothing" not in [s.name for s in found.stages]


def test_a_graph_that_cannot_run_is_said_and_the_next_one_is_compared() -> None:
    program, samples = make()

    def make_unknown(model: ir.Model) -> None:
        model.graph[-1].op_type = "NoSuchOperator"

    def mend(model: ir.Model) -> None:
        model.graph[-1].op_type = kind

    kind = to_whole_blocks(program).graph[-1].op_type
    unknown, mended = Step("unknown", make_unknown), Step("mended", mend)
    found = bisected(program, samples, [unknown, mended])
    stage = next(s for s in found.stages if s.name == "unknown")
    assert (
        found.stage == "the engine as it runs"
        and (stage.deviation, stage.ok) == (None, True)
        and "NoSuchOperator" in stage.why_not
    )
    assert [s.deviation is None for s in found.stages] == [s.name == "unknown" for s in found.stages]
    assert "not compared" in str(found) and found.to_dict()["stages"][2]["deviation"] is None
    steps = steps_for(TARGET)
    place = [s.name for s in steps].index("fuse-norms")
    wrong = bisected(program, samples, [unknown, mended, *steps[:place], Step("wrong-step", spoil), *steps[place:]])
    assert wrong.stage == "wrong-step"


def test_an_engine_closes_its_folder_and_refuses_with_a_code() -> None:
    model = product()
    model.graph[0].op_type = "NoSuchOperator"
    engine = GraphEngine(model, ROWS)
    with pytest.raises(MoecError) as caught:
        engine(x=torch.randn(3, 6))
    assert caught.value.code == "M208" and "node_h" in caught.value.where
    engine.close()


def test_stages_are_made_one_by_one() -> None:
    def fail(model: ir.Model) -> None:
        raise AssertionError("asked for too early")

    stages: Iterator[Any] = stages_of(product(), [Step("fail", fail)], ROWS)
    assert next(stages)[0] == EXPORT
    with pytest.raises(AssertionError, match="too early"):
        next(stages)
