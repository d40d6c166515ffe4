"""Rotary embeddings become ONNX Runtime's own operator, whatever way a model has of scaling its angles."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

from moec.backends.onnx.emit import MICROSOFT, take_place
from moec.backends.onnx.rooted_rules import rooted
from moec.backends.onnxruntime.optimization.reshapes import numbers_of, only_user, remove_if_unread, turns_heads


def fuse_rotary(model: ir.Model) -> int:
    """Replace `x * cos + (-x2, x1) * sin`, and the same written by halves, by `RotaryEmbedding`, in place; returns how
    many there were.

    The operator wants tables of cosines and sines by position. The graph computes them for its own tokens only, so each
    token gets a position of its own in a table that is as long as the batch has tokens: right for every scaling that
    changes with the length.
    """
    count: int = _rules().apply_to_model(model)
    if count:
        model.opset_imports.setdefault(MICROSOFT, 1)
    return count


def rotate_by_token(model: ir.Model) -> int:
    """Rotate `[B, S, N * D]` where heads were only turned to `[B, N, S, D]` for the rotation and turned back, in place;
    returns how often."""
    return sum(_turn_back(model.graph, node) for node in list(model.graph) if node.op_type == "RotaryEmbedding")


def _turned(rotary: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node] | None:
    """What turns heads before the rotation, what turns them back, and what makes rows by token of that."""
    before, after = None if rotary.inputs[0] is None else rotary.inputs[0].producer(), only_user(rotary.outputs[0])
    last = only_user(after.outputs[0]) if after is not None and turns_heads(after) else None
    flat = last is not None and last.op_type == "Reshape" and numbers_of(last.inputs[1]) == [0, 0, -1]
    return (
        (before, after, last)
        if before is not None and after is not None and last is not None and flat and turns_heads(before)
        else None
    )


def _turn_back(graph: ir.Graph, rotary: ir.Node) -> bool:
    turned = _turned(rotary)
    if turned is None:
        return False
    before, after, last = turned
    rows = ir.node("Reshape", [before.inputs[0], last.inputs[1]], name=f"{rotary.name}/rows")
    rows.outputs[0].name, rows.outputs[0].shape, rows.outputs[0].type = (
        rows.name,
        last.outputs[0].shape,
        last.outputs[0].type,
    )
    y = ir.node(
        "RotaryEmbedding",
        [rows.outputs[0], *rotary.inputs[1:]],
        {**rotary.attributes},
        domain=MICROSOFT,
        name=rotary.name,
    )
    graph.insert_before(last, [rows, y])
    take_place(y.outputs[0], last.outputs[0])
    for node in (last, after, rotary):
        graph.remove(node, safe=True)
    remove_if_unread(graph, before)
    return True


@cache
def _rules() -> Any:
    from onnxscript.rewriter import pattern

    rules = (
        (_by_hand, _at_once, _is_rotary),
        (_by_halves, _halves_at_once, _are_halves),
        (_by_pairs, _pairs_at_once, _are_pairs),
    )
    return pattern.RewriteRuleSet(rooted(pattern.RewriteRule(*rule) for rule in rules))


def _by_hand(
    op: Any,
    x: Any,
    cos: Any,
    sin: Any,
    low: Any,
    half: Any,
    middle: Any,
    high: Any,
    axis: Any,
    step: Any,
    axis_2: Any,
    step_2: Any,
) -> Any:
    turned = op.Concat(op.Neg(op.Slice(x, middle, high, axis, step)), op.Slice(x, low, half, axis_2, step_2), axis=-1)
    return op.Add(op.Mul(x, cos), op.Mul(turned, sin))


def _by_halves(op: Any, x: Any, cos: Any, sin: Any) -> Any:
    """As gpt-oss has it, with tables as wide as a half."""
    first, second = op.Split(x, axis=3, num_outputs=2, _outputs=2)
    return op.Concat(
        op.Sub(op.Mul(first, cos), op.Mul(second, sin)), op.Add(op.Mul(second, cos), op.Mul(first, sin)), axis=-1
    )


def _by_pairs(
    op: Any, x: Any, cos: Any, sin: Any, zero: Any, one: Any, end: Any, end_2: Any, axis: Any, axis_2: Any, two: Any,
    two_2: Any,
) -> Any:  # fmt: skip
    """As DeepSeek has it: of each pair of neighbours, all first ones and then all second ones."""
    first, second = op.Slice(x, zero, end, axis, two), op.Slice(x, one, end_2, axis_2, two_2)
    return op.Concat(
        op.Sub(op.Mul(first, cos), op.Mul(second, sin)), op.Add(op.Mul(second, cos), op.Mul(first, sin)), axis=-1
    )


def _are_pairs(context: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, **cuts: ir.Value) -> bool:
    """Whether every second number of x is taken from the first and from the second on."""
    named = {name: _number(value) for name, value in cuts.items()}
    whole = x.shape is not None and len(x.shape) == 4 and isinstance(x.shape[3], int)
    last = all(named[name] in (3, -1) for name in ("axis", "axis_2")) and named["two"] == named["two_2"] == 2
    ends = whole and all((named[name] or 0) >= x.shape[3] for name in ("end", "end_2"))  # type: ignore[index, operator]
    return last and ends and (named["zero"], named["one"]) == (0, 1) and _are_halves(context, x, cos, sin)


def _pairs_at_once(op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, **_: Any) -> Any:
    """Neighbours are put apart first: the operator has halves, and what it is given by pairs it gives by pairs."""
    assert cos.shape is not None
    width = cos.shape[3]
    paired = op.Reshape(x, op.Constant(value_ints=[0, 0, 0, width, 2]), allowzero=0)
    rows = op.Reshape(op.Transpose(paired, perm=[0, 1, 2, 4, 3]), op.Constant(value_ints=[0, 0, 0, 2 * width]))
    return _operator(op, rows, cos, [_producer(table).inputs[0] for table in (cos, sin)], width)


def _are_halves(context: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, **values: ir.Value) -> bool:
    """Whether x is `[B, N, S, D]` and the tables are `[B, 1, S, D / 2]`."""
    size = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
    return isinstance(size, int) and size % 2 == 0 and all(_is_unsqueezed(v, size // 2) for v in (cos, sin))


def _is_rotary(
    context: Any,
    x: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    low: ir.Value,
    half: ir.Value,
    middle: ir.Value,
    **values: ir.Value,
) -> bool:
    """Whether x is `[B, N, S, D]`, the tables `[B, 1, S, D]`, and the halves halves."""
    size = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
    if not isinstance(size, int) or size % 2 or not all(_is_table(v, size) for v in (cos, sin)):
        return False
    last = all(_number(values[name]) in (3, -1) for name in ("axis", "axis_2")) and all(
        _number(values[name]) == 1 for name in ("step", "step_2")
    )
    return (
        last
        and _number(low) == 0
        and _number(half) == _number(middle) == size // 2
        and (_number(values["high"]) or 0) >= size
    )


def _is_table(value: ir.Value, size: int) -> bool:
    """Whether a value is `[B, 1, S, size]` and the second half of its rows their first half once more, as its making
    shows."""
    table = _producer(value).inputs[0] if _is_unsqueezed(value, size) else None
    return table is not None and _repeats(table)


def _is_unsqueezed(value: ir.Value, size: int) -> bool:
    """Whether a value is `[B, 1, S, size]`, made of `[B, S, size]`."""
    made = value.producer()
    unsqueezed = made is not None and made.op_type == "Unsqueeze" and _number(made.inputs[1]) == 1
    return unsqueezed and value.shape is not None and len(value.shape) == 4 and value.shape[3] == size


def _number(value: ir.Value | None) -> int | None:
    constant = value.const_value if value is not None else None
    return int(constant.numpy().item()) if constant is not None and constant.size == 1 else None


def _repeats(table: ir.Value) -> bool:
    """Whether the second half of a table's rows is their first half once more, as its making shows."""
    node = table.producer()
    while node is not None and node.op_type in ("Cast", "Cos", "Sin", "Mul"):
        parts = _varying(node)
        if len(parts) != 1:
            return False
        node = parts[0].producer()
    return node is not None and node.op_type == "Concat" and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]


def _varying(node: ir.Node) -> list[ir.Value]:
    """A node's inputs that are more than one constant number."""
    return [v for v in node.inputs if v is not None and (v.const_value is None or v.const_value.size != 1)]


def _half(op: Any, table: Any) -> Any:
    """The first half of a table's rows `[B, S, size / 2]`, made of what its making repeats: nothing is computed twice
    to be cut away."""
    node = table.producer()
    if node.op_type == "Concat":
        return node.inputs[0]
    (table,) = _varying(node)  # `_repeats` has seen that it is one
    inputs = [_half(op, v) if v is table else v for v in node.inputs]
    return getattr(op, node.op_type)(*inputs, **{a.name: a for a in node.attributes.values()})


def _at_once(op: Any, x: Any, cos: ir.Value, sin: ir.Value, half: ir.Value, **_: Any) -> Any:
    return _operator(op, x, cos, [_half(op, _producer(table).inputs[0]) for table in (cos, sin)], _number(half))


def _halves_at_once(op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value) -> Any:
    assert cos.shape is not None
    return _operator(op, x, cos, [_producer(table).inputs[0] for table in (cos, sin)], cos.shape[3])


def _operator(op: Any, x: Any, like: ir.Value, halves: list[Any], width: Any) -> Any:
    """The operator, given halves of tables `[B, S, width]`; `like` says whether one table is for all texts."""
    tables = [op.Reshape(h, op.Constant(value_ints=[-1, width])) for h in halves]
    if like.shape is not None and like.shape[0] == 1:  # the operator counts from a first position
        return op.RotaryEmbedding(x, op.Constant(value_ints=[0]), *tables, _domain=MICROSOFT)
    count = op.Squeeze(op.Shape(tables[0], end=1))
    places = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
    return op.RotaryEmbedding(x, op.Reshape(places, op.Shape(halves[0], end=2)), *tables, _domain=MICROSOFT)


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None, "`_is_table` has seen it"
    return node
