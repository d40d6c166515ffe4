"""The derivative of `moec::experts`, as an operator of its own.

The backward loops over the experts that were chosen, as the forward does, and no tracer can follow that. Being opaque
it leaves one node in a compiled training step, and being written out it needs no autograd inside, where the dispatcher
has switched it off.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect.activation import Activation


@torch.library.custom_op("moec::experts_backward", mutates_args=())
def experts_backward(
    grad: Tensor, x: Tensor, ids: Tensor, weights: Tensor,
    w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None,
    rule: str, train_experts: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of `moec::experts`.

    Args:
        grad: gradient of the result, `[..., H]`.
        x, ids, weights, w_in, w_out, b_in, b_out: as the forward had them.
        rule: the forward's keyword arguments as JSON.
        train_experts: whether the gradients of the experts' matrices are wanted; a step that trains only the router
            saves them.

    Returns:
        gradients of x and weights; with `train_experts` also of w_in, w_out and those of b_in, b_out that are there.
    """
    top_k, hidden, exact = ids.shape[-1], x.shape[-1], torch.promote_types(x.dtype, torch.float32)
    count = w_in.shape[0]
    # what is no expert added nothing to the forward on CUDA; it comes last here, and gets zeros
    chosen = ids.reshape(-1).where((ids.reshape(-1) >= 0) & (ids.reshape(-1) < count), count)
    order = chosen.argsort(stable=True)
    token, back = order // top_k, order.argsort()
    sizes = chosen.bincount(minlength=count + 1).tolist()
    routed = [
        torch.split(t.to(exact), sizes)
        for t in (grad.reshape(-1, hidden)[token], x.reshape(-1, hidden)[token], weights.reshape(-1, 1)[order])
    ]

    totals = (
        [
            torch.zeros_like(t, memory_format=torch.contiguous_format)
            for t in (w_in, w_out, b_in, b_out)
            if t is not None
        ]
        if train_experts
        else []
    )
    rows: list[Tensor] = []
    scales: list[Tensor] = []
    for e, parts in enumerate(zip(*routed, strict=True)):
        if len(parts[0]) == 0 or e == count:
            rows.append(torch.zeros_like(parts[1]))
            scales.append(torch.zeros_like(parts[2]))
            continue
        own = [None if t is None else t[e].to(exact) for t in (w_in, w_out, b_in, b_out)]
        d_rows, d_scale, *d_own = _one_expert(*parts, *own, json.loads(rule))  # type: ignore[arg-type, call-arg]
        rows.append(d_rows)
        scales.append(d_scale)
        for total, part in zip(totals, d_own, strict=False):
            total[e] = part
    d_x = torch.cat(rows)[back].reshape(len(order) // top_k, top_k, hidden).sum(1).reshape(x.shape)
    return [d_x.to(x.dtype), torch.cat(scales)[back].reshape(weights.shape).to(weights.dtype), *totals]


def _one_expert(
    grad: Tensor, rows: Tensor, scale: Tensor,
    w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None, rule: dict[str, object],
) -> list[Tensor]:  # fmt: skip
    """Gradients of rows `[N, H]`, scale `[N, 1]`, w_in, w_out and the biases that are there, of one expert."""
    activation, before = Activation.of(rule), rule["score_before"]
    given = rows * scale if before else rows
    hidden = F.linear(given, w_in, b_in)
    active = activation(hidden)
    d_result = grad if before else grad * scale
    d_hidden = activation.pull_back(hidden, d_result @ w_out)
    d_given = d_hidden @ w_in
    biases = [d.sum(0) for d, b in ((d_hidden, b_in), (d_result, b_out)) if b is not None]
    if before:
        d_rows, d_scale = d_given * scale, (d_given * rows).sum(-1, keepdim=True)
    else:
        d_rows, d_scale = d_given, (grad * F.linear(active, w_out, b_out)).sum(-1, keepdim=True)
    return [d_rows, d_scale, d_hidden.T @ given, d_result.T @ active, *biases]


@experts_backward.register_fake
def _(
    grad: Tensor, x: Tensor, ids: Tensor, weights: Tensor,
    w_in: Tensor, w_out: Tensor, b_in: Tensor | None, b_out: Tensor | None,
    rule: str, train_experts: bool,
) -> list[Tensor]:  # fmt: skip
    trained = (w_in, w_out, b_in, b_out) if train_experts else ()
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weights, *trained) if t is not None]
