"""One graph for few tokens and many: each size takes the form that is meant for it, on both sides of every bound, and
all pieces read the same weights."""

from __future__ import annotations

import math
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from moec.backends.tensorrt.building.worker import call
from moec.backends.tensorrt.graph.moe import lower_experts
from moec.backends.tensorrt.policy import BuildPlan
from tests.backends.onnxruntime.blocks import Experts, choice, error, experts_model, session, tokens
from tests.backends.tensorrt.graph.test_expert_layer import want
from tests.backends.tensorrt.tiny import needs_rtx, request

FEW, PIECE, MOST = 4, 3, 12
BLOCK = Experts(experts=24, biases=True)
DENSE_BYTES = 24 * (24 * 3 * 4 + 8)  # of one token


def pieces(lowering: str = "auto") -> ir.Model:
    """A block that gathers to 4 tokens; with little memory to 1, and makes products of 3 tokens at once, up to 12."""
    model = experts_model(BLOCK, 2, 2)
    memory_bytes = 10**9 if lowering == "auto" else PIECE * DENSE_BYTES
    (fact,) = lower_experts(model, BuildPlan("tensorrt-rtx", tokens=MOST, lowering=lowering, memory_bytes=memory_bytes))
    assert fact["formulation"] == ("either" if lowering == "auto" else lowering)
    return model


def test_a_step_gathers_and_a_prompt_does_not() -> None:
    """What each product is given is seen from outside: with few tokens the wide ones have no rows, with many the
    gathering."""
    model = pieces()
    wide = [n.inputs[0] for n in model.graph if n.op_type == "Gemm"]
    copied = [n.outputs[0] for n in model.graph if n.op_type == "Gather"]
    for seen in (wide[0], copied[0]):
        assert seen is not None
        seen.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(seen)
    ran = session(model)
    for count in (1, FEW, FEW + 1, MOST):
        ids, weights = choice(count, experts=24)
        given = {"x": tokens(count).numpy(), "ids": ids.numpy(), "weights": weights.numpy()}
        y, rows, experts = ran.run(None, given)
        assert error(torch.from_numpy(y), want(BLOCK, tokens(count), ids, weights)) < 1e-4
        assert (len(rows), len(experts)) == ((0, count) if count <= FEW else (count, 0))


@pytest.mark.parametrize("lowering", ["dense", "either"])
def test_pieces_of_a_call_are_the_call(lowering: str) -> None:
    """Also without tokens, and on both sides of every piece's end; the mutant leaves out one token's second half."""
    model = pieces(lowering)
    assert sum(n.op_type == "Gemm" for n in model.graph) == math.ceil(MOST / PIECE)
    ran = session(model)
    for count in (0, 1, 2, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1, MOST):
        (ids, weights), x = choice(count, experts=24), tokens(count)
        (got,) = ran.run(None, {"x": x.numpy(), "ids": ids.numpy(), "weights": weights.numpy()})
        meant = want(BLOCK, x, ids, weights)
        assert got.shape == tuple(meant.shape) and (not count or error(torch.from_numpy(got), meant) < 1e-4)
        if count:
            weights[-1, 1] = 0
            assert error(torch.from_numpy(got), want(BLOCK, x, ids, weights)) > 1e-3


def test_all_pieces_read_the_same_weights() -> None:
    numbers = sum(t.numel() for t in BLOCK.tensors if t is not None)
    for model in (pieces("either"), pieces("dense"), pieces("auto")):
        held = sum(math.prod(v.shape.numpy()) for v in model.graph.initializers.values() if v.shape is not None)
        assert numbers <= held < numbers + 100


@needs_rtx
def test_a_plan_holds_them_once(tmp_path: Path) -> None:
    """What the builder says: with both forms the plan grows by code, and not by another copy of the experts."""
    e = Experts(experts=24, hidden=128, inner=256, dtype=torch.float16)
    weights_bytes, sizes = 2 * sum(t.numel() for t in e.tensors if t is not None), {}
    shapes = {"x": [128], "ids": [2], "weights": [2]}
    ranges = [{name: [[n, *rest] for n in of] for name, rest in shapes.items()} for of in ((1, 1, 4), (1, 64, 512))]
    profiles = [{"name": f"p{n}", "sizes": {}, "shapes": found} for n, found in enumerate(ranges)]
    for lowering in ("auto", "dense"):
        model = experts_model(e, 2, 2)
        lower_experts(model, BuildPlan("tensorrt-rtx", tokens=512, lowering=lowering))
        ir.save(model, tmp_path / "model.onnx")
        call(request(tmp_path, onnx=tmp_path / "model.onnx", profiles=profiles, architectures=[120]))
        sizes[lowering] = (tmp_path / "model.plan").stat().st_size
    assert weights_bytes < sizes["dense"] < sizes["auto"] < 1.5 * weights_bytes
