"""Which tokens choose between keys that rounding can't tell apart.

Sparse attention gives every key an index score, and lets a token see those with the largest alone (DeepSeek-V3.2:
https://arxiv.org/abs/2512.02556). A score is a sum of products that are cut off at zero, so that equal ones are no
accident: where the last key that is chosen and the first that is not have the same, both are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from moec.program.program import Program

_TOP = torch.ops.aten.topk.default
_PARAMETERS = ("self", "k", "dim", "largest", "sorted")
_LOWEST = torch.finfo(torch.float32).min / 2  # what lies below stands for a key that may not be seen


def chooses_keys(node: fx.Node) -> bool:
    """Whether each token of a text takes the largest of its scores for so many keys as there are tokens.

    How many are taken depends on that number, and not so where a token chooses experts. Where an expert, or a block,
    chooses its tokens instead (expert choice: arXiv 2202.09368, mixture of depths: arXiv 2404.02258), the scores have
    no dimension for the tokens that choose.
    """
    if node.target is not _TOP or isinstance(node.args[1], int):
        return False
    told = dict(zip(_PARAMETERS, node.args, strict=False)) | node.kwargs
    shape = _shape(node.args[0])
    last = told.get("dim", -1) in (-1, len(shape) - 1)
    if len(shape) not in (3, 4) or not last or not told.get("largest", True) or isinstance(shape[-1], int):
        return False
    return str(shape[-2]) in _lengths(node.graph)


def _lengths(graph: fx.Graph) -> set[str]:
    """The size of a graph's inputs that counts tokens, after the batch's: as text, for to compare sizes would fix
    them."""
    shapes = (_shape(n) for n in graph.nodes if n.op == "placeholder")
    return {str(shape[1]) for shape in islice(shapes, 1) if len(shape) > 1}


def _shape(node: Any) -> Sequence[Any]:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.shape if isinstance(value, Tensor) else ()


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
