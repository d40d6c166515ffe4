"""Packed weights as plain ones: the same numbers, in branches too, and only where a kernel would be slow."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.emit import Emitter
from moec.backends.onnxruntime.packed.quantized import emit_product, kernel_inputs
from moec.backends.onnxruntime.packed.unpacking import unpack_products, unpacked
from moec.backends.onnxruntime.session.engine import MODEL_FILE, OnnxruntimeEngine
from moec.dialect import Routing
from moec.targets.target import Target
from moec.weights.lazy import from_tensor
from moec.weights.weight import PackedWeight
from tests.backends.onnxruntime.blocks import Experts, error, lowered, moe_model, run, tokens, value
from tests.backends.onnxruntime.rounding import meant, quantize_model, rounded

WEIGHT = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
X = tokens(5, hidden=48)


def product(bits: int, zeros: bool) -> tuple[ir.Model, torch.Tensor]:
    """One MatMulNBits with three blocks a row, so that zero points of 2 bits do not fill their last byte."""
    parts = rounded(WEIGHT, bits, 16, zeros)
    x, y = value("x", torch.float32, ["n", 48]), value("y", torch.float32, ["n", 24])
    old = ir.node("Placeholder", [x], outputs=[y], name="layer")
    graph = ir.Graph([x], [y], nodes=[old], opset_imports={"": 20, "com.microsoft": 1}, name="product")
    emit = Emitter(graph, old)
    packed, scale, zero = (None if t is None else from_tensor(t, str(n)) for n, t in enumerate(parts))
    assert packed is not None and scale is not None
    weight = PackedWeight(packed, scale, zero, bits)
    emit.replace(emit_product(emit, x, weight, kernel_inputs(graph, weight, "w")))
    return ir.Model(graph, ir_version=10), meant(parts, bits)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_same_numbers(bits: int, zeros: bool) -> None:
    model, weight = product(bits, zeros)
    before = run(model, x=X)
    assert unpack_products(model) == (bits != 4) and unpack_products(model) == 0
    assert any(n.op_type == "MatMulNBits" for n in model.graph) == (bits == 4)
    got = run(model, x=X)
    assert error(got, X @ weight.T) < 1e-5 and error(got, before) < 1e-5
    assert error(got, X @ weight.flip(1).T) > 0.1 and error(got, X @ WEIGHT.T) > 1e-4


@pytest.mark.parametrize("optimize_for", ["latency", "throughput"])
def test_in_branches(optimize_for: str) -> None:
    e, x = Experts(experts=20, inner=32), tokens(7)
    model = moe_model(e, 2, Routing(2))
    for name, weight in quantize_model(model, ["w_in", "w_out"], 8, 16, True).items():
        setattr(e, name, weight)
    model, _ = lowered(model, optimize_for)
    assert any(n.op_type == "If" for n in model.graph) and unpack_products(model) == 20 * (
        2 if optimize_for == "latency" else 3
    )
    assert [f.name for f in model.functions.values()] == ["Unpack8WithZeros"], "said once, not for every matrix"
    assert error(run(model, x=x), torch.ops.moec.moe(x, e.router, None, None, *e.tensors, top_k=2)) < 1e-5


def test_a_session_that_stays_small_gives_the_same(tmp_path: Path) -> None:
    model, weight = product(8, True)
    unpack_products(model)
    ir.save(model, tmp_path / MODEL_FILE)
    engine = OnnxruntimeEngine(tmp_path, Target("onnxruntime"), prepack=False)
    assert error(engine(x=X)["y"], X @ weight.T) < 1e-5 < 0.1 < error(engine(x=X)["y"], X @ weight.flip(1).T)


def test_what_is_said() -> None:
    facts = [
        {"op": "MatMulNBits", "bits": 8},
        {"op": "MatMulNBits", "bits": 4},
        {"op": "GatherBlockQuantized", "bits": 8},
    ]
    assert [f["op"] for f in unpacked(facts, "op")] == [
        "MatMul, unpacked when loaded",
        "MatMulNBits",
        "GatherBlockQuantized",
    ]
