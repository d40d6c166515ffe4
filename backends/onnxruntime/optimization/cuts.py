"""A product whose columns stand head by head, each head's pieces of several kinds side by side, is cut once instead of
head by head: its weight's columns are put kind by kind, where they cost nothing."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir
import torch
from torch import Tensor

from moec.backends.onnx.emit import take_place
from moec.backends.onnx.tensors import WeightTensor, add_initializer
from moec.backends.onnxruntime.optimization.reshapes import is_known, join_reshapes, numbers_of, stands_alone
from moec.weights.lazy import Weight, from_tensor, rowwise


def cut_by_kind(model: ir.Model) -> int:
    """`Split(Reshape(x @ W, [..., heads, D]))`, whose pieces `[..., heads, d]` are only reshaped, becomes
    `Split(x @ W')` with pieces `[..., heads * d]`, in place; pieces that are put together again in their order are one
    piece. W' has W's columns in another order and is as lazy.

    Qwen3-Next's delta net has its queries, keys, values and gates so: eleven kernels of some fifty in a layer, and with
    many tokens five copies of what the product gives.

    Returns how many products were changed.
    """
    graph = model.graph
    join_reshapes(graph)
    found = [split for split in list(graph) if _is(split, "Split") and _cut(graph, split)]
    return len(found)


def join_cuts(model: ir.Model) -> int:
    """A `Split` of another's piece along the last axis is that one's, in place. Returns how many went."""
    graph = model.graph
    return sum(_join(graph, split) for split in list(graph) if _is(split, "Split"))


def _is(node: ir.Node | None, op: str) -> bool:
    return node is not None and node.op_type == op and node.domain == ""


def _sizes(split: ir.Node) -> list[int] | None:
    """The sizes of a split along the last axis; None for any other."""
    shape = split.inputs[0].shape if split.inputs[0] is not None else None
    last = {-1} if shape is None else {-1, len(shape) - 1}
    return (
        numbers_of(split.inputs[1]) if len(split.inputs) > 1 and split.attributes.get_int("axis", 0) in last else None
    )


def _only(node: ir.Node | None, op: str, graph: ir.Graph) -> bool:
    """Whether a node is one of the main graph whose result is read once."""
    return node is not None and _is(node, op) and node.graph is graph and _is_read_once(node.outputs[0])


def _is_read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _cut(graph: ir.Graph, split: ir.Node) -> bool:
    sizes, heads = _sizes(split), split.inputs[0]
    reshape = None if heads is None else heads.producer()
    product = reshape.inputs[0].producer() if _only(reshape, "Reshape", graph) else None  # type: ignore[union-attr]
    if sizes is None or heads is None or product is None or not _only(product, "MatMul", graph):
        return False
    weight, whole = product.inputs[1], product.outputs[0]
    tensor = None if weight is None else weight.const_value
    if not isinstance(tensor, WeightTensor) or len(tensor.shape) != 2 or not _is_read_once(weight):  # type: ignore[arg-type]
        return False
    if heads.shape is None or not is_known(whole.shape) or list(heads.shape[:-2]) != list(whole.shape[:-1]):  # type: ignore[index]
        return False
    count, width = heads.shape[-2], heads.shape[-1]
    readers = [use.node for piece in split.outputs for use in piece.uses()]
    if not isinstance(count, int) or width != sum(sizes) or not all(_is(r, "Reshape") for r in readers):
        return False
    if any(piece.is_graph_output() for piece in split.outputs) or not all(map(stands_alone, readers)):
        return False
    by_kind = rowwise("columns by kind", partial(_by_kind, heads=count, sizes=sizes), tensor.weight)
    product.replace_input_with(1, add_initializer(graph, by_kind, f"{weight.name}/by_kind"))  # type: ignore[union-attr]
    graph.initializers.pop(str(weight.name))  # type: ignore[union-attr]
    _replace(graph, split, whole, [count * size for size in sizes])
    return True


def _by_kind(columns: Tensor, heads: int, sizes: list[int]) -> Tensor:
    """`[in, heads * D]` with the columns of one kind of all heads side by side."""
    by_head = columns.reshape(len(columns), heads, sum(sizes))
    return torch.cat([kind.flatten(1) for kind in torch.split(by_head, sizes, 2)], 1)


def _replace(graph: ir.Graph, split: ir.Node, whole: ir.Value, sizes: list[int]) -> None:
    """Cut `whole` into pieces of these sizes instead, for what reshapes the old ones."""
    for old, size in zip(split.outputs, sizes, strict=True):
        old.shape = ir.Shape([*whole.shape[:-1], size])  # type: ignore[index]
        for reader in [use.node for use in old.uses()]:
            if list(reader.outputs[0].shape or []) == list(old.shape) and not reader.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(reader.outputs[0], old)
                graph.remove(reader, safe=True)
    reshape = split.inputs[0].producer()  # type: ignore[union-attr]
    groups = _together(split)
    joined = [sum(sizes[n] for n in group) for group, _ in groups]
    counts = _constant(graph, joined, f"{split.name}/by_kind")
    cut = ir.node("Split", [whole, counts], {"axis": -1}, num_outputs=len(groups), name=f"{split.name}/by_kind")
    graph.insert_before(split, cut)
    for (group, concat), piece in zip(groups, cut.outputs, strict=True):
        take_place(piece, concat.outputs[0] if concat is not None else split.outputs[group[0]])
        if concat is not None:
            graph.remove(concat, safe=True)
    graph.remove([split, reshape], safe=True)  # type: ignore[list-item]


def _together(split: ir.Node) -> list[tuple[list[int], ir.Node | None]]:
    """The pieces in order, those that one `Concat` along the last axis joins again, and nobody else reads, as one."""
    groups: list[tuple[list[int], ir.Node | None]] = []
    while (start := sum(len(group) for group, _ in groups)) < len(split.outputs):
        uses = list(split.outputs[start].uses())
        concat = uses[0].node if len(uses) == 1 and _is(uses[0].node, "Concat") else None
        size = len(concat.inputs) if concat is not None else 0
        rank = len(split.outputs[start].shape or [])
        if (
            concat is not None
            and concat.attributes.get_int("axis", 0) in (-1, rank - 1)
            and list(concat.inputs) == list(split.outputs[start : start + size])
            and all(_is_read_once(piece) for piece in split.outputs[start : start + size])
        ):
            groups.append((list(range(start, start + size)), concat))
        else:
            groups.append(([start], None))
    return groups


def _join(graph: ir.Graph, split: ir.Node) -> bool:
    piece, sizes = split.inputs[0], _sizes(split)
    first = None if piece is None else piece.producer()
    if piece is None or sizes is None or first is None or not _is(first, "Split") or first.graph is not graph:
        return False
    outer = _sizes(first)
    if outer is None or not _is_read_once(piece):
        return False
    at = list(first.outputs).index(piece)
    counts = _constant(graph, [*outer[:at], *sizes, *outer[at + 1 :]], f"{first.name}/joined")
    outputs = [*first.outputs[:at], *split.outputs, *first.outputs[at + 1 :]]
    cut = ir.node("Split", [first.inputs[0], counts], {"axis": -1}, num_outputs=len(outputs), name=first.name)
    graph.insert_before(first, cut)
    for new, old in zip(cut.outputs, outputs, strict=True):
        take_place(new, old)
    graph.remove([split, first], safe=True)
    return True


def _constant(graph: ir.Graph, numbers: list[int], name: str) -> ir.Value:
    weight: Weight = from_tensor(torch.tensor(numbers), name)
    return add_initializer(graph, weight, name)
