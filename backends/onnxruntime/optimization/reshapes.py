"""With few tokens every kernel costs as much as a small product, a reshape too, which copies nothing: those that can be
spared are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from moec.backends.onnx.attention import BY_HEAD
from moec.backends.onnx.emit import take_place
from moec.backends.onnx.tensors import add_initializer
from moec.weights.lazy import from_tensor


def spare_reshapes(model: ir.Model) -> int:
    """Join reshapes that follow each other, and let heads be cut and turned once instead of in each of a
    product's pieces. In place.

    Returns how many nodes there are less.
    """
    graph, before = model.graph, len(model.graph)
    join_reshapes(graph)
    for node in list(graph):
        if _is(node, "Split"):
            _cut_heads(graph, node)
    for node in list(graph):
        if _is(node, "Split"):
            _turn_heads(graph, node)
    return before - len(graph)


def _is(node: ir.Node | None, op: str) -> bool:
    return node is not None and node.op_type == op and node.domain == ""


def join_reshapes(graph: ir.Graph) -> None:
    """Let a reshape of a reshape be one, or none where it leads back, in place."""
    for node in list(graph):
        if _is(node, "Reshape"):
            _join(graph, node)


def _join(graph: ir.Graph, node: ir.Node) -> None:
    """`Reshape(Reshape(x, a), b)` is `Reshape(x, b)` unless b takes sizes over from what it is given, and x where the
    sizes are x's own."""
    source = node.inputs[0]
    first = source.producer() if source is not None else None
    if first is None or not _is(first, "Reshape") or first.graph is not graph:
        return
    whole = first.inputs[0]
    if (
        whole is not None
        and is_known(whole.shape)
        and whole.shape == node.outputs[0].shape
        and not node.outputs[0].is_graph_output()
    ):
        ir.convenience.replace_all_uses_with(node.outputs[0], whole)
        graph.remove(node, safe=True)
    elif stands_alone(node):
        node.replace_input_with(0, whole)
    remove_if_unread(graph, first)


def remove_if_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node of one result that nobody reads any more."""
    if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        graph.remove(node, safe=True)


def is_known(shape: ir.Shape | None) -> bool:
    """Whether every size has a number or a name."""
    return shape is not None and all(isinstance(d, int) or d.value is not None for d in shape)


def stands_alone(reshape: ir.Node) -> bool:
    """Whether no size of the result is copied from the input's: none is written as 0, or 0 means 0."""
    shape = reshape.inputs[1]
    if reshape.attributes.get_int("allowzero", 0) == 1:
        return True
    sizes = numbers_of(shape)
    return sizes is not None and 0 not in sizes


def numbers_of(value: ir.Value | None) -> list[int] | None:
    """What a constant of integers holds; None for anything else."""
    tensor = None if value is None else value.const_value
    return None if tensor is None else [int(n) for n in np.asarray(tensor.numpy()).reshape(-1)]


def _cut_heads(graph: ir.Graph, split: ir.Node) -> None:
    """Pieces `[B, S, N*D]` of one product that one shape `[b, s, -1, D]` makes `[B, S, N, D]`: reshape the product,
    then cut its heads."""
    counts = numbers_of(split.inputs[1]) if len(split.inputs) > 1 else None
    users = [user for piece in split.outputs if (user := _only_reshape(piece)) is not None]
    size = _heads_of(users[0].inputs[1]) if users else None
    if (
        split.attributes.get_int("axis", 0) != -1
        or counts is None
        or len(users) != len(counts)
        or len({u.inputs[1] for u in users}) > 1
    ):
        return
    if size is None or any(n % size for n in counts):
        return
    name = f"{split.name}/heads"
    whole = ir.node("Reshape", [split.inputs[0], users[0].inputs[1]], dict(users[0].attributes), name=name)
    whole.outputs[0].name = name
    heads = add_initializer(
        graph, from_tensor(torch.tensor([n // size for n in counts]), f"{name}/sizes"), f"{name}/sizes"
    )
    cut = ir.node("Split", [whole.outputs[0], heads], {"axis": 2}, num_outputs=len(users), name=f"{name}/split")
    graph.insert_before(_place(graph, split, users), [whole, cut])
    for user, piece in zip(users, cut.outputs, strict=True):
        take_place(piece, user.outputs[0])
        graph.remove(user, safe=True)
    graph.remove(split, safe=True)


def _place(graph: ir.Graph, split: ir.Node, users: list[ir.Node]) -> ir.Node:
    """Before which node the shape that the pieces of a split are given is there, and nobody has read what they become:
    the split itself, or the first that reads a piece."""
    order = {node: n for n, node in enumerate(graph)}
    shape = users[0].inputs[1]
    made = None if shape is None else shape.producer()
    return min(users, key=order.__getitem__) if made is not None and order.get(made, -1) > order[split] else split


def _only_reshape(piece: ir.Value) -> ir.Node | None:
    """The reshape that is all that reads a value."""
    user = only_user(piece)
    return user if _is(user, "Reshape") else None


def _heads_of(shape: ir.Value | None) -> int | None:
    """D of a shape `[b, s, -1, D]`, where b and s may be computed; None for any other shape."""
    node = shape.producer() if shape is not None else None
    parts = (
        [numbers_of(v) for v in node.inputs]
        if node is not None and _is(node, "Concat")
        else [[n] for n in numbers_of(shape) or []]
    )
    return (
        parts[3][0]
        if len(parts) == 4 and parts[2] == [-1] and parts[3] and len(parts[3]) == 1 and parts[3][0] > 0
        else None
    )


def _turn_heads(graph: ir.Graph, split: ir.Node) -> None:
    """Pieces `[B, S, N, D]` of one value that are all transposed by head, some after a norm of each row: transpose the
    value, then cut it."""
    turns = [_turn(piece) for piece in split.outputs]
    if split.attributes.get_int("axis", 0) != 2 or any(turn is None for turn in turns):
        return
    turned = ir.node("Transpose", [split.inputs[0]], {"perm": BY_HEAD}, name=f"{split.name}/by_head")
    turned.outputs[0].name = turned.name
    graph.insert_before(split, turned)
    split.replace_input_with(0, turned.outputs[0])
    split.attributes["axis"] = ir.AttrInt64("axis", 1)
    for piece, turn in zip(split.outputs, turns, strict=True):
        assert turn is not None and turn.inputs[0] is not None
        before = turn.inputs[0]
        for value in {piece, before}:
            value.shape, value.type = turn.outputs[0].shape, value.type or turn.outputs[0].type
        take_place(before, turn.outputs[0])
        graph.remove(turn, safe=True)


def _turn(piece: ir.Value) -> ir.Node | None:
    """The transpose by head that is all that becomes of a piece, perhaps after a norm of its rows."""
    user = only_user(piece)
    if (
        user is not None
        and user.op_type == "SimplifiedLayerNormalization"
        and user.attributes.get_int("axis", -1) == -1
    ):
        user = only_user(user.outputs[0]) if not any(o.uses() for o in user.outputs[1:]) else None
    return user if turns_heads(user) else None


def turns_heads(node: ir.Node | None) -> bool:
    """Whether a node makes `[B, S, N, D]` `[B, N, S, D]`, or the other way round."""
    return node is not None and _is(node, "Transpose") and list(node.attributes.get_ints("perm", [])) == BY_HEAD


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that is all that reads a value, as its first input."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].idx == 0 and not value.is_graph_output() else None
