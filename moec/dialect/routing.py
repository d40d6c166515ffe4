"""`moec::route`: which experts a token goes to, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect.capacity import Capacity, within_capacity

SCORES = ("softmax", "sigmoid", "sqrt_softplus", "identity")
COMBINES = ("scores", "renormalize", "softmax", "ones")


@dataclass(frozen=True)
class Routing:
    """A routing rule as data.

    Attributes:
        top_k: experts a token, K.
        score: `softmax` (Switch, Mixtral, Qwen), `sigmoid` (DeepSeek-V3, Llama 4), `sqrt_softplus` (DeepSeek-V4) or
            `identity` (the raw logits).
        combine: how the chosen experts' scores become weights: `scores` as they are (Qwen2-MoE, OLMoE), `renormalize`
            to sum 1 (Mixtral, Qwen3-MoE), `softmax` of the chosen logits (gpt-oss, Granite), `ones` (carved experts).
        groups, top_groups: experts are cut into `groups` equal groups and only the best `top_groups` may be chosen from
            (DeepSeek-V2: arXiv 2405.04434, V3: arXiv 2412.19437); `groups` 1 means no limit.
        group_score: a group's score: its `max` (V2) or the sum of its `top2` (V3).
        scale: factor of the weights at the end.
        epsilon: added to the sum in `renormalize` (DeepSeek-V3: 1e-20).
        floor: the sum in `renormalize` is at least this (ERNIE 4.5: 1e-12).
        closed_as_zero: experts of closed groups take part in the choice with a score of 0 instead of not at all, as
            DeepSeek's first code had it; it matters where a correction bias makes an open expert's score negative.
    """

    top_k: int
    score: str = "softmax"
    combine: str = "renormalize"
    groups: int = 1
    top_groups: int = 1
    group_score: str = "max"
    scale: float = 1.0
    epsilon: float = 0.0
    floor: float = 0.0
    closed_as_zero: bool = False

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `moec::route` and `moec::moe` that say this rule."""
        return asdict(self)

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> Routing:
        """Read it back from a node's keyword arguments."""
        return cls(**{key: kwargs[key] for key in cls.__dataclass_fields__ if key in kwargs})


def scores_of(logits: Tensor, score: str) -> Tensor:
    """What each expert is worth to a token, `[..., E]`, by one of `SCORES`."""
    if score == "softmax":
        return torch.softmax(logits, dim=-1)
    if score == "sigmoid":
        # not torch.sigmoid: ONNX Runtime's CPU Sigmoid has an absolute error of 6e-8, which renormalising small scores
        # amplifies
        return torch.reciprocal(1.0 + torch.exp(-logits))
    if score == "sqrt_softplus":
        return F.softplus(logits).sqrt()
    return logits


def _limit_to_groups(choice: Tensor, rule: Routing) -> Tensor:
    """Scores for the choice `[..., E]` in which the groups that were not chosen are closed."""
    grouped = choice.view(*choice.shape[:-1], rule.groups, choice.shape[-1] // rule.groups)
    best = grouped.amax(-1) if rule.group_score == "max" else grouped.topk(2, dim=-1).values.sum(-1)
    chosen = best.topk(rule.top_groups, dim=-1).indices
    closed = torch.ones_like(best).scatter(-1, chosen, 0.0).bool()
    return grouped.masked_fill(closed.unsqueeze(-1), 0.0 if rule.closed_as_zero else float("-inf")).flatten(-2)


def route_reference(
    logits: Tensor, bias: Tensor | None, rule: Routing, room: Capacity | None = None
) -> tuple[Tensor, Tensor]:
    """`moec::route` in plain PyTorch, without data-dependent shapes: exporters may trace it."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # choosing by logits and by their softmax is the same choice; the logits have no ties that underflow made
    by_logits = rule.combine == "softmax" and bias is None and rule.groups == 1
    scores = logits if by_logits else scores_of(logits, rule.score)
    choice = scores if bias is None else scores + bias
    if rule.groups > 1:
        choice = _limit_to_groups(choice, rule)
    picked, ids = choice.topk(rule.top_k, dim=-1)
    weights = scores.gather(-1, ids) if bias is not None or rule.groups > 1 else picked
    kept = None if room is None else within_capacity(ids, logits.shape[-1], room)
    if room is not None and kept is not None and room.drop_first:
        weights = weights.masked_fill(~kept, 0.0)
    if rule.combine == "renormalize":
        weights = weights / _total(weights, rule)
    elif rule.combine == "softmax":
        weights = torch.softmax(weights if by_logits else logits.gather(-1, ids), dim=-1)
    elif rule.combine == "ones":
        weights = torch.ones_like(weights)
    weights = weights * rule.scale if rule.scale != 1.0 else weights
    return (weights if kept is None else weights.masked_fill(~kept, 0.0)), ids


def _total(weights: Tensor, rule: Routing) -> Tensor:
    """What `renormalize` divides by, `[..., 1]`."""
    total = weights.sum(-1, keepdim=True)
    total = total + rule.epsilon if rule.epsilon else total
    return total.clamp(min=rule.floor) if rule.floor else total


@torch.library.custom_op("moec::route", mutates_args=())
def route(
    logits: Tensor,
    bias: Tensor | None = None,
    capacity: int | None = None,
    counted: Tensor | None = None,
    *,
    top_k: int,
    score: str = "softmax",
    combine: str = "renormalize",
    groups: int = 1,
    top_groups: int = 1,
    group_score: str = "max",
    scale: float = 1.0,
    epsilon: float = 0.0,
    floor: float = 0.0,
    closed_as_zero: bool = False,
    order: str = "choices",
    drop_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Choose K experts a token, and drop the choices for which an expert has no room.

    Args:
        logits: `[..., E]`, any float dtype; computed with in float32 (float64 stays). With a capacity `[..., T, E]`:
            the T tokens of each leading index are in line for themselves.
        bias: `[E]`, added to the scores for the choice only, never to the weights (DeepSeek-V3).
        capacity: how many choices an expert takes of each line; a choice over it weighs 0. None for no limit.
        counted: bool `[..., T]`, tokens that are in line; the others (padding) are dropped and take no room. None for
            all. Needs a capacity.
        order, drop_first: see `Capacity`.
        top_k, score, combine, groups, top_groups, group_score, scale, epsilon, floor, closed_as_zero: see `Routing`.

    Returns:
        weights `[..., K]` in float32 (float64 for float64 logits) and expert ids `[..., K]` in int64.

    Raises:
        ValueError: see `Capacity.of`.
    """
    weights, ids = route_reference(
        logits,
        bias,
        Routing(top_k, score, combine, groups, top_groups, group_score, scale, epsilon, floor, closed_as_zero),
        Capacity.of(capacity, counted, {"combine": combine, "order": order, "drop_first": drop_first}),
    )
    return weights.clone(), ids.clone()


@route.register_fake
def _(
    logits: Tensor, bias: Tensor | None = None, capacity: int | None = None, counted: Tensor | None = None, *,
    top_k: int, **rule: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    Capacity.of(capacity, counted, rule)  # refuses
    shape = (*logits.shape[:-1], top_k)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(shape, dtype=dtype), logits.new_empty(shape, dtype=torch.int64)


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    logits, bias, ctx.capacity, counted = inputs
    ctx.save_for_backward(logits, bias, counted)
    ctx.kwargs = keyword_only_inputs
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_weights: Tensor, _grad_ids: Tensor | None) -> tuple[Tensor | None, None, None, None]:
    # the choice is piecewise constant, so only the weights carry a gradient; the correction bias gets none by design
    logits, bias, counted = ctx.saved_tensors
    room = Capacity.of(ctx.capacity, counted, ctx.kwargs)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        weights, _ = route_reference(leaf, bias, Routing.of(ctx.kwargs), room)
    grad = torch.autograd.grad(weights, leaf, grad_weights)[0] if weights.requires_grad else None
    return grad, None, None, None


torch.library.register_autograd("moec::route", _backward, setup_context=_setup)
