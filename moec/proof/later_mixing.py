"""Whether tokens see what a block makes of each other, as far as a graph tells."""

from __future__ import annotations

import torch
from torch import fx

from moec.program.moe_call import EXPERTS, MOE, ROUTE

_ops = torch.ops.aten
_TOKENWISE = {  # what looks at one token at a time, beside what carries torch's own tag
    EXPERTS,
    MOE,
    ROUTE,
    _ops.linear.default,
    _ops.view.default,
    _ops.reshape.default,
    _ops.unsqueeze.default,
    _ops.squeeze.dim,
    _ops.to.dtype,
    _ops._to_copy.default,
    _ops.layer_norm.default,
    _ops.native_layer_norm.default,
    _ops.rms_norm.default,
    _ops.slice.Tensor,
    _ops.clone.default,
}


def mixes_after(node: fx.Node) -> bool:
    """Whether an operator that looks at several tokens follows a block, as far as the graph tells: attention, a
    pooling, anything unknown."""
    seen, todo = {node}, [node]
    while todo:
        users = [user for user in todo.pop().users if user.op != "output" and user not in seen]
        if not all(_is_tokenwise(user) for user in users):
            return True
        seen.update(users)
        todo += users
    return False


def _is_tokenwise(node: fx.Node) -> bool:
    if node.target is _ops.mean.dim:
        return node.args[1] == [-1]
    return (
        node.target in _TOKENWISE
        or torch.Tag.pointwise in getattr(node.target, "tags", ())
        or "getitem" in str(node.target)
    )
