"""Rotation inside of attention: the kernel that appends to the cache rotates queries and keys as well.

It looks cosines and sines up by a token's place, which in a compact cache, see `compact`, is what the mask's count of
tokens says. So tables by place replace those by token, made by the graph's own formula; and where queries, keys and
values were one product, cut only to be rotated, the kernel takes that product as it is.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.backends.onnx.cache_rows import COMPACT
from moec.backends.onnx.emit import MICROSOFT, Emitter
from moec.program.decoder_signature import MASK

OPERATOR = "GroupQueryAttention"
END = 2**63 - 1
_BY_NUMBER = ("Cast", "Mul", "Div", "Cos", "Sin", "Unsqueeze", "Identity")  # what tables are made with


def rotate_inside(model: ir.Model) -> int:
    """Let attention with a compact cache rotate queries and keys itself, in place; returns in how many layers."""
    graph, tables = model.graph, dict[ir.Value, "ir.Value | None"]()
    if COMPACT not in model.metadata_props:
        return 0
    return sum(_take_in(graph, node, tables) for node in list(graph) if node.op_type == OPERATOR)


def _take_in(graph: ir.Graph, node: ir.Node, tables: dict[ir.Value, ir.Value | None]) -> bool:
    query, key = (_rotary(value) for value in node.inputs[:2])
    past = node.inputs[3]
    if query is None or key is None or query.inputs[1:] != key.inputs[1:] or past is None or past.shape is None:
        return False
    places = [_by_place(graph, node, table, tables) for table in query.inputs[2:4]]
    if None in places or any(_width(table) * 2 != past.shape[3] for table in query.inputs[2:4]) or past.shape[3] % 16:
        return False
    tokens = _packed([query.inputs[0], key.inputs[0], node.inputs[2]])
    rest = list(node.inputs[3:7]) + places + list(node.inputs[9:])
    new = ir.node(OPERATOR, [*tokens, *rest], {**node.attributes}, domain=MICROSOFT, num_outputs=3, name=node.name)
    new.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
    graph.insert_before(node, new)
    for old, made in zip(node.outputs, new.outputs, strict=True):
        made.name, made.type, made.shape, old.name = old.name, old.type, old.shape, None
    ir.convenience.replace_all_uses_with(node.outputs, new.outputs, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True


def _rotary(value: ir.Value | None) -> ir.Node | None:
    """What rotates `[B, S, N * D]`, by halves."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "RotaryEmbedding" or node.attributes.get_int("interleaved"):
        return None
    return node if value.shape is not None and len(value.shape) == 3 else None  # type: ignore[union-attr]


def _packed(rows: list[ir.Value | None]) -> list[ir.Value | None]:
    """The one value that queries, keys and values are cut from, and nothing else; or these themselves."""
    cut = rows[0].producer() if rows[0] is not None else None
    whole = cut is not None and cut.op_type == "Split" and list(cut.outputs) == rows
    return [cut.inputs[0], None, None] if cut is not None and whole else rows


def _width(table: ir.Value | None) -> int:
    """The width of a table by token, as the shape says that it is reshaped to."""
    made = None if table is None else table.producer()
    sizes = _constant(made.inputs[1]) if made is not None and made.op_type == "Reshape" else None
    return sizes[1] if sizes is not None and len(sizes) == 2 else 0


def _by_place(
    graph: ir.Graph, node: ir.Node, table: ir.Value | None, tables: dict[ir.Value, ir.Value | None]
) -> ir.Value | None:
    """A table `[T, width]` by place, of as many places as the mask has, for one by token; None where its making says
    not how."""
    if table is None or not _width(table):
        return None
    if table not in tables:
        steps = _making(table)
        tables[table] = None if steps is None else _made_again(graph, table, steps)
    return tables[table]


def _making(table: ir.Value) -> list[ir.Node] | None:
    """The nodes from positions, which count the mask's tokens, to a table; None for others."""
    steps: list[ir.Node] = []
    value = table
    while (node := value.producer()) is not None:
        varying = [v for v in node.inputs if v is not None and _constant(v) is None and not v.is_initializer()]
        if (
            node.op_type not in (*_BY_NUMBER, "Reshape")
            or len(varying) != 1
            or (node.op_type == "Reshape") != (not steps)
        ):
            return steps if _counts_tokens(value) else None
        steps.insert(0, node)
        value = varying[0]
    return None


def _counts_tokens(value: ir.Value) -> bool:
    """Whether a value is `max(cumsum(mask) - 1, 0)` of the call's tokens."""
    chain = []
    for name in ("Slice", "Clip", "Sub", "CumSum", "Concat"):
        node = value.producer()
        if node is None or node.op_type != name or node.inputs[0] is None:
            return False
        chain.append(node)
        value = node.inputs[0]
    cut, clip, less, count, _ = chain
    back = cut.inputs[1].producer() if cut.inputs[1] is not None else None
    back = back.inputs[0].producer() if back is not None and back.op_type == "Reshape" else back  # type: ignore[union-attr]
    last = back is not None and back.op_type == "Neg" and _constant(cut.inputs[2]) == [END]
    plain = count.attributes.get_int("exclusive", 0) == 0 == count.attributes.get_int("reverse", 0)
    return last and plain and _constant(less.inputs[1]) == [1] and _constant(clip.inputs[1]) == [0]


def _made_again(graph: ir.Graph, table: ir.Value, steps: list[ir.Node]) -> ir.Value:
    made = table.producer()
    assert made is not None
    emit = Emitter(graph, made)
    mask = next(value for value in graph.inputs if value.name == MASK)
    total = emit("Squeeze", emit("Shape", mask, start=1, end=2))
    count = emit("Range", emit.constant(0), total, emit.constant(1))
    old, new = _start(steps[0]), emit("Unsqueeze", count, emit.constant([0]))
    for node in steps:
        inputs = [new if v is old else v for v in node.inputs]
        old = node.outputs[0]
        new = emit(node.op_type, *inputs, **{name: a.value for name, a in node.attributes.items()})
    return new


def _start(node: ir.Node) -> ir.Value:
    return next(v for v in node.inputs if v is not None and _constant(v) is None and not v.is_initializer())


def _constant(value: ir.Value | None) -> list[int] | None:
    """The numbers of a small constant of integers."""
    if value is None:
        return None
    made = value.producer()
    tensor = value.const_value
    if tensor is None and made is not None and made.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > 8 or tensor.dtype != ir.DataType.INT64:
        return None
    return [int(n) for n in tensor.numpy().reshape(-1)]
