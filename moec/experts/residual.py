"""Where what a block says joins the residual stream: errors of different layers are compared in units of that."""

from __future__ import annotations

import torch
from torch import fx

_MOST = 16  # operators between a block and its sum
_ADD = torch.ops.aten.add.Tensor


def residual_sum(output: fx.Node) -> fx.Node | None:
    """The addition of a block's output to the residual stream: the first whose sum is read by more than one operator, a
    norm and the next sum; else the last one on the way; None where there is none."""
    node, found = output, None
    for _ in range(_MOST):
        if len(node.users) != 1:
            break
        node = next(iter(node.users))
        if node.op != "call_function":
            break
        if node.target is _ADD and len(node.all_input_nodes) == 2:
            found = node
    return found
