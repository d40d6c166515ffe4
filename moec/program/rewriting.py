"""New nodes for passes: with an example value, and with the provenance of what they replace."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from moec.program.program import Program


def call_like(program: Program, old: fx.Node, by: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Insert a call at the graph's insert point.

    Args:
        old: a node that the new one stands for: module stack and stack trace are taken from it, its value's fake mode
            and device too.
        by: the pass's name, left in `meta["moec_pass"]`.
        target, args, kwargs: the call; nodes among the arguments must have `meta["val"]`.
    """
    node = program.graph.call_function(target, args, kwargs)
    node.meta = {k: old.meta[k] for k in ("nn_module_stack", "stack_trace") if k in old.meta}
    node.meta["moec_pass"] = by
    example = old.meta["val"]
    with example.fake_mode if isinstance(example, FakeTensor) else nullcontext():
        node.meta["val"] = target(*fx.map_arg(args, lambda n: _beside(example, n.meta["val"])), **kwargs)
    return node


def _beside(example: Tensor, value: Any) -> Any:
    """Weights have plain meta tensors as values; an operator takes them only on the device of its other inputs."""
    if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
        return torch.empty_like(value, device=example.device)
    return value
