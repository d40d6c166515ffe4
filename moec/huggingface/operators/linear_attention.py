"""Recurrences of linear attention in transformers' models: each becomes one `moec::linear_attention`.

transformers writes the gated delta rule and Kimi's delta attention as functions of a model's own file, twice each: by
chunks for a prompt, whose number of loops is fixed when it is traced, and token by token for a step. A function is
taken for one of them by its parameters, and proven on drawn numbers before it is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from moec.huggingface.operators.arguments import refuse_others
from moec.huggingface.operators.functions_of_file import functions_read, let_call
from moec.huggingface.operators.proven import apart, require_proven

_CALL = {"query", "key", "value", "g", "beta", "initial_state", "output_final_state", "use_qk_l2norm_in_kernel"}
_EPSILON = 1e-6  # of flash-linear-attention's norm, which transformers' functions follow
_HEADS, _SIZE, _VALUE = 2, 8, 6


def use_moec_linear_attention(model: nn.Module) -> int:
    """Let every module of a captured copy whose file has such functions call `moec::linear_attention` in their place,
    in place; returns how many modules.

    Raises:
        MoecError: M206 when a function has the parameters of a known one and does not compute what that does.
    """
    found = 0
    for path, module in model.named_modules():
        functions = functions_read(module, lambda parameters: set(parameters) >= _CALL)
        if functions:
            require_proven(path, module, functions, _difference)
            let_call(module, functions, _told_of_padding)
            found += 1
    return found


def _told_of_padding(own: Callable[..., Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    return partial(recurrence, mask=arguments.get("attention_mask"))


def recurrence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    mask: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers' functions are called with, by `moec::linear_attention`: query, key `[B, S, G, D]`, value
    `[B, S, H, V]`, g `[B, S, H]` or `[B, S, H, D]`, beta `[B, S, H]`, a state `[B, H, D, V]`. Where a mask `[B, S]` has
    padding, the state stays as it is; before a text, where it is zeros, that is what transformers does.

    Raises:
        MoecError: M206 for an argument that may change the result and is not among these.
    """
    refuse_others(others, "linear attention")
    wide = torch.promote_types(query.dtype, torch.float32)
    if mask is not None and mask.dim() == 2:
        g, beta = (t * mask.view(*mask.shape, *[1] * (t.dim() - 2)).to(t.dtype) for t in (g, beta))
    if initial_state is None:
        shape = value.shape[0], value.shape[2], key.shape[3], value.shape[3]
        initial_state = torch.zeros(shape, dtype=wide, device=value.device)
    found, state = torch.ops.moec.linear_attention(
        query, key, value, initial_state.to(wide), g.to(wide), beta.to(wide),
        scale=query.shape[-1] ** -0.5, epsilon=_EPSILON if use_qk_l2norm_in_kernel else 0.0,
    )  # fmt: skip
    return found, state if output_final_state else None


# ---------------------------------------------------------------------- proof
@cache
def _difference(function: Callable[..., Any]) -> float:
    """The largest difference on drawn numbers, over the spread: with a state and without, over chunks' ends, with norms
    of queries and keys and without; the decay that it takes, for a head or for each channel."""
    with _disable_current_modes(), torch.no_grad(), torch.device("cpu"):
        return min(max(_errors(function, by_channel)) for by_channel in (False, True))


def _errors(function: Callable[..., Any], by_channel: bool) -> Iterator[float]:
    for length, normed, began in ((70, True, True), (5, True, False), (1, True, True), (3, False, True)):
        given = _drawn(length, by_channel)
        given |= {"initial_state": given["initial_state"] if began else None, "use_qk_l2norm_in_kernel": normed}
        try:
            wanted = function(**given, output_final_state=True)
        except (RuntimeError, IndexError):  # it takes the other form of decay
            yield float("inf")
            return
        for want, got in zip(wanted, recurrence(**given, output_final_state=True), strict=True):
            yield apart(got, want)


def _drawn(length: int, by_channel: bool) -> dict[str, Any]:
    """Arguments for two texts; one key is short, so that what is added to a norm is seen, and one is zero."""
    generator = torch.Generator().manual_seed(length)
    make: Callable[..., Tensor] = lambda *shape: torch.randn(2, *shape, generator=generator)  # noqa: E731
    query, key = (make(length, _HEADS, _SIZE) * 0.4 for _ in range(2))
    key[0, 0], key[1, 0] = key[0, 0] * 1e-3, 0.0
    return {
        "query": query,
        "key": key,
        "value": make(length, _HEADS, _VALUE),
        "g": -make(length, _HEADS, *([_SIZE] if by_channel else [])).abs() * 0.3,
        "beta": make(length, _HEADS).sigmoid(),
        "initial_state": make(_HEADS, _SIZE, _VALUE),
    }
