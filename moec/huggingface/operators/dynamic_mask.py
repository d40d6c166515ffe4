"""Attention that sees the keys with the largest weights alone (Doge), without a branch on the length.

Each key's value gives it a number that is added to its scores, and a token sees so many keys with the largest ones. The
module asks whether there are more keys than that. Here as many are taken as there are at most.

It is used where it says what the module itself says, on drawn numbers, and where a text may be longer than a token
sees: else nothing is ever left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moec.huggingface.operators.proven import apart, modules_like, take_over

_PARTS = ("prepare_dynamic_mask", "keep_window_size", "dt_proj")
_HEADS, _TOKENS, _KEYS, _KEPT = 2, 4, (3, 5, 9), 5  # of the drawn numbers


def adapt_dynamic_mask(model: Any) -> int:
    """Give every such attention of a captured copy a mask without the branch, in place; returns how many.

    Raises:
        MoecError: M206 when one has the parts of a known one and masks other keys.
    """
    found = modules_like(model, _PARTS)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    cut = {path: module for path, module in found.items() if context is None or module.keep_window_size < context}
    return take_over(cut, "prepare_dynamic_mask", _mask, _difference)


def _mask(
    self: nn.Module,
    hidden_states: Tensor,
    dt_states: Tensor,
    keep_window_size: int = 2048,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """What is added to the scores, `[B, G, S, T]`: each key's number, and the lowest there is for those not seen.

    Args:
        hidden_states: `[B, S, H]`. dt_states: `[B, G, T]`. attention_mask: `[B, 1, S, T]`, bool or added.
    """
    lowest, length = torch.finfo(hidden_states.dtype).min, dt_states.shape[-1]
    mask = dt_states[:, :, None, :].expand(-1, -1, hidden_states.shape[1], -1)
    if attention_mask is not None:
        hidden = ~attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
        mask = mask.masked_fill(hidden[..., :length], lowest)
    kept = mask.topk(torch.sym_min(keep_window_size, length), dim=-1).indices  # type: ignore[no-untyped-call]
    seen = torch.zeros_like(mask, dtype=torch.bool).scatter(-1, kept, True)
    return mask.masked_fill(~seen, lowest)


def _difference(module: Any) -> float:
    """From the module's own, for fewer keys than a token sees, as many, and more; with both kinds of mask."""
    generator, found = torch.Generator().manual_seed(0), 0.0
    for length in _KEYS:
        hidden, numbers = torch.empty(1, _TOKENS, 8), torch.rand(1, _HEADS, length, generator=generator)
        may = torch.rand(1, 1, _TOKENS, length, generator=generator) > 0.3
        for mask in (None, may, torch.zeros(may.shape).masked_fill(~may, torch.finfo(torch.float32).min)):
            want = module.prepare_dynamic_mask(hidden, numbers, _KEPT, mask)
            got = _mask(module, hidden, numbers, _KEPT, mask)
            same = torch.equal(want < -1, got < -1)  # numbers are from 0 to 1
            found = max(found, apart(got.clamp(min=-1), want.clamp(min=-1)) if same else float("inf"))
    return found
