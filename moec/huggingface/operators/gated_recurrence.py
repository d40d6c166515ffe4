"""The gated linear recurrence of RecurrentGemma (RG-LRU, https://arxiv.org/abs/2402.19427), which transformers writes
as a loop over tokens, as `moec::selective_scan`: right at any length.

Each channel decays by a gate of its own, and adds its input. That is a state of one number a channel, which decays at
the rate -1 for as long as the gate says.

It is used where it says what the module itself says, on drawn numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moec.huggingface.operators.padding import PADDING
from moec.huggingface.operators.proven import apart, modules_like, take_over

_PARTS = ("_rnn_scan", "recurrent_param", "recurrent_gate_weight")
_SHORTEST, _LONGEST = 1e-30, 200.0  # steps: after the longest, float32 has nothing left of a state
_BATCH, _CHANNELS, _LENGTHS = 2, 6, (2, 9)  # of the drawn numbers


def adapt_gated_recurrence(model: nn.Module) -> int:
    """Give every such recurrence of a captured copy a scan without a loop, in place; returns how many.

    Raises:
        MoecError: M206 when one has the parts of a known one and computes something else.
    """
    return take_over(modules_like(model, _PARTS), "_rnn_scan", _scan, _difference)


def _scan(
    self: nn.Module,
    hidden_states: Tensor,
    recurrent_gate: Tensor,
    reset: Tensor,
    recurrent_states: Tensor | None,
    acc_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor | None]:
    """What the recurrence gives, `[B, S, D]`, and the state after the last token, `[B, D]`; None where there was none
    before: a module would keep it in itself.

    Args:
        hidden_states: `[B, S, D]`. recurrent_gate: `[B, S, D]`, from 0 to 1. reset: `[B, S, 1]`, where a text begins.
        recurrent_states: `[B, D]` before the first token, or None.
    """
    batch, _, channels = hidden_states.shape
    inputs = hidden_states.to(acc_dtype)
    steps = (-recurrent_gate.to(acc_dtype).log()).masked_fill(reset, _LONGEST).clamp(_SHORTEST, _LONGEST)
    ones = torch.ones_like(inputs[..., :1])
    state = inputs.new_zeros(batch, channels) if recurrent_states is None else recurrent_states.to(acc_dtype)
    rates = inputs.new_full((channels, 1), -1.0)
    x, padding = inputs / steps, getattr(self, PADDING, None)
    if padding is not None:  # a step of 0 changes nothing
        steps = steps * padding.counts.unsqueeze(-1).to(steps.dtype)
    found, last = torch.ops.moec.selective_scan(x, steps, rates, ones, ones, state.unsqueeze(-1))
    return found.to(hidden_states.dtype), None if recurrent_states is None else last.squeeze(-1)


def _difference(module: Any) -> float:
    """From the module's own, with gates that are shut and open, in the middle of a text and where one begins."""
    generator, found = torch.Generator().manual_seed(0), 0.0
    for length in _LENGTHS:
        hidden = torch.randn(_BATCH, length, _CHANNELS, generator=generator)
        gates = torch.rand(_BATCH, length, _CHANNELS, generator=generator)
        gates[..., 0], gates[..., 1] = 1.0, 0.0
        reset = torch.rand(_BATCH, length, 1, generator=generator) > 0.7
        for state in (None, torch.randn(_BATCH, _CHANNELS, generator=generator)):
            got, want = _scan(module, hidden, gates, reset, state), module._rnn_scan(hidden, gates, reset, state)
            found = max(found, apart(got[0], want[0]), 0.0 if state is None else apart(got[1], want[1]))
    return found
