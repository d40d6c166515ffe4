"""`moec::linear_attention`: attention whose memory is one matrix a head, however long the text is.

One operator for the family: linear attention (https://arxiv.org/abs/2006.16236), a decay (RetNet, lightning attention,
the scan of Mamba-2), the delta rule (https://arxiv.org/abs/2406.06484), both (Gated DeltaNet,
https://arxiv.org/abs/2412.06464), and a decay for each channel of a key (Kimi Delta Attention,
https://arxiv.org/abs/2510.26692).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def linear_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    decay: Tensor | None,
    rate: Tensor | None,
    scale: float,
    epsilon: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The operator in plain PyTorch, token by token, in float32 at least; see `linear_attention`."""
    wide = torch.promote_types(query.dtype, torch.float32)
    each = value.shape[2] // key.shape[2]
    query, key = (_unit(t.to(wide), epsilon).repeat_interleave(each, 2) for t in (query, key))
    memory, read = state.to(wide), []
    for t in range(query.shape[1]):
        if decay is not None:
            step = decay[:, t].to(wide).exp()
            memory = memory * (step if step.dim() == 3 else step[..., None])[..., None]
        new = value[:, t].to(wide)
        if rate is not None:  # only what the memory does not say of this key yet
            new = (new - _look_up(memory, key[:, t])) * rate[:, t, :, None].to(wide)
        memory = memory + key[:, t, :, :, None] * new[..., None, :]
        read.append(_look_up(memory, query[:, t] * scale))
    result = torch.stack(read, 1) if read else value.new_zeros(value.shape)
    return result.to(value.dtype), memory.to(state.dtype, copy=True)


def _look_up(memory: Tensor, key: Tensor) -> Tensor:
    """What memories `[B, H, D, V]` say of keys `[B, H, D]`: `[B, H, V]`."""
    return (memory * key[..., None]).sum(-2)


def _unit(x: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + epsilon) if epsilon else x


@torch.library.custom_op("moec::linear_attention", mutates_args=())
def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, decay: Tensor | None = None, rate: Tensor | None = None,
    *, scale: float, epsilon: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """S new tokens written into a memory `[D, V]` of each head and read from it, one after the other, in float32.

    For each token: `M = exp(decay) * M`, then `M = M + key (rate * (value - M^T key))^T`, then it gets
    `M^T (scale * query)`. Without a rate `M = M + key value^T`.

    Args:
        query, key: `[B, S, G, D]`. value: `[B, S, H, V]`; H is a multiple of G, head h reads key `h // (H/G)`.
        state: `[B, H, D, V]`, the memory that earlier tokens left; zeros where there are none.
        decay: `[B, S, H]`, or `[B, S, H, D]` for each channel of a key; a logarithm, at most 0. None: nothing is lost.
        rate: `[B, S, H]`, how much of the difference to what the memory says is written (beta). None: all of the value
            is added, whatever the memory says.
        scale: of the queries.
        epsilon: more than 0: queries and keys become `x / sqrt(sum(x^2) + epsilon)` first.

    Returns:
        `[B, S, H, V]` in the value's dtype, and the memory afterwards in the state's.
    """
    return linear_attention_reference(query, key, value, state, decay, rate, scale, epsilon)


@linear_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, decay: Tensor | None = None, rate: Tensor | None = None,
    **_rule: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    contiguous = torch.contiguous_format
    return torch.empty_like(value, memory_format=contiguous), torch.empty_like(state, memory_format=contiguous)


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.rule = keyword_only_inputs["scale"], keyword_only_inputs["epsilon"]


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    # computed again from the parts, each of which has a derivative
    needed = ctx.needs_input_grad
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_(needed[i]) for i, t in enumerate(ctx.saved_tensors)]
        results = linear_attention_reference(*leaves, *ctx.rule)  # type: ignore[arg-type]
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(results, wanted, grads, allow_unused=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in leaves)


torch.library.register_autograd("moec::linear_attention", _backward, setup_context=_setup)
