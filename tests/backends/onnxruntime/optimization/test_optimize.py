"""Clean-up: transposed weights are folded without being loaded, small constants are folded, large ones are left
alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moec.backends.onnx.steps import apply_steps
from moec.backends.onnx.tensors import WeightTensor
from moec.backends.onnxruntime.export import to_onnx
from moec.backends.onnxruntime.optimization.optimize import optimization
from moec.frontend.export import capture
from moec.program.program import Program
from moec.weights.lazy import Weight


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(96, 80)  # more elements than are folded eagerly

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.arange(4.0).sum()


def make() -> Program:
    return capture(Net(), {"x": torch.randn(3, 11, 96)}, {"x": ("batch", "sequence", None)})


def test_a_weights_transpose_is_folded_into_it() -> None:
    program = make()
    want = program.weights["linear.weight"].load().T
    model = to_onnx(program)
    apply_steps(model, optimization())
    assert "Transpose" not in [n.op_type for n in model.graph]
    folded = model.graph.initializers["linear.weight.T"].const_value
    assert isinstance(folded, WeightTensor) and torch.equal(folded.weight.load(), want)
    assert "linear.weight" not in model.graph.initializers


def test_no_weight_is_read_and_constants_are_folded() -> None:
    program = make()

    def refuse(start: int, stop: int) -> Tensor:
        raise AssertionError("a weight was read")

    w = program.weights["linear.weight"]
    program.weights["linear.weight"] = Weight(w.shape, w.dtype, w.origin, refuse)
    model = to_onnx(program)
    before = len(list(model.graph))
    apply_steps(model, optimization())
    kinds = [n.op_type for n in model.graph]
    assert len(kinds) < before and not {"Range", "ReduceSum", "Transpose"} & set(kinds)
