"""`moec::causal_conv`: a short convolution over the last few tokens, each channel by itself, that goes on from a window
of earlier ones (LFM2; before the scans of Mamba and gated delta nets)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_conv_reference(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None, silu: bool = False) -> Tensor:
    """The operator in plain PyTorch; see `causal_conv`."""
    earlier = weight.shape[1] - 1
    whole = torch.cat([window[..., window.shape[-1] - earlier :].to(x.dtype), x], -1)
    result = F.conv1d(whole.to(weight.dtype), weight[:, None], bias, groups=weight.shape[0])
    return (F.silu(result) if silu else result).to(x.dtype)


@torch.library.custom_op("moec::causal_conv", mutates_args=())
def causal_conv(
    x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False
) -> Tensor:  # fmt: skip
    """S new tokens, each with the K - 1 before it.

    Args:
        x: `[B, C, S]`.
        window: `[B, C, W]`, W at least K - 1: the inputs before these, of which the last K - 1 are read; zeros where
            there are none.
        weight: `[C, K]`, the last column for a token itself.
        bias: `[C]`.
        silu: whether the sum goes through `x * sigmoid(x)`.

    Returns:
        `[B, C, S]` in x's dtype.
    """
    return causal_conv_reference(x, window, weight, bias, silu)


@causal_conv.register_fake
def _(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor | None = None, **_rule: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.silu = keyword_only_inputs["silu"]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # computed again from the parts, each of which has a derivative
    needed = ctx.needs_input_grad
    with torch.enable_grad():
        saved: list[Any] = list(ctx.saved_tensors)
        leaves: list[Any] = [None if t is None else t.detach().requires_grad_(needed[i]) for i, t in enumerate(saved)]
        result = causal_conv_reference(*leaves, ctx.silu)  # type: ignore[call-arg]
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(result, wanted, grad, allow_unused=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in leaves)


torch.library.register_autograd("moec::causal_conv", _backward, setup_context=_setup)
