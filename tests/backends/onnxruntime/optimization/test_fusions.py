"""Fused kernels against the PyTorch modules that they came from, at other sizes than the capture's."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from moec.backends.onnx.steps import apply_steps
from moec.backends.onnxruntime.export import to_onnx
from moec.backends.onnxruntime.optimization.fusions import fuse
from moec.backends.onnxruntime.optimization.optimize import optimization
from moec.frontend.export import capture
from moec.weights.lazy import Weight

WIDTH = 96
LIMIT = {torch.float32: 1e-5, torch.float16: 1e-2}


class Norms(nn.Module):
    """A norm, a residual branch, the norm of the sum, and the sum again, as decoders have them.

    Args:
        kind: `plain` multiplies by the weight in x's dtype, `wide` by 1 + weight in float32, `power` is `wide` written
            with `** -0.5`.
    """

    def __init__(self, dtype: torch.dtype, kind: str = "plain", epsilon: float = 1e-3) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.scales = nn.ParameterList(torch.rand(WIDTH, generator=g).to(dtype) for _ in range(2))
        self.linear, self.kind, self.epsilon = nn.Linear(WIDTH, WIDTH, dtype=dtype), kind, epsilon
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(WIDTH, WIDTH, generator=g) / WIDTH**0.5)

    def norm(self, x: Tensor, scale: Tensor) -> Tensor:
        wide = x.float()
        mean = wide.pow(2).mean(-1, keepdim=True) + self.epsilon
        wide = wide * (torch.pow(mean, -0.5) if self.kind == "power" else torch.rsqrt(mean))
        return scale * wide.to(x.dtype) if self.kind == "plain" else (wide * (1.0 + scale.float())).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.tanh()
        y = x + self.linear(self.norm(x, self.scales[0]))
        return y + self.norm(y, self.scales[1])


def sample(dtype: torch.dtype, *leading: int) -> Tensor:
    return (0.1 * torch.randn(*leading, WIDTH, generator=torch.Generator().manual_seed(3))).to(dtype)


def graph_of(module: nn.Module, dtype: torch.dtype) -> ir.Model:
    model = to_onnx(capture(module.train(False), {"x": sample(dtype, 3, 11)}, {"x": ("batch", "sequence", None)}))
    apply_steps(model, optimization())
    return model


def run(model: ir.Model, x: Tensor) -> Tensor:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).abs().max() / want.double().std())


def kinds(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


@pytest.mark.parametrize("kind", ["plain", "wide", "power"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_norms_and_the_sums_before_them(dtype: torch.dtype, kind: str) -> None:
    module, limit = Norms(dtype, kind), LIMIT[dtype]
    model = graph_of(module, dtype)
    assert not {"Pow", "ReduceMean", "Sqrt", "Reciprocal"} & set(kinds(model))
    for leading in ((1, 1), (2, 7), (5, 30)):
        x = sample(dtype, *leading)
        with torch.no_grad():
            want, other = module(x), Norms(dtype, kind, epsilon=3e-3)(x)
        got = run(model, x)
        assert got.dtype == dtype and error(got, want) < limit
        assert error(got, other) > 3 * limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_the_sum_is_part_of_the_kernel(dtype: torch.dtype) -> None:
    found = kinds(graph_of(Norms(dtype), dtype))
    assert found.count("SimplifiedLayerNormalization") == 1 and found.count("SkipSimplifiedLayerNormalization") == 1


def test_a_second_run_finds_nothing() -> None:
    assert not any(fuse(graph_of(Norms(torch.float32), torch.float32)).values())


class Attention(nn.Module):
    """Queries and keys are not the same: a wrong transpose cannot hide."""

    def forward(self, x: Tensor) -> Tensor:
        query = x.unflatten(-1, (4, -1)).transpose(1, 2)
        return (
            nn.functional.scaled_dot_product_attention(query, query.flip(2) * 2, query.sin()).transpose(1, 2).flatten(2)
        )


def test_a_key_is_transposed_at_once() -> None:
    model = graph_of(Attention(), torch.float32)
    x = 10 * sample(torch.float32, 2, 7)
    assert error(run(model, x), Attention()(x)) < LIMIT[torch.float32]
    assert error(run(model, x), Attention()(1.1 * x)) > 0.01
    perms = [tuple(n.attributes.get_ints("perm")) for n in model.graph if n.op_type == "Transpose"]
    assert (0, 1, 3, 2) in perms and all(len(p) == 4 for p in perms)


def test_no_weight_is_read() -> None:
    def refuse(start: int, stop: int) -> Tensor:
        raise AssertionError("a weight was read")

    program = capture(
        Norms(torch.float32).train(False), {"x": sample(torch.float32, 3, 11)}, {"x": ("batch", "sequence", None)}
    )
    w = program.weights["linear.weight"]
    program.weights["linear.weight"] = Weight(w.shape, w.dtype, w.origin, refuse)
    model = to_onnx(program)
    apply_steps(model, optimization())
    assert "SkipSimplifiedLayerNormalization" in kinds(model)
