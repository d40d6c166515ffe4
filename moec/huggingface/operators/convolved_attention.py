"""Compressed convolutional attention (Zaya, https://arxiv.org/abs/2510.04476), whose windows the cache cuts.

Queries and keys go through two short convolutions, and half of each value is that of the token before. A text's windows
are the last inputs of the convolutions and the last token's part of the next value. transformers' module cuts them
itself, at the end of a call, with whatever padding stands there. Here the cache is handed the new tokens, and knows
where each text of the call ends.

It is used where it says what the module itself says, on a small copy, in calls of several lengths.
"""

from __future__ import annotations

from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.huggingface.operators.proven import apart, modules_like, one_of_each, require_same, small_instance

_CALL = ["hidden_states", "past_key_values", "conv_mask"]
_PARTS = ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed", "conv_qk_depthwise", "conv_qk_grouped", "layer_idx")
_SMALL = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
_CALLS = (1, 1, 7, 2, 1)  # tokens of each, of the small copy
_BIASED = "lets padding before a text write into its windows (attention_bias), and its cache begins without"


def adapt_convolved_attention(model: nn.Module) -> int:
    """Let every such projection of a captured copy hand its cache the new tokens, in place; returns how many.

    Raises:
        MoecError: M206 when one has the parts of a known one and does not compute what it does.
    """
    found = modules_like(model, _PARTS, _CALL)
    for path, module in one_of_each(found).items():
        require_same(_difference(module), path, module)
    for module in found.values():
        module.forward = MethodType(_forward, module)
    return len(found)


def _forward(
    self: Any, hidden_states: Tensor, past_key_values: Any, conv_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each `[B, S, heads, D]`. conv_mask: `[B, S]`, 0 for padding."""
    if conv_mask is not None:
        hidden_states = hidden_states * conv_mask[:, :, None].to(hidden_states.dtype)
    mixed, mean = _projected(self, hidden_states)
    delayed = self.v_proj_delayed(hidden_states)
    window, before = _held(self, hidden_states, past_key_values)
    if before is None:
        before = self.v_proj_delayed(torch.zeros_like(hidden_states[:, 0]))
    if window is None:
        window = mixed.new_zeros(*mixed.shape[:2], self.conv_kernel_size)
    delayed, read = torch.cat([before.unsqueeze(1), delayed], 1), torch.cat([window, mixed], -1)
    if past_key_values is not None:  # which may write in place what was held
        _keep(self, past_key_values, mixed, delayed)
    mixed = self.conv_qk_grouped(self.conv_qk_depthwise(read)).transpose(1, 2)
    heads = (*hidden_states.shape[:-1], -1, self.head_dim)
    query, key = mixed.split([self.q_proj.out_features, self.k_proj.out_features], -1)
    value = torch.cat([self.v_proj_current(hidden_states), delayed[:, :-1]], -1)
    return query.view(heads) + mean, key.view(heads) + _of_groups(self, mean), value.view(heads)


def _projected(module: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What the convolutions mix, `[B, channels, S]`, and the mean of each query and its key, `[B, S, heads, D]`."""
    query, key = module.q_proj(hidden), module.k_proj(hidden)
    heads = (*hidden.shape[:-1], -1, module.head_dim)
    keys = key.view(heads).repeat_interleave(module.num_key_value_groups, 2)
    return torch.cat([query, key], -1).transpose(1, 2), (query.view(heads) + keys) * 0.5


def _of_groups(module: Any, mean: Tensor) -> Tensor:
    """The mean over the queries that share a key, `[B, S, key heads, D]`."""
    return mean.reshape(*mean.shape[:2], -1, module.num_key_value_groups, mean.shape[-1]).mean(3)


def _held(module: Any, hidden: Tensor, cache: Any) -> tuple[Tensor | None, Tensor | None]:
    """The window `[B, channels, W]` and the last token's delayed part `[B, D]`; None before the first token.

    Raises M206 where a state of zeros is not what a text begins with.
    """
    if cache is None:
        return None, None
    if module.v_proj_delayed.bias is not None:
        what = f"{type(module).__name__} {_BIASED}"
        raise MoecError("M206", what, f"layer {module.layer_idx}", "compile its forward alone with --no-cache")
    return cache.get_conv_state(module.layer_idx), cache.get_recurrent_state(module.layer_idx)


def _keep(module: Any, cache: Any, mixed: Tensor, delayed: Tensor) -> None:
    """Continue the states: behind the last token of each text that is no padding, where the cache knows it."""
    cache.update_conv_state(mixed, module.layer_idx, conv_kernel_size=module.conv_kernel_size)
    ends = getattr(cache.layers[module.layer_idx], "ends", None)
    if ends is None:
        last = delayed[:, -1]
    else:
        last = delayed.gather(1, ends[:, None, None].expand(-1, 1, delayed.shape[-1])).squeeze(1)
    cache.update_recurrent_state(last, module.layer_idx)


def _difference(module: Any) -> float:
    """The largest difference from the module's own on a small copy: without a cache, with padding, and call by call."""
    generator = torch.Generator().manual_seed(0)
    own = small_instance(module, module.config, _SMALL | {"layer_types": ["hybrid"]}, generator, 0)
    adapted = deepcopy(own)
    adapted.forward = MethodType(_forward, adapted)
    hidden = torch.randn(2, sum(_CALLS), _SMALL["hidden_size"], generator=generator)
    mask = torch.ones(hidden.shape[:2]).index_fill(1, torch.tensor([0, 1]), 0)
    with torch.no_grad():
        pairs = list(zip(adapted(hidden, None, mask), own(hidden, None, mask), strict=True))
        if own.v_proj_delayed.bias is None:
            pairs += _calls(own, adapted, hidden)
    return max(apart(*pair) for pair in pairs)


def _calls(own: Any, adapted: Any, hidden: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What both give in the same calls, each with a cache of transformers' own."""
    from transformers.cache_utils import DynamicCache, LinearAttentionLayer

    caches = [DynamicCache(), DynamicCache()]
    for held in caches:
        held.layers = [LinearAttentionLayer()]
    found: list[tuple[Tensor, Tensor]] = []
    start = 0
    for length in _CALLS:
        part = hidden[:, start : start + length]
        found += zip(adapted(part, caches[0]), own(part, caches[1]), strict=True)
        start += length
    return found
