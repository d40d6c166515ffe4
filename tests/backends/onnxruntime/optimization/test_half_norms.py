"""Norms that scale in float32, in half precision throughout: the same numbers within its rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.backends.onnx.steps import apply_steps
from moec.backends.onnxruntime.export import to_onnx
from moec.backends.onnxruntime.optimization.half_norms import narrow_norms
from moec.backends.onnxruntime.optimization.optimize import optimization
from moec.frontend.export import capture
from tests.backends.onnxruntime.optimization.test_fusions import Norms, error, kinds, run, sample


class Wide(Norms):
    """As gpt-oss has it: a weight in float32, and the product rounded last."""

    def norm(self, x: Tensor, scale: Tensor) -> Tensor:
        wide = x.float()
        return (scale * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon))).to(x.dtype)


def module(kind: str, epsilon: float = 1e-3) -> Norms:
    if kind == "power":
        return Norms(torch.float16, kind, epsilon)
    made = Wide(torch.float16, kind, epsilon)
    made.scales.float() if kind == "float32" else None
    return made


@pytest.mark.parametrize("kind", ["power", "float32", "float16"])
def test_casts_go_and_the_sum_joins_the_norm(kind: str) -> None:
    x, made = sample(torch.float16, 3, 11), module(kind).train(False)
    model = to_onnx(capture(made, {"x": x}, {"x": ("batch", "sequence", None)}), "cuda")
    apply_steps(model, optimization(provider="cuda"))
    found = kinds(model)
    assert found.count("SimplifiedLayerNormalization") == 1 and found.count("SkipSimplifiedLayerNormalization") == 1
    casts = [n.inputs[0].shape for n in model.graph if n.op_type == "Cast" and n.inputs[0] is not None]
    assert all(shape is not None and len(shape) == 1 for shape in casts), (
        "of scales alone, which fold when it is loaded"
    )
    assert narrow_norms(model) == 0
    for leading in ((1, 1), (5, 30)):
        x = sample(torch.float16, *leading)
        with torch.no_grad():
            want, other = made(x), module(kind, 3e-3)(x)
        assert error(run(model, x), want) < 1e-2 < 3e-2 < error(run(model, x), other)


def test_the_cpu_keeps_float32() -> None:
    x = sample(torch.float16, 3, 11)
    model = to_onnx(capture(module("float32").train(False), {"x": x}, {"x": ("batch", "sequence", None)}))
    apply_steps(model, optimization())
    assert kinds(model).count("Cast") > 0
