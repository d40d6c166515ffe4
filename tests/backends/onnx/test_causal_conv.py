"""Short convolutions in ONNX: the runtime's operator and standard ones, from any window, at any length."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.causal_conv import lower_causal_convs
from moec.backends.onnx.evaluation import GraphEngine
from moec.program.signature import Input

C, K, WINDOW = 6, 4, 5
INPUTS = (
    Input("x", torch.float32, ("batch", C, "sequence")),
    Input("window", torch.float32, ("batch", C, WINDOW)),
    Input("weight", torch.float32, (C, K)),
    Input("bias", torch.float32, (C,)),
)


def graph(silu: int, with_bias: bool) -> ir.Model:
    values = [ir.Value(name=i.name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(i.shape)) for i in INPUTS]
    node = ir.node("CausalConv", values if with_bias else values[:3], {"silu": silu}, domain="moec", name="conv")
    node.outputs[0].name, node.outputs[0].type = "y", values[0].type
    node.outputs[0].shape = values[0].shape
    made = ir.Graph(values, [node.outputs[0]], nodes=[node], opset_imports={"": 21, "moec": 1}, name="g")
    return ir.Model(made, ir_version=10)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("silu", "with_bias"), [(0, False), (1, True)])
def test_it_is_what_the_dialect_says(fused: bool, silu: int, with_bias: bool) -> None:
    model = graph(silu, with_bias)
    (fact,) = lower_causal_convs(model, fused)
    assert fact["formulation"] == ("CausalConvWithState" if fused else "Conv")
    engine, generator = GraphEngine(model, INPUTS), torch.Generator().manual_seed(0)
    for batch, length in ((1, 1), (3, 1), (2, 3), (1, 40)):
        sizes = {"batch": batch, "sequence": length}
        given = {i.name: torch.randn(i.resolve(sizes), generator=generator) for i in INPUTS}
        x, window, weight, bias = given.values()
        want = torch.ops.moec.causal_conv(x, window, weight, bias if with_bias else None, silu=bool(silu))
        (got,) = engine(**given).values()
        (other,) = engine(**{**given, "window": window.flip(-1)}).values()
        assert torch.allclose(got, want, atol=1e-5) and not torch.allclose(other, want, atol=1e-2)
