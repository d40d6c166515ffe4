"""In-place operators of a captured graph, replaced by functional ones where nothing can tell the difference.

torch.export leaves `div_`, `masked_fill_` or `scatter_` as a model wrote them. No pass should have to know two forms of
every operator, and a rewritten graph could never lose them: dead code elimination must keep what changes a tensor.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload


def functionalize(graph: fx.Graph) -> int:
    """Replace in-place ATen operators by their functional overloads, in place; returns how many.

    One stays when its functional form might have another dtype, or when its change is seen other than through its own
    result: by a later reader of the tensor or of a view of it, or because it changes an input.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    count = 0
    for node in graph.nodes:
        target = _functional(node)
        if target is not None and not _is_seen(node, order):
            node.target = target
            count += 1
    return count


def is_in_place(node: fx.Node) -> bool:
    """Whether a node changes its first argument."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def drop_dead(graph: fx.Graph) -> None:
    """Remove the nodes that nothing reads, in place. Dropout that drops nothing is one of them: torch takes all
    operators that may draw random numbers for ones that change something, and keeps what they read, too."""
    graph.eliminate_dead_code(lambda node: node.is_impure() and not _is_idle_dropout(node))


def _is_idle_dropout(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.dropout.default and node.args[2] is False


def _functional(node: fx.Node) -> OpOverload | None:
    """The functional overload of an in-place ATen operator that keeps its dtype; None where there is none."""
    if not is_in_place(node) or not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return None
    packet = getattr(torch.ops.aten, node.target._schema.name.removeprefix("aten::").removesuffix("_"), None)
    found = getattr(packet, node.target._overloadname, None)
    return found if isinstance(found, OpOverload) and not found._schema.is_mutable and _keeps_dtype(node) else None


def _keeps_dtype(node: fx.Node) -> bool:
    """Whether no argument could promote the result: those of the same kind (float, integer) have the same dtype."""
    values = [n.meta.get("val") for n in node.all_input_nodes]
    dtypes = [v.dtype for v in values if isinstance(v, Tensor)]
    return bool(dtypes) and all(d == dtypes[0] for d in dtypes if _kind(d) == _kind(dtypes[0]))


def _kind(dtype: torch.dtype) -> tuple[bool, bool, bool]:
    return dtype.is_floating_point, dtype.is_complex, dtype == torch.bool


def _is_seen(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether somebody reads the changed tensor, other than through the node's own result."""
    root = root_of(node)
    if root.op not in ("call_function", "get_attr"):
        return True
    # what a call writes to a buffer, the next one starts without: an engine remembers nothing
    aliases = [n for n in order if n.op == "get_attr" and n.target == root.target] if root.op == "get_attr" else [root]
    for alias in aliases:
        others = [user for user in alias.users if user is not node]
        if any(order[user] > order[node] for user in others):
            return True
        aliases += [user for user in others if is_view(user) and user not in aliases]
    return False


def root_of(node: fx.Node) -> fx.Node:
    """The tensor of which a node changes a part or all: its first argument, without views."""
    root: Any = node.args[0]
    while is_view(root):
        root = root.args[0]
    assert isinstance(root, fx.Node)
    return root


def is_view(node: fx.Node) -> bool:
    """Whether a node's result may share memory with its first argument: views, casts that may do nothing, in-place
    operators."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_view(node.args[0])
    return isinstance(node.target, OpOverload) and any(r.alias_info is not None for r in node.target._schema.returns)
