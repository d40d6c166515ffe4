"""Sizes of tensors of one shape are asked for once; others stay apart."""

from __future__ import annotations

import onnx_ir as ir
import torch

from moec.backends.onnxruntime.optimization.sizes import share_sizes
from tests.backends.onnxruntime.blocks import ops, run, value


def model_of(shapes: list[list[str | int | None]], op: str = "Shape", **attributes: int) -> ir.Model:
    """`y` joins what is asked of each of the inputs."""
    inputs = [value(f"x{n}", torch.float32, shape) for n, shape in enumerate(shapes)]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 20}, name="sizes")
    answers = []
    for n, x in enumerate(inputs):
        node = ir.node(op, [x], attributes, name=f"ask{n}")
        node.outputs[0].name = f"answer{n}"
        graph.append(node)
        answers.append(node.outputs[0])
    if op == "Size":
        axes = ir.Value(name="axes", const_value=ir.tensor([0], name="axes"))
        graph.register_initializer(axes)
        answers = [ir.node("Unsqueeze", [a, axes], name=f"wide{n}") for n, a in enumerate(answers)]
        graph.extend(answers)
        for n, node in enumerate(answers):
            node.outputs[0].name = f"wide{n}"
        answers = [node.outputs[0] for node in answers]
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([None]))
    graph.append(ir.node("Concat", answers, {"axis": 0}, outputs=[y]))
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def test_equal_shapes_are_asked_once() -> None:
    model = model_of([["b", "s", 8], ["b", "s", 8], ["b", "t", 8]])
    given = {"x0": torch.zeros(2, 3, 8), "x1": torch.zeros(2, 3, 8), "x2": torch.zeros(2, 5, 8)}
    want = run(model, **given)
    assert share_sizes(model) == 1 and ops(model).count("Shape") == 2
    assert run(model, **given).tolist() == want.tolist() == [2, 3, 8, 2, 3, 8, 2, 5, 8]


def test_only_what_is_asked_for_must_agree() -> None:
    model = model_of([["b", 12, "s", 8], ["b", 4, "s", 8]], start=2, end=3)
    assert share_sizes(model) == 1
    assert run(model, x0=torch.zeros(1, 12, 7, 8), x1=torch.zeros(1, 4, 7, 8)).tolist() == [7, 7]
    assert share_sizes(model_of([["b", 12, "s", 8], ["b", 4, "s", 8]])) == 0


def test_a_negative_end_counts_from_the_back() -> None:
    model = model_of([["b", "s", "k"], ["b", "s", "j"]], start=0, end=-1)
    assert share_sizes(model) == 1
    assert run(model, x0=torch.zeros(1, 2, 3), x1=torch.zeros(1, 2, 4)).tolist() == [1, 2, 1, 2]


def test_the_number_of_elements_does_not_depend_on_their_order() -> None:
    model = model_of([["b", "s"], ["s", "b"], ["b", "b"]], "Size")
    assert share_sizes(model) == 1
    assert run(model, x0=torch.zeros(2, 3), x1=torch.zeros(3, 2), x2=torch.zeros(2, 2)).tolist() == [6, 6, 4]


def test_dimensions_without_a_name_are_left_alone() -> None:
    assert share_sizes(model_of([["b", None], ["b", None]])) == 0
