"""Packed weights as DequantizeLinear: the numbers are moec's, zero points and scales are as TensorRT wants them, other
grids are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.tensorrt.backend import TensorrtRtx
from moec.backends.tensorrt.graph.moe import lower_experts
from moec.backends.tensorrt.graph.quantized import SIGNS, Codes, lower_quantized, unreadable, why_not
from moec.backends.tensorrt.policy import BuildPlan
from moec.dialect import pack
from moec.frontend.export import capture
from moec.pipeline.pipeline import Pipeline
from moec.quantization.grid import Grid
from moec.quantization.rounding import quantize_weight
from moec.targets.target import Target
from moec.weights.lazy import from_tensor
from moec.weights.weight import PackedWeight
from tests.backends.onnxruntime.blocks import add_initializer, error, run, tokens, value
from tests.backends.tensorrt.tiny import needs_rtx

GRIDS = [(2, 64), (4, 64), (4, 128), (8, 32), (8, 128)]


def quantized(
    bits: int, block: int, *shape: int, positive: bool = False, dtype: torch.dtype = torch.float32
) -> PackedWeight:
    g = torch.Generator().manual_seed(bits + block)
    codes = torch.randint(0, 2**bits, shape, generator=g)
    scale = torch.randn(*shape[:-1], shape[-1] // block, generator=g) * 0.1
    scale = (scale.abs() + 0.01 if positive else scale).to(dtype)
    return PackedWeight(from_tensor(pack(codes, bits), "packed"), from_tensor(scale, "scale"), None, bits)


def meaning(weight: PackedWeight) -> Tensor:
    return torch.ops.moec.dequantize(weight.packed.load(), weight.scale.load(), bits=weight.bits)


def dequantized(weight: PackedWeight) -> ir.Model:
    """A model whose output is a `moec::Dequantize` node, plus an input so that nothing is folded before it runs."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "moec": 1}, name="q")
    x = value("x", weight.dtype, [1])
    graph.inputs.append(x)
    inputs = [add_initializer(graph, w, w.origin) for w in (weight.packed, weight.scale)]
    node = ir.node("Dequantize", inputs, {"bits": weight.bits}, domain="moec", name="w")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "w", x.type, ir.Shape(weight.shape)
    y = ir.Value(name="y", type=x.type, shape=ir.Shape(weight.shape))
    graph.extend([node, ir.node("Add", [node.outputs[0], x], outputs=[y])])
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def read_back(model: ir.Model, weight: PackedWeight) -> Tensor:
    return run(model, x=torch.zeros(1, dtype=weight.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize(("bits", "block"), GRIDS)
def test_the_bytes_mean_what_moec_means(bits: int, block: int, positive: bool, dtype: torch.dtype) -> None:
    for shape in ((6, 256), (3, 4, 128)):
        weight = quantized(bits, block, *shape, positive=positive, dtype=dtype)
        model = dequantized(weight)
        (fact,) = lower_quantized(model)
        assert (fact["op"], fact["bits"], fact["block"]) == ("DequantizeLinear", bits, block)
        assert torch.equal(read_back(model, weight), meaning(weight))


def test_scales_are_positive_and_signs_stand_apart_only_where_there_are_any() -> None:
    for positive in (True, False):
        model = dequantized(quantized(4, 64, 6, 256, positive=positive))
        lower_quantized(model)
        kinds = [n.op_type for n in model.graph]
        assert ("Mul" in kinds) != positive
        (node,) = [n for n in model.graph if n.op_type == "DequantizeLinear"]
        assert node.inputs[1] is not None and node.inputs[1].const_value is not None
        assert (node.inputs[1].const_value.numpy() > 0).all() and len(node.inputs) == 2


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize(("bits", "group"), [(2, 64), (4, 64), (8, 32)])
def test_grids_with_positive_scales_have_no_signs_and_are_exact(bits: int, group: int, method: str) -> None:
    value_ = torch.randn(6, 256, generator=torch.Generator().manual_seed(bits))
    for positive in (True, False):
        made = quantize_weight(from_tensor(value_, "w"), Grid(bits, group, method=method, positive_scales=positive))
        weight = PackedWeight(made.packed, made.scale, None, bits)
        model = dequantized(weight)
        (fact,) = lower_quantized(model)
        assert ("Mul" in [n.op_type for n in model.graph]) != positive and (fact["unfolded"] == SIGNS) != positive
        assert torch.equal(read_back(model, weight), meaning(weight)) and (
            bits == 8 or bool(fact["unfolded"]) != positive
        )


@needs_rtx
@pytest.mark.parametrize(
    "text",
    ["positive_scales=True", "positive_scales=False", "bits=8, positive_scales=True", "format=fp8", "format=nvfp4"],
    ids=lambda t: t.replace(" ", ""),
)
def test_what_is_said_of_reading_packed_bytes_is_what_the_plan_holds(text: str, tmp_path: Path) -> None:
    """Where products read the bytes, TensorRT-RTX's plan is little more than these; else a kernel that unpacks them
    lies beside."""
    size, width = (1024, 1024), torch.float16
    net = torch.nn.Linear(*size, bias=False, dtype=width)
    program, _ = Pipeline.parse(f"quantize({text})").run(
        capture(net, {"input": torch.randn(3, size[0], dtype=width)}, {"input": ("tokens", None)})
    )
    facts = TensorrtRtx().build(program, Target.parse("tensorrt-rtx:sm120,precision=fp16"), tmp_path)
    (weight,) = facts["packed"]
    more = (tmp_path / "model.plan").stat().st_size - weight["bytes"]
    assert (more < 100_000) == (weight["unfolded"] == "") and 0 < more < 400_000, "and none is 2 bytes a number"


def test_a_wrong_code_or_sign_is_seen() -> None:
    weight = quantized(4, 64, 6, 256)
    model = dequantized(weight)
    lower_quantized(model)
    other = PackedWeight(weight.packed, from_tensor(weight.scale.load().abs(), "scale"), None, 4)
    assert not torch.equal(read_back(model, weight), meaning(other))
    turned = PackedWeight(from_tensor(weight.packed.load() ^ 0x08, "packed"), weight.scale, None, 4)
    assert not torch.equal(read_back(model, weight), meaning(turned))


def test_groups_of_nothing_stay_nothing() -> None:
    weight = quantized(4, 64, 6, 256)
    scale = weight.scale.load().clone()
    scale[2, 1] = 0
    empty = PackedWeight(weight.packed, from_tensor(scale, "scale"), None, 4)
    model = dequantized(empty)
    lower_quantized(model)
    assert torch.equal(read_back(model, empty), meaning(empty)) and not meaning(empty)[2, 64:128].any()


def test_four_bits_are_four_bits_in_the_file_too() -> None:
    weight = quantized(4, 64, 6, 256)
    tensor = Codes(weight.packed, "codes")
    assert tensor.dtype == ir.DataType.INT4 and tensor.nbytes == weight.packed.size_bytes == len(tensor.tobytes())
    model = dequantized(weight)
    lower_quantized(model)
    assert ir.DataType.INT4 in {v.dtype for v in model.graph.initializers.values()}


@pytest.mark.parametrize("form", ["gathered", "dense"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("positive", [True, False])
def test_experts_with_packed_matrices(positive: bool, bits: int, form: str) -> None:
    w_in, w_out = (
        quantized(bits, 64, 6, 2 * 128, 64, positive=positive),
        quantized(bits, 64, 6, 64, 128, positive=positive),
    )
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21, "moec": 1}, name="block")
    x, ids, weights = (
        value("x", torch.float32, ["t", 64]),
        value("ids", torch.int64, ["t", 2]),
        value("weights", torch.float32, ["t", 2]),
    )
    graph.inputs.extend([x, ids, weights])
    made = []
    for name, q in (("w_in", w_in), ("w_out", w_out)):
        inputs = [add_initializer(graph, w, f"{name}.{n}") for w, n in ((q.packed, "packed"), (q.scale, "scale"))]
        made.append(ir.node("Dequantize", inputs, {"bits": bits}, domain="moec", name=name))
    y = ir.Value(name="y", type=x.type, shape=x.shape)
    rule = {
        "activation": "silu",
        "gated": 1,
        "alpha": 1.0,
        "beta": 0.0,
        "limit": 0.0,
        "clamp_after": 0,
        "score_before": 0,
    }
    graph.extend(
        [
            *made,
            ir.node(
                "Experts",
                [x, ids, weights, made[0].outputs[0], made[1].outputs[0]],
                rule,
                domain="moec",
                outputs=[y],
                name="layer",
            ),
        ]
    )
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=10)
    (fact,) = lower_experts(model, BuildPlan("tensorrt-rtx", lowering=form))
    assert (fact["bits"], fact["block"], fact["bytes"]) == (str(bits), "64", w_in.size_bytes + w_out.size_bytes)
    assert lower_quantized(model) == [], "nobody reads the old nodes"
    assert not any(node.domain == "moec" for node in graph), "and they are gone, with their weights"
    assert not {"w_in.packed", "w_out.scale"} & set(graph.initializers)
    x_, ids_, mix = tokens(9, hidden=64), torch.arange(18).reshape(9, 2) % 6, torch.rand(9, 2)
    want = torch.ops.moec.experts(x_, ids_, mix, meaning(w_in), meaning(w_out))
    assert error(run(model, x=x_, ids=ids_, weights=mix), want) < 1e-4
    assert (
        error(
            run(model, x=x_, ids=ids_, weights=mix),
            torch.ops.moec.experts(x_, ids_, mix, -meaning(w_in), meaning(w_out)),
        )
        > 0.1
    )


def test_grids_that_tensorrt_lacks_are_named() -> None:
    zero = from_tensor(torch.zeros(6, 4, dtype=torch.uint8), "zero")
    q = quantized(4, 64, 6, 256)
    assert why_not(q) == ""
    assert "zero points" in why_not(PackedWeight(q.packed, q.scale, zero, 4))
    assert "blocks of 64 or 128, not of 32" in why_not(quantized(4, 32, 6, 256))
    assert why_not(quantized(8, 32, 6, 256)) == ""
    assert "float64" in why_not(quantized(4, 64, 6, 256, dtype=torch.float64))


@pytest.mark.parametrize(
    ("grid", "refused"),
    [(Grid(4, 64), 0), (Grid(4, 32), 1), (Grid(4, 64, symmetric=False), 1), (Grid(8, 32), 0)],
    ids=str,
)
def test_a_program_is_refused_before_anything_is_built(grid: Grid, refused: int) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = quantize_weight(from_tensor(torch.randn(8, 64), "w"), grid)
            for name, part in (("packed", parts.packed), ("scale", parts.scale), ("zero", parts.zero)):
                self.register_buffer(name, None if part is None else part.load())

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(
                x, torch.ops.moec.dequantize(self.packed, self.scale, self.zero, bits=grid.bits)
            )

    found = unreadable(capture(Net(), {"x": torch.randn(3, 64)}), BuildPlan("tensorrt"))
    assert len(found) == refused and all("symmetric=True" in r.fix for r in found)


def test_codes_read_back_by_onnx() -> None:
    """The nibbles of the file are those that onnx itself unpacks."""
    codes = torch.arange(16).reshape(1, 16)
    tensor = Codes(from_tensor(pack(codes, 4) ^ 0x88, "codes"), "codes")
    assert np.array_equal(tensor.numpy().astype(np.int64), codes.numpy() - 8)
