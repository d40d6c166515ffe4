"""`moec::selective_scan`: the recurrence of Mamba, https://arxiv.org/abs/2312.00752, from any state and of any length.

Its state is a matrix a channel decays by at a rate of its own in each place. Mamba-2 has one rate a head: that is
`moec::linear_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def selective_scan_reference(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The operator in plain PyTorch, token by token; see `selective_scan`. Everything is computed in float32 at
    least."""
    exact = torch.promote_types(x.dtype, torch.float32)
    steps, rates, keys, queries = delta.to(exact), a.to(exact), b.to(exact), c.to(exact)
    inputs, h, found = steps * x.to(exact), state.to(exact), []
    for token in range(x.shape[1]):
        h = (steps[:, token, :, None] * rates).exp() * h + inputs[:, token, :, None] * keys[:, token, None]
        found.append((h * queries[:, token, None]).sum(-1))
    return torch.stack(found, 1).to(x.dtype) if found else torch.empty_like(x), h.to(state.dtype)


@torch.library.custom_op("moec::selective_scan", mutates_args=())
def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """A state space model whose step, input and output depend on the token: `h = exp(delta a) h + delta x b`, and
    `y = h c`.

    Args:
        x: `[B, S, D]`, D channels of S tokens. delta: `[B, S, D]`, how long each step takes, 0 or more; one of 0 leaves
            the state as it is, which is what padding does.
        a: `[D, N]`, below 0: the rates at which the N numbers of a channel's state decay.
        b, c: `[B, S, N]`, what a token writes to the state and reads of it.
        state: `[B, D, N]` before the first token; zeros where nothing came before.

    Returns:
        `[B, S, D]` in x's dtype, without the skip connection and the gate that models add, and the state after the
        last token, `[B, D, N]` in state's dtype.
    """
    y, after = selective_scan_reference(x, delta, a, b, c, state)
    return y, after.clone() if after is state else after


@selective_scan.register_fake
def _(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    like = torch.contiguous_format
    return torch.empty_like(x, memory_format=like), torch.empty_like(state, memory_format=like)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    """Through the reference, run anew: the states between are not kept."""
    needed = ctx.needs_input_grad
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(wanted) for t, wanted in zip(ctx.saved_tensors, needed, strict=True)]
        results = selective_scan_reference(*leaves)
    wanted = [t for t in leaves if t.requires_grad]
    found = iter(torch.autograd.grad(results, wanted, (grad, grad_state), allow_unused=True))
    return tuple(next(found) if t.requires_grad else None for t in leaves)


torch.library.register_autograd("moec::selective_scan", _backward, setup_context=_setup)
