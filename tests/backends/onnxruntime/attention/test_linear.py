"""ONNX Runtime's LinearAttention against `moec::linear_attention`, in every form that the dialect has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moec.backends.onnx.opaque_nodes import translations
from moec.backends.onnx.tensors import DTYPES
from moec.backends.onnxruntime.attention.linear import lower_linear_attention
from tests.backends.onnxruntime.blocks import error, session

Lowering = Callable[[ir.Model], list[dict[str, str]]]
LIMIT, HEADS = 1e-5, [(4, 4), (2, 4), (1, 3)]
D, V = 8, 6
RULES = {"linear": (), "gated": ("decay",), "delta": ("rate",), "gated_delta": ("decay", "rate")}


def given(length: int, rule: str, heads: tuple[int, int], by_channel: bool = False, batch: int = 2) -> dict[str, Any]:
    generator, (groups, every) = torch.Generator().manual_seed(length), heads
    make = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    pair = (make(batch, length, groups, D) for _ in range(2))
    query, key = (x / x.norm(dim=-1, keepdim=True) for x in pair)
    decay = -make(batch, length, every, *([D] if by_channel else [])).abs()
    found = {"query": query, "key": key, "value": make(batch, length, every, V), "state": make(batch, every, D, V)}
    more = {"decay": decay, "rate": make(batch, length, every).sigmoid()}
    return found | {name: more[name] if name in RULES[rule] else None for name in more}


def lowered(
    tensors: dict[str, Any], lower: Lowering = lower_linear_attention, **rule: float
) -> tuple[ir.Model, dict[str, str]]:
    inputs = {name: None if t is None else _value(name, t) for name, t in tensors.items()}
    y, present = _value("y", tensors["value"]), _value("present", tensors["state"])
    node = ir.node("LinearAttention", list(inputs.values()), rule, domain="moec", outputs=[y, present], name="layer")
    graph = ir.Graph([v for v in inputs.values() if v], [y, present], nodes=[node], opset_imports={"": 20, "moec": 1})
    model = ir.Model(graph, ir_version=10)
    (fact,) = lower(model)
    return model, fact


def _value(name: str, t: Tensor) -> ir.Value:
    shape = ["batch", *t.shape[1:]] if name in ("state", "present") else ["batch", "tokens", *t.shape[2:]]
    return ir.Value(name=name, type=ir.TensorType(DTYPES[t.dtype]), shape=ir.Shape(shape))


def run(model: ir.Model, tensors: dict[str, Any]) -> list[Tensor]:
    feeds = {name: t.numpy() for name, t in tensors.items() if t is not None}
    return [torch.from_numpy(y) for y in session(model).run(["y", "present"], feeds)]


def difference(got: list[Tensor], tensors: dict[str, Any], **rule: float) -> float:
    want = torch.ops.moec.linear_attention(*tensors.values(), **rule)
    return max(error(a, b) for a, b in zip(got, want, strict=True))


def check_lengths(lower: Lowering, rule: str, heads: tuple[int, int], lengths: Sequence[int]) -> Iterator[Any]:
    """Compare at each length, decays by head and by channel; yields each model that was made, and its fact."""
    for by_channel in [False, True] if "decay" in RULES[rule] else [False]:
        model, fact = lowered(given(5, rule, heads, by_channel), lower, scale=0.3, epsilon=0.0)
        yield model, fact
        for length in lengths:
            tensors = given(length, rule, heads, by_channel, batch=1 + length % 3)
            got = run(model, tensors)
            assert difference(got, tensors, scale=0.3, epsilon=0.0) < LIMIT
            assert difference(got, tensors, scale=0.31, epsilon=0.0) > 100 * LIMIT, "the scale matters"
            assert difference(got, {**tensors, "state": tensors["state"] * 1.1}, scale=0.3) > 100 * LIMIT


def check_units(lower: Lowering) -> None:
    """Queries and keys are brought to one length."""
    tensors = given(7, "gated_delta", (2, 4))
    tensors |= {"query": tensors["query"] * 7, "key": tensors["key"] * 0.01}
    tensors["key"][1, :3] = 0.0  # padding
    got = run(lowered(tensors, lower, scale=0.3, epsilon=1e-6)[0], tensors)
    assert difference(got, tensors, scale=0.3, epsilon=1e-6) < LIMIT
    assert difference(got, tensors, scale=0.3, epsilon=1e-4) > 100 * LIMIT
    assert difference(got, tensors, scale=0.3) > 100 * LIMIT


def check_half_precision(lower: Lowering) -> None:
    """What is half is computed in float32."""
    half = {n: t.half() if n in ("query", "key", "value") else t for n, t in given(70, "gated_delta", (2, 4)).items()}
    got = run(lowered(half, lower, scale=0.3, epsilon=1e-6)[0], half)
    assert difference(got, half, scale=0.3, epsilon=1e-6) < 1e-3, "one rounding"


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_every_length_rule_and_number_of_heads(rule: str, heads: tuple[int, int]) -> None:
    for _, fact in check_lengths(lower_linear_attention, rule, heads, (1, 2, 15, 16, 63, 64, 65, 130)):
        assert fact["formulation"] == rule


def test_queries_and_keys_are_brought_to_one_length() -> None:
    check_units(lower_linear_attention)


def test_half_precision_is_computed_in_float32() -> None:
    check_half_precision(lower_linear_attention)


def test_an_exported_program_has_the_node() -> None:
    class Layer(torch.nn.Module):
        def forward(self, query: Tensor, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ops.moec.linear_attention(query, query, value, state, None, None, scale=0.3)  # type: ignore[no-any-return]

    tensors = given(5, "linear", (2, 4))
    sample, tokens = {n: tensors[n] for n in ("query", "value", "state")}, torch.export.Dim("tokens")
    sizes = {"query": {1: tokens}, "value": {1: tokens}, "state": None}
    exported = torch.export.export(Layer(), (), sample, dynamic_shapes=sizes)
    model = torch.onnx.export(exported, optimize=False, custom_translation_table=translations(), verbose=False).model  # type: ignore[union-attr]
    (fact,) = lower_linear_attention(model)
    assert fact["formulation"] == "linear"
    longer = given(11, "linear", (2, 4))
    feeds = {n: longer[n].numpy() for n in sample}
    got = [torch.from_numpy(y) for y in session(model).run(None, feeds)]
    assert difference(got, {**longer, "key": longer["query"]}, scale=0.3) < LIMIT
