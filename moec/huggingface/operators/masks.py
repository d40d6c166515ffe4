"""Masks of attention as plain operators: a rule of a model's own is asked of all places at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@contextmanager
def masks_by_broadcast() -> Iterator[None]:
    """While it lasts, transformers makes each mask by giving its rule (batch, head, token, other token -> may see)
    indices that broadcast, as it does for its own rules.

    A rule that a model adds is mapped over the indices (`torch.vmap`) instead, and the look-ups inside become a
    higher-order operator, which is none that a graph of operators can hold.
    """
    from transformers import masking_utils

    kept = {name: getattr(masking_utils, name) for name in _REPLACED if hasattr(masking_utils, name)}
    for name in kept:
        setattr(masking_utils, name, _REPLACED[name])
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(masking_utils, name, value)


def by_broadcast(rule: Rule) -> Rule:
    """A rule for four vectors of indices, `[B]`, `[H]`, `[T]` and `[S]`; gives `[B, H, T, S]`, as `torch.vmap` over
    each would."""

    def mask(batch: Tensor, head: Tensor, token: Tensor, other: Tensor) -> Tensor:
        found = rule(batch[:, None, None, None], head[None, :, None, None], token[None, None, :, None], other)
        return found.expand(batch.shape[0], head.shape[0], token.shape[0], other.shape[0])

    return mask


_REPLACED = {"_vmap_expansion_sdpa": by_broadcast, "TransformGetItemToIndex": nullcontext}
