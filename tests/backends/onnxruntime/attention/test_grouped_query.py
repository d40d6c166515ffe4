"""When GroupQueryAttention is right, and the layout of its inputs. Its numbers are those of `test_attention` and
`test_kv_cache`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir
import pytest
import torch

from moec.backends.onnx.attention import Attention
from moec.backends.onnx.emit import Emitter
from moec.backends.onnxruntime.attention.grouped_query import by_head, by_token, why_not_grouped
from tests.backends.onnxruntime.blocks import ops, run, value

F32, F16 = torch.float32, torch.float16


def block(dtype: torch.dtype = F32, size: int = 16, width: int = 16) -> Attention:
    query, key = value("query", dtype, ["b", 6, "s", size]), value("key", dtype, ["b", 3, "t", size])
    return Attention(
        query,
        key,
        value("value", dtype, ["b", 3, "t", width]),
        value("mask", torch.bool, ["b", 1, "s", "t"]),
        None,
        0.25,
        0.0,
        True,
    )


@pytest.mark.parametrize(("given", "provider", "reason"), [
    (block(), "cpu", ""), (block(F16), "cpu", ""), (block(F16), "cuda", ""), (block(), "cuda", "half precision"),
    (block(size=12, width=12), "cpu", "a head size of 12"), (block(width=8), "cpu", "keys of 16 and values of 8"),
    (replace(block(), causal=False), "cpu", "later ones"), (replace(block(), mask=None), "cpu", "later ones"),
    (replace(block(), sinks=value("sinks", F32, [6])), "cpu", "sinks"),
], ids=str)  # fmt: skip
def test_it_is_right_or_there_is_a_reason(given: Attention, provider: str, reason: str) -> None:
    found = why_not_grouped(given, provider)
    assert reason in found if reason else found == ""


@pytest.mark.parametrize("back", [False, True])
def test_rows_by_token_and_back(back: bool) -> None:
    x: Any = value("x", F32, ["b", 3, "s", 8])
    y = ir.Value(name="y", type=x.type, shape=ir.Shape([None] * (4 if back else 3)))
    node = ir.node("Placeholder", [x], outputs=[y], name="here")
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 20}, name="rows")
    emit = Emitter(graph, node)
    rows = by_token(emit, x)
    assert [str(d) for d in rows.shape or ()] == ["b", "s", "24"]
    emit.replace(by_head(emit, rows, x) if back else rows)
    given = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    got = run(ir.Model(graph, ir_version=10), x=given)
    assert (
        torch.equal(got, given if back else given.transpose(1, 2).reshape(2, 5, 24))
        and ops(ir.Model(graph, ir_version=10)).count("Transpose") == 1 + back
    )
    assert not torch.equal(got, given.flip(1) if back else given.reshape(2, 5, 24)), "heads and tokens are not mixed up"
