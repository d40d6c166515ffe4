"""The recurrent block of RecurrentGemma (https://arxiv.org/abs/2402.19427), whose convolution and recurrence go on from
any state for any number of tokens.

transformers' module knows two kinds of calls. One of several tokens begins a text, whatever its attributes hold; one of
a single token goes on. Padding before a text, in the call that begins it, is read by the convolution like any token.
Other padding, with which transformers never goes on, is nothing here: it changes no state and no token behind it.
"""

from __future__ import annotations

from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moec.huggingface.operators.gated_recurrence import adapt_gated_recurrence
from moec.huggingface.operators.padding import PADDING, Padding, behind
from moec.huggingface.operators.proven import apart, draw, modules_like, take_over

_PARTS = ("linear_x", "linear_y", "linear_out", "conv_1d", "conv1d_width", "rg_lru", "act_fn")
_BATCH, _HIDDEN, _HEADS = 2, 12, 2  # of the small copy
_CALLS = ((5, 1, 1), (1, 1), (2, 1))  # tokens of the calls of a text


def adapt_recurrent_blocks(model: nn.Module) -> int:
    """Let every such block of a captured copy, whose recurrence is one of moec's scans, go on from any state, in place;
    returns how many.

    Raises:
        MoecError: M206 when one has the parts of a known one and computes something else.
    """
    return take_over(modules_like(model, _PARTS), "forward", _forward, _difference)


def _forward(
    self: Any,
    input_states: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor | None = None,
    use_cache: bool = True,
    **_: Any,
) -> tuple[Tensor, None]:
    """Instead of the module's own; a state that is None begins with zeros where `use_cache` asks for one."""
    gate, x = self.act_fn(self.linear_y(input_states)), self.linear_x(input_states).transpose(1, 2)
    batch, channels = x.shape[:2]
    window = self.conv1d_state
    if window is None:
        window = x.new_zeros(batch, channels, self.conv1d_width - 1)
    if use_cache and self.rg_lru.recurrent_states is None:
        self.rg_lru.recurrent_states = x.new_zeros((batch, channels), dtype=torch.float32)
    padding: Padding | None = getattr(self, PADDING, None)
    ends = None
    if padding is not None:
        x, ends = x * padding.counts[:, None].to(x.dtype), padding.ends
    whole = torch.cat([window.to(x.dtype), x], -1)
    self.conv1d_state = behind(whole, window.shape[-1], ends) if use_cache else None
    mixed = torch.ops.moec.causal_conv(x, window, self.conv_1d.weight[:, 0], self.conv_1d.bias)
    hidden = self.rg_lru(mixed.transpose(1, 2), position_ids) * gate
    return self.linear_out(hidden), None


def _difference(module: Any) -> float:
    """The largest difference of outputs and states from the module's own on a small copy: without a cache, and in calls
    that begin a text and go on."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    own = _small(module, generator)
    for calls in _CALLS:
        worst = max(worst, *(_of_calls(own, calls, use_cache, generator) for use_cache in (True, False)))
    return worst


def _of_calls(own: Any, calls: tuple[int, ...], use_cache: bool, generator: torch.Generator) -> float:
    kept, adapted, done, worst = deepcopy(own), deepcopy(own), 0, 0.0
    adapt_gated_recurrence(adapted)
    adapted.forward = MethodType(_forward, adapted)
    for length in calls:
        hidden = torch.randn(_BATCH, length, _HIDDEN, generator=generator)
        places = torch.arange(done, done + length).expand(_BATCH, -1)
        with torch.no_grad():
            got, want = (each(hidden, places, None, use_cache)[0] for each in (adapted, kept))
        pairs = [(got, want)]
        if use_cache:
            pairs += [(adapted.conv1d_state, kept.conv1d_state)]
            pairs += [(adapted.rg_lru.recurrent_states, kept.rg_lru.recurrent_states)]
        worst, done = max(worst, *(apart(*pair) for pair in pairs)), done + length
    return worst


def _small(module: Any, generator: torch.Generator) -> Any:
    """A module of the same class, with drawn numbers and few of them."""
    from transformers import RecurrentGemmaConfig

    width, act = module.conv1d_width, module.act_fn
    config = RecurrentGemmaConfig(
        hidden_size=_HIDDEN, lru_width=_HIDDEN, num_attention_heads=_HEADS, num_hidden_layers=1, conv1d_width=width
    )
    made: Any = type(module)(config, 0).float().eval()
    draw(made, generator)
    made.act_fn = act
    return made
