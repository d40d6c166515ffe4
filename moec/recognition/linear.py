"""Linear layers of a captured graph, in whatever form they were written: `linear`, `Conv1D`'s addmm, matmul with a
transposed weight."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from moec.program.program import Program
from moec.weights import lazy as weights
from moec.weights.lazy import Weight

aten = torch.ops.aten
_TRANSPOSES = (aten.t.default, aten.transpose.int, aten.permute.default, aten.numpy_T.default, aten.mT.default)
_VIEWS = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.squeeze.default, aten.squeeze.dim, aten.unsqueeze.default,
)  # fmt: skip
_CASTS = (
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten._to_copy.default,
    aten.type_as.default,
    aten.to.other,
)
_COPIES = (aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default)


@dataclass(frozen=True)
class Linear:
    """`x @ weight.T + bias` as it stands in a graph.

    Attributes:
        x: the input node `[..., in]`. node: the output node `[..., out]`.
        weight: `[out, in]`, lazy. bias: `[out]`, lazy, or None.
        product: the matrix product; another node than `node` where the bias is added apart.
    """

    x: fx.Node
    node: fx.Node
    weight: Weight
    bias: Weight | None
    product: fx.Node


def find_linears(program: Program) -> dict[fx.Node, Linear]:
    """Every linear layer with constant weights, by its output node; where a bias is added apart, that is the
    addition."""
    found: dict[fx.Node, Linear] = {}
    for node in program.graph.nodes:
        linear = _product(program, node) or _biased(program, node, found)
        if linear is not None:
            found[node] = linear
            if linear.product is not node and len(linear.product.users) == 1:
                del found[linear.product]
    return found


def _product(program: Program, node: fx.Node) -> Linear | None:
    bias: Any = None
    transposed = True
    if node.target == aten.linear.default:
        x, weight, bias, transposed = node.args[0], node.args[1], _argument(node, 2, "bias"), False
    elif node.target == aten.addmm.default and not node.kwargs:
        bias, x, weight = node.args[:3]
    elif node.target in (aten.mm.default, aten.matmul.default):
        x, weight = node.args[:2]
    else:
        return None
    matrix, vector = constant(program, weight), constant(program, bias)
    if matrix is None or len(matrix.shape) != 2 or not isinstance(x, fx.Node) or (bias is not None and vector is None):
        return None
    matrix = weights.transpose(matrix, 0, 1) if transposed else matrix
    if vector is not None and vector.shape != matrix.shape[:1]:
        return None
    return Linear(x, node, matrix, vector, node)


def _biased(program: Program, node: fx.Node, found: dict[fx.Node, Linear]) -> Linear | None:
    """A product without bias, and a constant vector added to it by the next node."""
    if node.target != aten.add.Tensor or node.kwargs:
        return None
    for product, other in (node.args[:2], node.args[1::-1]):
        linear = found.get(without_views(product)) if isinstance(product, fx.Node) else None
        vector = constant(program, other)
        if (
            linear is not None
            and linear.bias is None
            and vector is not None
            and vector.shape == linear.weight.shape[:1]
        ):
            return Linear(linear.x, node, linear.weight, vector, linear.product)
    return None


def constant(program: Program, node: Any) -> Weight | None:
    """The lazy weight that a node stands for: a weight itself, or one that is cast, transposed in its last two
    dimensions, stacked of others, or taken out of a stack; else None."""
    weight = program.weight_of(node)
    if weight is not None or not isinstance(node, fx.Node) or node.op != "call_function":
        return weight
    if node.target == aten.stack.default:
        parts = [constant(program, part) for part in node.args[0]]  # type: ignore[union-attr]
        first = len(node.args) < 2 or node.args[1] == 0
        return weights.stack([w for w in parts if w]) if first and all(parts) else None
    if node.target is operator.getitem and node.args[0].target == aten.unbind.int:  # type: ignore[union-attr]
        stacked, dim = node.args[0].args[0], node.args[0].args[1:]  # type: ignore[union-attr]
        return _selected(program, stacked, dim[0] if dim else 0, node.args[1])
    if node.target == aten.select.int:
        return _selected(program, *node.args[:3])
    source = constant(program, node.args[0]) if node.args else None
    if source is None:
        return None
    if node.target in _TRANSPOSES:
        return weights.transpose(source, -2, -1) if len(source.shape) >= 2 and _swaps(node) else None
    if node.target in _CASTS:
        return weights.cast(source, value_of(node).dtype)
    return source if node.target in _COPIES else None


def _selected(program: Program, stacked: Any, dim: Any, index: Any) -> Weight | None:
    source = constant(program, stacked)
    if source is None or dim != 0:
        return None
    return weights.select(source, int(index) % source.shape[0])


def _swaps(node: fx.Node) -> bool:
    """Whether a transposition exchanges the last two dimensions and leaves the others."""
    dims = len(value_of(node).shape)
    if node.target == aten.permute.default:
        order = [int(d) % dims for d in node.args[1]]  # type: ignore[union-attr, arg-type]
        return order == [*range(dims - 2), dims - 1, dims - 2]
    if node.target == aten.transpose.int:
        return {int(d) % dims for d in node.args[1:3]} == {dims - 2, dims - 1}  # type: ignore[arg-type]
    return node.target == aten.mT.default or dims == 2


def passes_through(node: fx.Node) -> bool:
    """Whether a node hands its first input on row by row: a cast, a copy, dropout in eval, or a view that keeps the
    last dimension."""
    if node.target in _VIEWS:
        before, after = value_of(node.args[0]).shape, value_of(node).shape
        return bool(len(before) and len(after)) and str(before[-1]) == str(after[-1])
    if node.target == aten.dropout.default:
        return not node.args[2]
    if node.target in _CASTS:
        return bool(value_of(node).dtype.is_floating_point and value_of(node.args[0]).dtype.is_floating_point)
    return node.target in _COPIES or (node.target == aten.slice.Tensor and is_whole(node))


def is_whole(node: fx.Node) -> bool:
    """A slice that takes everything, as `x[:, :, a:b]` leaves for its first two dimensions."""
    return node.args[2:4] in ((), (0,), (None,), (0, torch.iinfo(torch.int64).max), (None, None)) and len(node.args) < 5


def without_views(node: fx.Node) -> fx.Node:
    """The node that a chain of views which keep the last dimension starts from."""
    while node.op == "call_function" and node.target in _VIEWS and passes_through(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def form_of(node: fx.Node) -> tuple[str, ...]:
    """A node's dtype and shape as text: comparing symbolic sizes themselves would add guards to the capture's."""
    value = value_of(node)
    return (str(value.dtype), *(str(size) for size in value.shape))


def value_of(node: Any) -> Any:
    """A node's example value: a fake or meta tensor, or a tuple of such."""
    return node.meta["val"]


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)
