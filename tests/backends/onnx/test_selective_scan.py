"""`moec::SelectiveScan` as a Scan of ONNX against the operator itself, at every length and in half precision."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.selective_scan import lower_selective_scans
from moec.backends.onnx.tensors import DTYPES
from tests.backends.onnxruntime.blocks import session

NAMES = ("x", "delta", "a", "b", "c", "state")
D, N = 6, 4


def tensors(length: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    make = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    delta, a = make(batch, length, D).exp(), -make(D, N).exp()
    given = [make(batch, length, D), delta, a, make(batch, length, N), make(batch, length, N)]
    return [t.to(dtype) for t in given] + [make(batch, D, N)]


def lowered(dtype: torch.dtype = torch.float32) -> ir.Model:
    shapes: list[list[Any]] = [["b", "s", D], ["b", "s", D], [D, N], ["b", "s", N], ["b", "s", N], ["b", D, N]]
    kinds = [*[dtype] * 5, torch.float32]
    make = lambda name, kind, shape: ir.Value(  # noqa: E731
        name=name, type=ir.TensorType(DTYPES[kind]), shape=ir.Shape(shape)
    )
    inputs = [make(*each) for each in zip(NAMES, kinds, shapes, strict=True)]
    outputs = [make("y", dtype, shapes[0]), make("after", torch.float32, shapes[-1])]
    node = ir.node("SelectiveScan", inputs, domain="moec", outputs=outputs, name="scan")
    graph = ir.Graph(inputs, outputs, nodes=[node], opset_imports={"": 20, "moec": 1}, name="test")
    model = ir.Model(graph, ir_version=10)
    (fact,) = lower_selective_scans(model)
    assert fact["formulation"] == "Scan" and fact["why"]
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_scan_says_what_the_operator_says(dtype: torch.dtype) -> None:
    running, limit = session(lowered(dtype)), 1e-5 if dtype == torch.float32 else 2e-3
    for length, batch in ((1, 1), (5, 2), (130, 3)):
        given = tensors(length, batch, dtype)
        feeds = {name: t.numpy() for name, t in zip(NAMES, given, strict=True)}
        found = [torch.from_numpy(value) for value in running.run(["y", "after"], feeds)]
        for got, want in zip(found, torch.ops.moec.selective_scan(*given), strict=True):
            assert got.dtype == want.dtype and (got - want).abs().max() <= limit * want.std()
        wrong = torch.ops.moec.selective_scan(*given[:2], given[2] * 1.1, *given[3:])[0]
        assert (found[0] - wrong).abs().max() > limit * wrong.std(), "rates matter"
