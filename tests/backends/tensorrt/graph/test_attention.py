"""Attention in standard operators against `moec::attention` itself: grouped heads, a cache, padding, soft caps,
sinks."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.tensors import DTYPES
from moec.backends.tensorrt.graph.attention import lower_attention
from tests.backends.onnxruntime.attention.test_lower import tensors
from tests.backends.onnxruntime.blocks import error, ops, run

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-2}
NAMES = ("query", "key", "value", "mask", "sinks")


def lowered(given: list[Tensor | None], **rule: Any) -> ir.Model:
    """A model of two attention nodes that share their mask, added up."""
    inputs = [
        None if t is None else ir.Value(name=n, type=ir.TensorType(DTYPES[t.dtype]), shape=ir.Shape(t.shape))
        for n, t in zip(NAMES, given, strict=True)
    ]
    nodes = [
        ir.node(
            "Attention", inputs, {"scale": 0.3, "softcap": 0.0, "causal": 1, **rule}, domain="moec", name=f"layer.{n}"
        )
        for n in range(2)
    ]
    for n, node in enumerate(nodes):
        node.outputs[0].name, node.outputs[0].type = f"y{n}", ir.TensorType(DTYPES[given[0].dtype])  # type: ignore[union-attr]
    y = ir.Value(name="y", type=nodes[0].outputs[0].type)
    total = ir.node("Add", [node.outputs[0] for node in nodes], outputs=[y])
    model = ir.Model(
        ir.Graph([v for v in inputs if v is not None], [y], nodes=[*nodes, total], opset_imports={"": 21}, name="test"),
        ir_version=10,
    )
    facts = lower_attention(model)
    assert [f["formulation"] for f in facts] == ["plain", "plain"]
    assert not {n.domain for n in model.graph} - {""} and "Attention" not in ops(model)
    return model


def attention_error(given: list[Tensor | None], want_rule: dict[str, Any] | None = None, **rule: Any) -> float:
    got = run(lowered(given, **rule), **{n: t for n, t in zip(NAMES, given, strict=True) if t is not None}) / 2
    want = torch.ops.moec.attention(*given, **{"scale": 0.3, **(rule if want_rule is None else want_rule)})
    assert got.isfinite().all(), "rows of padding too"
    seen = torch.ones(2, want.shape[1], dtype=torch.bool) if given[3] is None else given[3][:, 0].any(-1)
    return error(got[seen], want[seen])


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("heads", [(6, 3), (4, 4), (4, 1)], ids=str)
@pytest.mark.parametrize(("new", "total"), [(1, 1), (1, 9), (4, 9), (7, 7)])
def test_lengths_and_grouped_heads(new: int, total: int, heads: tuple[int, int], dtype: torch.dtype) -> None:
    assert attention_error([*tensors(new, total, *heads, dtype=dtype), None]) < BOUNDS[dtype]


def test_caps_sinks_values_of_another_size_and_no_mask() -> None:
    given, sinks = list(tensors(5, 8, value=10)), torch.randn(6, generator=torch.Generator().manual_seed(4))
    assert attention_error([*given, sinks]) < 1e-5
    assert attention_error([*given, None], softcap=1.5) < 1e-5
    assert attention_error([*given[:3], None, None]) < 1e-5
    added = torch.where(given[3], 0.0, -1e4) + 0.5 * torch.randn(given[3].shape)
    assert attention_error([*given[:3], added, None]) < 1e-5


def test_a_wrong_rule_is_seen() -> None:
    given = list(tensors(5, 8))
    assert attention_error([*given, None], {"softcap": 0.0}, softcap=1.5) > 1e-3
    assert attention_error([*given, None], {"scale": 0.2}) > 1e-3


def test_half_precision_does_not_overflow_before_it_is_scaled() -> None:
    query, key, value, mask = tensors(3, 3, size=128, dtype=torch.float16)
    given = [query * 60, key * 60, value, mask]
    got = run(lowered([*given, None], scale=1e-3), **dict(zip(NAMES, given, strict=False))) / 2
    wide = torch.ops.moec.attention(*(t.float() for t in given[:3]), mask, scale=1e-3)
    seen = mask[:, 0].any(-1)
    assert (given[0] @ given[1].repeat_interleave(2, 1).mT).isinf().any(), "the product as it stands is too large"
    assert error(got[seen].float(), wide[seen]) < 5e-2
