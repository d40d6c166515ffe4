"""An attention node is read as it was written, and its plain form is the dialect's attention."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.attention import (
    Attention,
    attention_nodes,
    emit_bias,
    emit_plain,
    fold_bias,
    read_attention,
)
from moec.backends.onnx.emit import Emitter
from tests.backends.onnxruntime.attention.test_lower import tensors
from tests.backends.onnxruntime.blocks import error, ops, run, value

NAMES = ("query", "key", "value", "mask", "sinks")
SINKS = torch.randn(6, generator=torch.Generator().manual_seed(4))


def model_of(given: list[Tensor | None], **rule: Any) -> ir.Model:
    """One opaque node."""
    inputs = [None if t is None else value(n, t.dtype, list(t.shape)) for n, t in zip(NAMES, given, strict=True)]
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node(
        "Attention",
        inputs,
        {"scale": 0.3, "softcap": 0.0, "causal": 1, **rule},
        domain="moec",
        outputs=[y],
        name="layer",
    )
    graph = ir.Graph([v for v in inputs if v is not None], [y], nodes=[node], opset_imports={"": 21}, name="test")
    return ir.Model(graph, ir_version=10)


def plain(given: list[Tensor | None], folded: bool, **rule: Any) -> tuple[Tensor, list[str]]:
    """What the plain form gives, and its operators."""
    model = model_of(given, **rule)
    (node,) = attention_nodes(model.graph)
    block, emit = read_attention(node), Emitter(model.graph, node)
    bias = None if block.mask is None else emit_bias(emit, block.mask, block.dtype)
    wide = fold_bias(emit, block, bias) if folded and bias is not None else None
    emit.replace(emit_plain(emit, block, bias, folded=wide))
    return run(model, **{n: t for n, t in zip(NAMES, given, strict=True) if t is not None}), ops(model)


def test_a_node_is_read_as_it_was_written() -> None:
    model = model_of([*tensors(4, 9, 6, 3), SINKS], softcap=1.5, causal=0)
    (node,) = attention_nodes(model.graph)
    block = read_attention(node)
    assert isinstance(block, Attention) and (block.heads, block.groups, block.dtype) == (6, 3, ir.DataType.FLOAT)
    assert [v.name for v in (block.query, block.key, block.value, block.mask, block.sinks) if v] == list(NAMES)
    assert (round(block.scale, 6), block.softcap, block.causal) == (0.3, 1.5, False)
    query, key, value_, *_ = tensors(4, 9, 6, 3)
    (node,) = attention_nodes(model_of([query, key, value_, None, None]).graph)
    assert read_attention(node).mask is None and read_attention(node).sinks is None


@pytest.mark.parametrize("folded", [False, True], ids=["", "folded"])
@pytest.mark.parametrize("rule", [{}, {"softcap": 1.5}, {"sinks": True}], ids=["", "softcap", "sinks"])
def test_the_plain_form_is_the_dialects(rule: dict[str, Any], folded: bool) -> None:
    settings = {"softcap": rule.get("softcap", 0.0)}
    given = [*tensors(4, 9, 6, 3), SINKS if "sinks" in rule else None]
    got, _ = plain(given, folded, **settings)
    want = torch.ops.moec.attention(*given, scale=0.3, **settings)
    seen = given[3][:, 0].any(-1)  # type: ignore[index]
    assert got.isfinite().all() and error(got[seen], want[seen]) < 1e-5
    other = torch.ops.moec.attention(*given, scale=0.33, **settings)
    assert error(got[seen], other[seen]) > 1e-3, "another scale is seen"


def test_a_folded_bias_spares_reshapes_where_heads_share_keys() -> None:
    given: list[Tensor | None] = [*tensors(4, 9, 6, 3), None]
    assert plain(given, True)[1].count("Reshape") == plain(given, False)[1].count("Reshape") - 2


def test_a_row_of_the_lowest_number_stays_the_mean_of_all_values() -> None:
    """As in eager. ONNX Runtime's standard operator makes zeros of the lowest float32 itself."""
    query, key, value_, *_ = tensors(4, 9, 6, 3)
    mask = torch.zeros(query.shape[0], 1, 4, 9)  # type: ignore[union-attr]
    mask[:, :, 1] = torch.finfo(torch.float32).min
    model = model_of([query, key, value_, mask, None])
    (node,) = attention_nodes(model.graph)
    emit = Emitter(model.graph, node)
    bias = emit_bias(emit, read_attention(node).mask, ir.DataType.FLOAT)  # type: ignore[arg-type]
    y = emit("Attention", *node.inputs[:3], bias, scale=0.3)
    emit.replace(emit("Transpose", y, perm=[0, 2, 1, 3]))
    model.opset_imports[""], model.ir_version = 23, 11
    got = run(model, query=query, key=key, value=value_, mask=mask)
    want = torch.ops.moec.attention(query, key, value_, mask, scale=0.3)
    assert error(got, want) < 1e-5
