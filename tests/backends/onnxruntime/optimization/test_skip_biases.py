"""A bias before a residual sum is in the norm's kernel, and only where nothing else wants the term without it."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.emit import MICROSOFT
from moec.backends.onnx.tensors import add_initializer
from moec.backends.onnxruntime.optimization.skip_biases import take_biases
from moec.weights.lazy import from_tensor
from tests.backends.onnxruntime.blocks import error, ops, run, value

WIDTH = 32


def model_of(at: int = 0, first: bool = False, read_twice: bool = False, wide: bool = False) -> ir.Model:
    """The norm of `(x + bias) + skip`; `at`: which of its terms has the bias, `wide`: a bias for each row of three."""
    x, skip = (value(name, torch.float32, ["b", 3, WIDTH]) for name in ("x", "skip"))
    graph = ir.Graph([x, skip], [], nodes=[], opset_imports={"": 20, MICROSOFT: 1}, name="norm")
    draw = torch.Generator().manual_seed(1)
    bias = torch.randn((3, WIDTH) if wide else (WIDTH,), generator=draw)
    weights = {"gamma": torch.rand(WIDTH, generator=draw) + 0.5, "bias": bias}
    gamma, bias_value = (add_initializer(graph, from_tensor(w, n), n) for n, w in weights.items())
    add = ir.node("Add", [bias_value, x] if first else [x, bias_value], name="add")
    terms = [add.outputs[0], skip]
    norm = ir.node("SkipSimplifiedLayerNormalization", [*(terms[::-1] if at else terms), gamma], {"epsilon": 1e-5},
                   domain=MICROSOFT, num_outputs=4, name="norm")  # fmt: skip
    graph.extend([add, norm])
    outputs = [norm.outputs[0], norm.outputs[3], *([add.outputs[0]] if read_twice else [])]
    for name, output in zip(("y", "sum", "term"), outputs, strict=False):
        output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(["b", 3, WIDTH])
        graph.outputs.append(output)
    for k in (1, 2):
        norm.outputs[k].name = f"unused{k}"
    add.outputs[0].name = add.outputs[0].name or "biased"
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("first", [False, True])
def test_the_norm_adds_the_bias(at: int, first: bool) -> None:
    given = {
        n: torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(k)) for k, n in enumerate(("x", "skip"))
    }
    want, model = run(model_of(), **given), model_of(at, first)
    assert take_biases(model) == 1 and ops(model) == ["SkipSimplifiedLayerNormalization"]
    assert error(run(model, **given), want) < 1e-6
    model.graph[0].replace_input_with(3, None)
    assert error(run(model, **given), want) > 0.1, "the bias matters"


@pytest.mark.parametrize("change", [{"read_twice": True}, {"wide": True}])
def test_others_are_left_alone(change: dict[str, bool]) -> None:
    assert take_biases(model_of(**change)) == 0
