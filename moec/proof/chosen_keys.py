"""Which tokens choose between keys that rounding can't tell apart.

Sparse attention gives every key an index score, and lets a token see those with the largest alone (DeepSeek-V3.2:
https://arxiv.org/abs/2512.02556). A score is a sum of products that are cut off at zero, so that equal ones are no
accident: where the last key that is chosen and the first that is not have the same, both are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from moec.program.program import Program

_TOP = torch.ops.aten.topk.default
_LOWEST = torch.finfo(torch.float32).min / 2  # what lies below stands for a key that may not be seen


def chooses_keys(node: fx.Node) -> bool:
    """Whether a node chooses among as many candidates as there are tokens: how many it takes depends on that number,
    and not so where experts are chosen."""
    return node.target is _TOP and not isinstance(node.args[1], int)


def key_choices(program: Program) -> list[fx.Node]:
    """The nodes of a program that choose keys."""
    return [node for node in program.nodes(_TOP) if chooses_keys(node)]


def hanging_choice(node: fx.Node, args: Sequence[Any], noise: float) -> Tensor | None:
    """`hanging_keys` of a node that chooses keys, given the values of its arguments; None for any other node."""
    return hanging_keys(args[0], int(args[1]), noise) if chooses_keys(node) else None


def hanging_keys(scores: Tensor, count: int, noise: float) -> Tensor:
    """Which tokens see other keys when their index scores change by `noise` of the largest, in the worst direction.

    Args:
        scores: `[batch, tokens, keys]` or `[batch, heads, tokens, keys]`; very low, or infinite, where a key may not be
            seen. count: how many are chosen of them.

    Returns:
        bool `[batch, tokens]`.
    """
    if count >= scores.shape[-1]:
        return torch.zeros(scores.shape[0], scores.shape[-2], dtype=torch.bool)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    last, following = scores.topk(count + 1, dim=-1).values[..., -2:].unbind(-1)
    size = scores.masked_fill((scores < _LOWEST) | scores.isinf(), 0.0).abs().amax(-1)
    near = (last - following <= 2 * noise * size) & (following > _LOWEST)
    return near if near.dim() == 2 else near.any(1)
