"""Every form of attention against `moec::attention` itself, and which of them a node gets."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.tensors import DTYPES
from moec.backends.onnxruntime.attention.lower import GROUPED, LONG, PROMPT, STANDARD_OPSET, lower_attention
from tests.backends.onnxruntime.blocks import error, ops, run

LIMIT = 1e-5
HALF = {torch.float32: LIMIT, torch.float16: 2e-2}
ALL, UNGROUPED = "plain, prompts standard, long prompts grouped", "plain, prompts standard"
FORM = {torch.float32: ALL, torch.float16: "plain, long prompts grouped"}
LENGTHS = [
    (1, 1),
    (1, 9),
    (4, 9),
    (7, 7),
    (PROMPT, PROMPT),
    (PROMPT, PROMPT + 5),
    (GROUPED + 3, GROUPED + 3),
    (LONG + 3, LONG + 3),
    (LONG, LONG + 5),
]


def tensors(
    new: int,
    total: int,
    heads: int = 6,
    groups: int = 3,
    size: int = 16,
    value: int = 16,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(shape, generator=generator).to(dtype)  # noqa: E731
    mask = (torch.arange(total)[None] <= torch.arange(new)[:, None] + total - new).expand(2, 1, new, total).clone()
    mask[1, :, :, 0] = False  # padding on the left
    return make(2, heads, new, size), make(2, groups, total, size), make(2, groups, total, value), mask


def lowered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    sinks: Tensor | None = None,
    *,
    provider: str = "cpu",
    cached: bool = True,
    **rule: Any,
) -> tuple[Any, dict]:
    """A model of one attention node, lengths dynamic, and the record of its lowering; without a cache all lengths have
    one name."""
    given = {"query": query, "key": key, "value": value, "mask": mask, **({} if sinks is None else {"sinks": sinks})}
    dynamic = {"query": 2, "key": 2, "value": 2, "mask": (2, 3)}
    inputs = []
    for name, t in given.items():
        axes = dynamic.get(name, ())
        shape = [
            (f"{name}_{i}" if cached else "length") if i in (axes if isinstance(axes, tuple) else (axes,)) else int(d)
            for i, d in enumerate(t.shape)
        ]
        inputs.append(ir.Value(name=name, type=ir.TensorType(DTYPES[t.dtype]), shape=ir.Shape(shape)))
    y = ir.Value(
        name="y", type=ir.TensorType(DTYPES[query.dtype]), shape=ir.Shape([2, "s", query.shape[1], value.shape[3]])
    )
    rule = {"scale": 0.3, "softcap": 0.0, "causal": 1, **rule}
    node = ir.node(
        "Attention", [*inputs, *([None] if sinks is None else [])], rule, domain="moec", outputs=[y], name="attention"
    )
    graph = ir.Graph(inputs, [y], nodes=[node], opset_imports={"": 20, "moec": 1}, name="test")
    model = ir.Model(graph, ir_version=10)
    (fact,) = lower_attention(model, provider)
    return model, fact


def check(*args: Any, formulation: str = ALL, **rule: Any) -> float:
    """The error of the lowered node; args as those of the operator."""
    model, fact = lowered(*args, **rule)
    assert fact["formulation"] == formulation and fact["why"]
    names = ("query", "key", "value", "mask", "sinks")
    got = run(model, **{n: t for n, t in zip(names, args, strict=False) if t is not None})
    rule = {"scale": 0.3, "softcap": 0.0, **{k: v for k, v in rule.items() if k not in ("causal", "cached")}}
    assert got.isfinite().all(), "rows of padding too"
    seen = args[3][:, 0].any(-1)  # a row that sees nothing may say anything
    return error(got[seen], torch.ops.moec.attention(*args, **rule)[seen])


@pytest.mark.parametrize(("new", "total"), LENGTHS, ids=str)
@pytest.mark.parametrize("heads", [(6, 3), (4, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("dtype", list(HALF), ids=str)
def test_every_length(new: int, total: int, heads: tuple[int, int], dtype: torch.dtype) -> None:
    assert check(*tensors(new, total, *heads, dtype=dtype), formulation=FORM[dtype]) < HALF[dtype]


@pytest.mark.parametrize("heads", [(6, 3), (4, 4)], ids=str)
def test_without_a_cache_a_long_prompt_is_grouped(heads: tuple[int, int]) -> None:
    assert check(*tensors(LONG, LONG, *heads), cached=False, formulation="standard, long prompts grouped") < LIMIT


@pytest.mark.parametrize("new", [5, GROUPED])
@pytest.mark.parametrize("heads", [(6, 3), (4, 4)], ids=str)
def test_without_a_cache_the_standard_operator_stands_alone(new: int, heads: tuple[int, int]) -> None:
    query, key, value, mask = tensors(new, new, *heads)
    assert check(query, key, value, mask, cached=False, formulation="standard, long prompts grouped") < LIMIT
    both = torch.ones_like(mask)
    both[0, :, :, -1] = False
    assert check(query, key, value, both, cached=False, causal=0, formulation="standard") < LIMIT, (
        "a token may look at later ones"
    )
    model, _ = lowered(query, key, value, both, cached=False, causal=0)
    got = run(model, query=query, key=key, value=value, mask=both)
    assert error(got, torch.ops.moec.attention(query, key, value, mask, scale=0.3)) > 10 * LIMIT, "the mask matters"


def test_the_opset_is_raised_for_the_standard_operator_only() -> None:
    model, _ = lowered(*tensors(4, 9))
    assert model.opset_imports[""] == STANDARD_OPSET
    model, _ = lowered(*tensors(4, 9), softcap=1.5)
    assert model.opset_imports[""] < STANDARD_OPSET


@pytest.mark.parametrize("new", [5, PROMPT, GROUPED])
def test_softcap(new: int) -> None:
    given, form = tensors(new, new), "plain, long prompts grouped"
    assert check(*given, softcap=1.5, formulation=form) < LIMIT
    model, _ = lowered(*given, softcap=1.5)
    got = run(model, **dict(zip(("query", "key", "value", "mask"), given, strict=True)))
    assert error(got, torch.ops.moec.attention(*given, scale=0.3)) > 10 * LIMIT, "the cap matters"


@pytest.mark.parametrize("new", [5, PROMPT, LONG])
def test_a_window_and_padding_come_from_the_mask(new: int) -> None:
    query, key, value, mask = tensors(new, new)
    near = torch.arange(new)[None] > torch.arange(new)[:, None] - 3
    assert check(query, key, value, mask & near) < LIMIT
    model, _ = lowered(query, key, value, mask & near)
    got = run(model, query=query, key=key, value=value, mask=mask & near)
    assert error(got, torch.ops.moec.attention(query, key, value, mask, scale=0.3)) > 10 * LIMIT, "the window matters"


@pytest.mark.parametrize("new", [5, PROMPT, GROUPED])
def test_forms_that_not_every_operator_has(new: int) -> None:
    query, key, value, mask = tensors(new, new)
    assert check(query, key, value, mask, torch.linspace(-1, 1, 6), formulation="plain") < LIMIT
    assert check(*tensors(new, new, value=8), formulation=UNGROUPED) < LIMIT, "values of another size than keys"
    assert check(*tensors(new, new, size=12, value=12), formulation=UNGROUPED) < LIMIT, "no multiple of 8"
    both = torch.ones_like(mask)
    assert check(query, key, value, both, causal=0, formulation=UNGROUPED) < LIMIT, "a token may look at later ones"


def test_a_false_promise_of_causality_is_seen_in_long_prompts_only() -> None:
    query, key, value, mask = tensors(LONG, LONG)
    assert check(query, key, value, torch.ones_like(mask)) > 10 * LIMIT
    for new in (5, GROUPED):
        assert check(*tensors(new, new)[:3], torch.ones(2, 1, new, new, dtype=torch.bool)) < LIMIT


def test_layers_share_the_bias_of_their_mask_and_cuda_wants_half_precision() -> None:
    given = tensors(4, 9)
    model, fact = lowered(*given, provider="cuda")
    assert fact["formulation"] == "plain" and "half" in fact["why"] and "GroupQueryAttention" not in ops(model)
    half = tensors(4, 9, dtype=torch.float16)
    assert lowered(*half, provider="cuda")[1]["formulation"] == "plain, long prompts grouped"
