"""A block of a mixture with fewer experts a token: what it then gives, and the factor that brings it nearest to what it
gave before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from moec.dialect import Routing
from moec.execution.streaming import moe_output
from moec.program.moe_call import MoeCall


@dataclass(frozen=True)
class Fewer:
    """What becomes of a block.

    Attributes:
        rule: of its choice and its weights from now on.
        errors: for 1, 2, … K experts a token, squared and in units of `size`, each with the scale that is best for it.
        size: of the output with all experts, squared and summed over all tokens.
    """

    rule: Routing
    errors: tuple[float, ...]
    size: float

    def facts(self, before: Routing) -> dict[str, Any]:
        """As plain data, for a report."""
        facts = {"scale": self.rule.scale / before.scale, "combine": self.rule.combine}
        return facts | {f"error at {k}": e for k, e in enumerate(self.errors[:-1], 1)}


def fewer(calls: list[MoeCall], count: int, rule: Routing, combine: str, rescale: bool = True) -> Fewer:
    """Leave a token its best `count` experts.

    Args:
        calls: of one `moec::experts` with values, one for each input. A route gives a token's experts in the order of
            their scores, so the first are the best.
        rule: by which their weights were made. combine: how they are made from now on, see `with_fewer`.
        rescale: whether to scale.
    """
    whole = [moe_output(call).float() for call in calls]
    size = sum(float(y.square().sum()) for y in whole) or 1.0
    errors, scales = list[float](), list[float]()
    for k in range(1, calls[0].ids.shape[-1]):
        parts = [moe_output(call.given(**with_fewer(call, k, rule, combine))).float() for call in calls]
        own = sum(float(p.square().sum()) for p in parts)
        both = sum(float((p * y).sum()) for p, y in zip(parts, whole, strict=True))
        scales.append(both / own if own > 0 and both > 0 else 1.0)
        errors.append(max(0.0, 1 - both * both / (own * size)) if own > 0 else 1.0)
    scale = [*scales, 1.0][count - 1] if rescale else 1.0
    made = Routing.of(rule.arguments() | {"top_k": count, "combine": combine, "scale": rule.scale * scale})
    return Fewer(made, (*errors, 0.0), size)


def with_fewer(call: MoeCall, count: int, rule: Routing, combine: str, scale: float | None = None) -> dict[str, Tensor]:
    """Ids and weights of a token's first experts, scaled by `scale` instead of the rule's. Where the weights of all had
    one sum, those of fewer have it too; raw scores that are renormalised get the sum 1."""
    ids, weights = call.ids[..., :count], call.weights[..., :count]
    if combine in ("renormalize", "softmax"):
        total = call.weights.sum(-1, keepdim=True) if combine == rule.combine else rule.scale
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20) * total
    return {"ids": ids, "weights": weights if scale is None else weights * (scale / rule.scale)}
