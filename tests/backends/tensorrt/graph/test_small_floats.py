"""Small floats as DequantizeLinear: the bytes mean what moec means, read by ONNX Runtime where it can and by onnx
itself where it cannot."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from moec.backends.onnx.floats import SmallFloats
from moec.backends.tensorrt.backend import MODEL_FILE, TensorrtRtx
from moec.backends.tensorrt.graph.export import lowered
from moec.backends.tensorrt.graph.operators import check, table_of
from moec.backends.tensorrt.graph.quantized import FP4, unreadable
from moec.backends.tensorrt.graph.refusals import refusals
from moec.backends.tensorrt.graph.small_floats import E2m1, E4m3, emit_floats, why_not_floats
from moec.backends.tensorrt.policy import BuildPlan
from moec.backends.tensorrt.session.cpu_stand_in import decode
from moec.frontend.export import capture
from moec.pipeline.passes import Context
from moec.pipeline.pipeline import Pipeline
from moec.program.program import Program
from moec.quantization.small_floats import bits_of, quantize_floats
from moec.targets.target import Target
from moec.weights.lazy import Weight, from_tensor
from tests.backends.onnxruntime.blocks import run
from tests.backends.tensorrt.graph.test_export import legal
from tests.backends.tensorrt.tiny import needs_rtx

NEW = BuildPlan("tensorrt-rtx", architectures=(120,))
HALVES = [torch.float32, torch.float16]


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * 0.05).to(dtype)


def weight(kind: str, *shape: int, dtype: torch.dtype = torch.float32) -> SmallFloats:
    made = quantize_floats(from_tensor(numbers(*shape, dtype=dtype), "w"), kind)
    return SmallFloats(made.codes, made.scale, None, bits_of(kind), made.overall, kind, dtype)


def meaning(floats: SmallFloats) -> Tensor:
    return torch.ops.moec.dequantize_float(
        *(p.load() for p in floats.parts()), format=floats.format, dtype=floats.dtype
    )


def graph_of(floats: SmallFloats) -> ir.Model:
    """`x + weight`, the addition lest the whole be folded before it runs."""
    from moec.backends.onnx.emit import Emitter
    from moec.backends.onnx.tensors import DTYPES

    graph = ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="w")
    x = ir.Value(name="x", type=ir.TensorType(DTYPES[floats.dtype]), shape=ir.Shape([1]))
    last = ir.node("Add", [x, x], outputs=[ir.Value(name="y", type=x.type, shape=ir.Shape(floats.shape))])
    graph.inputs.append(x)
    graph.append(last)
    graph.outputs.append(last.outputs[0])
    last.replace_input_with(1, emit_floats(Emitter(graph, last), floats, "w"))
    return ir.Model(graph, ir_version=11)


def by_onnx(model: ir.Model, dtype: torch.dtype) -> Tensor:
    """What onnx's own reference implementation makes of a graph."""
    (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": torch.zeros(1, dtype=dtype).numpy()})
    return torch.from_numpy(np.asarray(y))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
@pytest.mark.parametrize("shape", [(6, 64), (3, 4, 32)])
def test_onnx_reads_the_same_numbers(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    floats = weight(kind, *shape, dtype=dtype)
    got = by_onnx(graph_of(floats), dtype)
    assert got.dtype == dtype and torch.equal(got, meaning(floats))


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_wrong_bytes_are_seen(kind: str) -> None:
    """Mutants: signs turned, halves of a byte exchanged, scales of the neighbours."""
    floats = weight(kind, 6, 64)
    codes = floats.packed.load()
    wrong = [(codes ^ 0x80, floats.scale.load()), (codes << 4 | codes >> 4, floats.scale.load())]
    wrong += [(codes, floats.scale.load().roll(1, 0))] if kind == "nvfp4" else [(codes, floats.scale.load() * 1.01)]
    for bytes_, scale in wrong:
        other = SmallFloats(
            from_tensor(bytes_, "c"), from_tensor(scale, "s"), None, floats.bits, floats.overall, kind, floats.dtype
        )
        assert not torch.equal(by_onnx(graph_of(other), floats.dtype), meaning(floats))


@pytest.mark.parametrize("dtype", HALVES)
def test_onnxruntime_reads_fp8_itself_and_nvfp4_once_it_is_decoded(dtype: torch.dtype) -> None:
    for floats in (weight("fp8", 6, 64, dtype=dtype), weight("nvfp4", 6, 64, dtype=dtype)):
        model = graph_of(floats)
        assert decode(model) == (floats.format == "nvfp4")
        model.opset_imports[""] = 21
        assert torch.equal(run(model, x=torch.zeros(1, dtype=dtype)), meaning(floats))


def test_a_scale_for_every_row() -> None:
    """As checkpoints of other makers have it: one axis for a matrix, and for a stack the rows of all its matrices."""
    for shape in ((6, 64), (3, 4, 32)):
        codes, scale = weight("fp8", *shape).packed, numbers(*shape[:-1], 1).abs() + 0.01
        floats = SmallFloats(codes, from_tensor(scale, "s"), None, 8, None, "fp8", torch.float32)
        model = graph_of(floats)
        assert torch.equal(by_onnx(model, torch.float32), meaning(floats)) and (
            "Reshape" in [n.op_type for n in model.graph]
        ) == (len(shape) == 3)


def test_small_floats_are_as_small_in_the_file() -> None:
    for kind, cls, bits in (("fp8", E4m3, 8), ("nvfp4", E2m1, 4)):
        floats = weight(kind, 6, 64)
        tensor = cls(floats.packed, "codes")
        assert tensor.nbytes == len(tensor.tobytes()) == 6 * 64 * bits // 8 and list(tensor.shape) == [6, 64]
        assert tensor.numpy().dtype.name.startswith("float4" if bits == 4 else "float8")


def test_what_tensorrt_has_no_scales_for() -> None:
    fp8, nvfp4 = weight("fp8", 3, 4, 32), weight("nvfp4", 3, 4, 32)
    assert why_not_floats(fp8) == why_not_floats(nvfp4) == ""
    each = from_tensor(torch.ones(3), "overall")
    assert "not one for each matrix" in why_not_floats(
        SmallFloats(nvfp4.packed, nvfp4.scale, None, 4, each, "nvfp4", torch.float32)
    )
    blocks = from_tensor(torch.ones(3, 4, 2), "scale")
    assert "not blocks of 16" in why_not_floats(SmallFloats(fp8.packed, blocks, None, 8, None, "fp8", torch.float32))
    wide: Weight = from_tensor(torch.ones((), dtype=torch.float64), "scale")
    assert "float64" in why_not_floats(SmallFloats(fp8.packed, wide, None, 8, None, "fp8", torch.float64))


# ---------------------------------------------------------------------- whole programs
class Dense(nn.Module):
    """Two layers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(64, 128, dtype=dtype), nn.Linear(128, 64, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class Mixture(nn.Module):
    """A router and eight experts of 64 x 128, gate and up."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(64, 8, bias=False, dtype=dtype)
        self.w_in, self.w_out = (nn.Parameter((torch.randn(8, *s) * 0.1).to(dtype)) for s in ((256, 64), (64, 128)))

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = torch.topk(torch.softmax(self.gate(x).float(), -1), 2, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        return torch.ops.moec.experts(x, ids, weights, self.w_in, self.w_out)  # type: ignore[no-any-return]


@cache
def captured(model: type[nn.Module], dtype: torch.dtype) -> Program:
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    return capture(model(dtype), {"x": x}, {"x": ("tokens", None)})


def program(model: type[nn.Module], dtype: torch.dtype, text: str) -> Program:
    return legal(captured(model, dtype).clone(), text)


def deviation(model: ir.Model, made: Program, dtype: torch.dtype) -> float:
    x = torch.randn(11, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    decode(model)
    model.graph.outputs[0].name = "y"
    got, want = run(model, x=x).float(), next(iter(made.run(x=x).values())).float()
    return float((got - want).abs().max() / want.std())


@pytest.mark.parametrize(
    ("model", "form", "kind", "dtype"),
    [
        (Dense, "auto", "fp8", torch.float16), (Dense, "auto", "nvfp4", torch.float32),
        (Mixture, "dense", "fp8", torch.float32), (Mixture, "dense", "nvfp4", torch.float16),
        (Mixture, "gathered", "fp8", torch.float16), (Mixture, "gathered", "nvfp4", torch.float32),
    ],
)  # fmt: skip
def test_graphs_equal_the_program(model: type[nn.Module], form: str, kind: str, dtype: torch.dtype) -> None:
    made = program(model, dtype, f"quantize(format={kind})")
    plan = BuildPlan("tensorrt-rtx", architectures=(120,), lowering=form)
    assert refusals(made, plan) == []
    graph, facts = lowered(made, plan)
    assert check(graph, table_of("tensorrt-rtx")) == check(graph, table_of("tensorrt")) == []
    rows = [*facts["packed"], *facts["blocks"]]
    reasons = {row["unfolded"] for row in rows if row.get("form") != "gathered"}
    assert (
        rows
        and reasons <= ({""} if kind == "fp8" else {FP4})
        and {str(row["bits"]) for row in rows} == {str(bits_of(kind))}
    )
    assert deviation(graph, made, dtype) < (1e-4 if dtype == torch.float32 else 2e-2)
    plain = program(model, dtype, "")
    assert deviation(lowered(made, plan)[0], plain, dtype) > 3e-2, "the mutant: not the model before quantization"


@pytest.mark.parametrize("kind", ["fp8", "nvfp4"])
def test_gpus_without_the_format_are_refused_before_any_work(kind: str) -> None:
    made = program(Dense, torch.float32, f"quantize(format={kind})")
    for plan in (
        BuildPlan("tensorrt-rtx", architectures=(86, 120)),
        BuildPlan("tensorrt-rtx"),
        BuildPlan("tensorrt", architectures=(80,)),
    ):
        found = unreadable(made, plan)
        assert len(found) == 2 and all(
            f"no {kind}" in r.reason and f"--target {plan.edition}:sm" in r.fix for r in found
        )
    assert unreadable(made, NEW) == unreadable(made, BuildPlan("tensorrt", architectures=(100,))) == []


@needs_rtx
@pytest.mark.parametrize(
    ("model", "kind", "precision"),
    [(Dense, "nvfp4", "fp32"), (Mixture, "nvfp4", "fp16"), (Dense, "fp8", "fp16"), (Mixture, "fp8", "fp32")],
)
def test_real_engines(model: type[nn.Module], kind: str, precision: str, tmp_path: Path) -> None:
    backend, goal = TensorrtRtx(), Target.parse(f"tensorrt-rtx:sm120,precision={precision}")
    made = program(model, backend.precision(goal), f"quantize(format={kind})")
    made, _ = Pipeline.parse("find-moe, fuse-moe").all_optional().run(made, Context(), [])
    facts = backend.build(made, goal, tmp_path)
    layers = {row["layer"]: row["count"] for row in facts["layers"]}
    assert (
        layers["dequantize"]
        == len([n for n in ir.load(tmp_path / MODEL_FILE).graph if n.op_type == "DequantizeLinear"])
        >= 2
    )
    assert ("4-bit floats" in " ".join(facts["stand_in"])) == (kind == "nvfp4") and "packed weights" in facts[
        "unproven"
    ][0]
