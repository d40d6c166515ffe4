"""A block of a mixture with fewer experts a token: what it then gives, and the factor that brings it nearest to what it
gave before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from moec.dialect import Routing
from moec.execution.streaming import moe_output
from moec.program.moe_call import MoeCall


@dataclass
class Fewer:
    """What becomes of a block.

    Attributes:
        scale: of its output. errors: for 1, 2, … K experts a token, squared and in units of `size`, each with the scale
            that is best for it.
        size: of the output with all experts, squared and summed over all tokens.
        ids, weights: of each input, `[..., k]`, scaled where that is wanted.
    """

    scale: float
    errors: tuple[float, ...]
    size: float
    ids: list[Tensor]
    weights: list[Tensor]

    def forget(self) -> None:
        """Keep figures only."""
        self.ids, self.weights = [], []

    def facts(self) -> dict[str, Any]:
        """As plain data, for a report."""
        return {"scale": self.scale, **{f"error at {k}": e for k, e in enumerate(self.errors[:-1], 1)}}


def fewer(calls: list[MoeCall], count: int, rule: Routing, rescale: bool = True) -> Fewer:
    """Leave a token its best `count` experts.

    Args:
        calls: of one `moec::experts` with values, one for each input. A route gives a token's experts in the order of
            their scores, so the first are the best.
        rule: by which their weights were made. rescale: whether to scale.
    """
    best = partial(_best, summed=rule.combine in ("renormalize", "softmax"))
    whole = [moe_output(call).float() for call in calls]
    size = sum(float(y.square().sum()) for y in whole) or 1.0
    errors, scales, most = list[float](), list[float](), calls[0].ids.shape[-1]
    for k in range(1, most):
        parts = [moe_output(call.given(**best(call, k))).float() for call in calls]
        own = sum(float(p.square().sum()) for p in parts)
        both = sum(float((p * y).sum()) for p, y in zip(parts, whole, strict=True))
        scales.append(both / own if own > 0 and both > 0 else 1.0)
        errors.append(max(0.0, 1 - both * both / (own * size)) if own > 0 else 1.0)
    chosen = [best(call, count) for call in calls]
    scale = [*scales, 1.0][count - 1] if rescale else 1.0
    weights = [c["weights"] * scale for c in chosen]
    return Fewer(scale, (*errors, 0.0), size, [c["ids"] for c in chosen], weights)


def _best(call: MoeCall, count: int, summed: bool) -> dict[str, Tensor]:
    """Ids and weights of a token's first experts; where the weights of all had one sum, those of fewer have it too."""
    ids, weights = call.ids[..., :count], call.weights[..., :count]
    if summed:
        total = call.weights.sum(-1, keepdim=True)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20) * total
    return {"ids": ids, "weights": weights}
