"""`moec::moe`: router projection, routing and experts in one operator, as ONNX Runtime's MoE and TensorRT's MoE layer
take it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect.activation import Activation
from moec.dialect.experts import dense_expert, experts_reference
from moec.dialect.routing import Routing, route_reference


def router_logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The router's projection, `[..., H]` to `[..., E]`, in float32 at least."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(exact), weight.to(exact), None if bias is None else bias.to(exact))


def moe_reference(
    x: Tensor,
    router_weight: Tensor,
    router_bias: Tensor | None,
    selection_bias: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    routing: Routing,
    activation: Activation,
    score_before: bool,
) -> Tensor:
    """`moec::moe` in plain PyTorch: linear, `route_reference`, `experts_reference`."""
    weights, ids = route_reference(router_logits(x, router_weight, router_bias), selection_bias, routing)
    return experts_reference(
        x, ids, weights, dense_expert(w_in, w_out, b_in, b_out, activation), w_in.shape[0], score_before
    )


@torch.library.custom_op("moec::moe", mutates_args=())
def moe(
    x: Tensor,
    router_weight: Tensor,
    router_bias: Tensor | None,
    selection_bias: Tensor | None,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None = None,
    b_out: Tensor | None = None,
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
    activation: str = "silu",
    gated: bool = True,
    alpha: float = 1.0,
    beta: float = 0.0,
    limit: float = 0.0,
    clamp_after: bool = False,
    cap: float = 0.0,
    up_cap: float = 0.0,
    score_before: bool = False,
) -> Tensor:
    """A whole mixture-of-experts block without shared experts.

    Args:
        x: tokens `[..., H]`.
        router_weight: `[E, H]`; logits are computed in float32 whatever x's dtype. router_bias: `[E]`, part of the
            logits.
        selection_bias: `[E]`, added to the scores for the choice only.
        w_in `[E, F*I, H]`, w_out `[E, H, I]`, b_in `[E, F*I]`, b_out `[E, H]`: as in `moec::experts`.
        top_k … closed_as_zero: see `Routing`. activation … up_cap: see `Activation`. score_before: see `moec::experts`.

    Returns:
        `[..., H]` in x's dtype.
    """
    routing = Routing(top_k, score, combine, groups, top_groups, group_score, scale, epsilon, floor, closed_as_zero)
    rule = Activation(activation, gated, alpha, beta, limit, clamp_after, cap, up_cap)
    return moe_reference(
        x, router_weight, router_bias, selection_bias, w_in, w_out, b_in, b_out, routing, rule, score_before
    )


@moe.register_fake
def _(x: Tensor, *_tensors: Any, **_rule: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.kwargs = keyword_only_inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # recompute from the parts, which have derivatives of their own that a tracer can hold
    needed = ctx.needs_input_grad
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_(needed[i]) for i, t in enumerate(ctx.saved_tensors)]
        result = _from_parts(*leaves, ctx.kwargs)  # type: ignore[arg-type, call-arg]
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(result, wanted, grad, allow_unused=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in leaves)


def _from_parts(
    x: Tensor, router_weight: Tensor, router_bias: Tensor | None, selection_bias: Tensor | None,
    w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None, kwargs: dict[str, Any],
) -> Tensor:  # fmt: skip
    """`moec::moe` with its experts left as one `moec::experts`."""
    weights, ids = route_reference(router_logits(x, router_weight, router_bias), selection_bias, Routing.of(kwargs))
    rule = Activation.of(kwargs).arguments()
    return torch.ops.moec.experts(
        x, ids, weights, w_in, w_out, b_in, b_out, **rule, score_before=kwargs["score_before"]
    )  # type: ignore[no-any-return]


torch.library.register_autograd("moec::moe", _backward, setup_context=_setup)
