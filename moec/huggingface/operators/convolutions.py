"""Short convolutions in transformers' models: each that continues a window of the cache becomes one
`moec::causal_conv`.

transformers writes them as a function of a model's own file, which gets the window and the new tokens in one tensor. A
function is taken for it by its parameters, and proven on drawn numbers before it is replaced. The cache of a capture
notes on what it gives out where the window ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from moec.huggingface.operators.functions_of_file import functions_read, let_call
from moec.huggingface.operators.proven import apart, require_proven

PARTS = "moec_window"  # an attribute of a tensor [B, C, W + S]: the window [B, C, W] and the new tokens [B, C, S] in it
_CALL = ["hidden_states", "weight", "bias", "activation"]  # and whatever fused kernels take
_CHANNELS, _KERNEL = 6, 4
_ACTIVATIONS = {None: False, "silu": True, "swish": True}


def use_moec_convolutions(model: nn.Module) -> int:
    """Let every module of a captured copy whose file has such a function call `moec::causal_conv` in its place, in
    place; returns how many modules.

    Raises:
        MoecError: M206 when a function has the parameters of a known one and does not compute what that does.
    """
    found = 0
    for path, module in model.named_modules():
        functions = functions_read(module, lambda parameters: parameters[:4] == _CALL)
        if functions:
            require_proven(path, module, functions, _difference)
            let_call(module, functions, lambda own, arguments: partial(_convolved, own))
            found += 1
    return found


def _convolved(
    own: Callable[..., Tensor], hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None,
    activation: str | None = None, **others: Any,
) -> Tensor:  # fmt: skip
    """The new tokens' part of what a convolution makes; all of it where no window is known."""
    parts = getattr(hidden_states, PARTS, None)
    if parts is None or activation not in _ACTIVATIONS or not _is_long_enough(parts[0], weight):
        return own(hidden_states, weight, bias, activation, **others)
    window, new = parts
    found: Tensor = torch.ops.moec.causal_conv(new, window, weight, bias, silu=_ACTIVATIONS[activation])
    return found


def _is_long_enough(window: Tensor, weight: Tensor) -> bool:
    return bool(window.shape[-1] >= weight.shape[1] - 1)


@cache
def _difference(function: Callable[..., Tensor]) -> float:
    """The largest difference on drawn numbers, over the spread: windows of several lengths, one token and many, with
    bias and activation and without."""
    with _disable_current_modes(), torch.no_grad(), torch.device("cpu"):
        return max(
            _error(function, *case) for case in ((4, 1, True, None), (3, 5, False, "silu"), (6, 2, True, "silu"))
        )


def _error(function: Callable[..., Tensor], window: int, new: int, with_bias: bool, activation: str | None) -> float:
    generator = torch.Generator().manual_seed(window)
    make = partial(torch.randn, generator=generator)
    parts = make(2, _CHANNELS, window), make(2, _CHANNELS, new)
    weight, bias = make(_CHANNELS, _KERNEL), make(_CHANNELS) if with_bias else None
    want = function(torch.cat(parts, -1), weight, bias, activation)[..., -new:]
    got = torch.ops.moec.causal_conv(parts[1], parts[0], weight, bias, silu=_ACTIVATIONS[activation])
    return apart(got, want)
