"""An index over pools of tokens (GLM-5-Next) whose sizes do not depend on data.

Every few tokens are a pool, from a text's first token on, and a token sees those of the pools that score highest. The
module drops pools that are full in no text of a batch, and their number is known from the data alone. Here they stay:
they are masked as they are anyway, and none is ever chosen before a full one.

It is used where it says what the module itself says, on a small copy, with padding on either side.
"""

from __future__ import annotations

from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moec.huggingface.operators.proven import modules_like, one_of_each, require_choice, small_instance

_CALL = ["hidden_states", "q_resid", "attention_mask", "past_key_values"]
_PARTS = ("index_kpool", "index_kpool_compress_ape", "index_kpool_compress_gate", "get_pooled_states", "head_dim")
_SMALL = {
    "hidden_size": 16,
    "q_lora_rank": 12,
    "index_n_heads": 16,  # with few, scores of zero tie
    "index_head_dim": 8,
    "index_kpool": 3,
    "index_topk": 6,
}
_LENGTHS = (1, 2, 3, 7, 12, 16)


def adapt_pooled_index(model: nn.Module) -> int:
    """Give every such index of a captured copy pools without a choice by data, in place; returns how many.

    Raises:
        MoecError: M206 when one has the parts of a known one and chooses other tokens.
    """
    found = modules_like(model, _PARTS, _CALL)
    for path, module in one_of_each(found).items():
        require_choice(_chooses_the_same(module), path, module, "tokens")
    for module in found.values():
        module.get_pooled_states = MethodType(_all_pools, module)
    return len(found)


def _all_pools(self: Any, packed_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys `[B, P, D]` of all pools, the tokens of each `[B, P, size]` (-1 where there is none), and which are full."""
    keys, gates, valid = torch.split(packed_states, [self.head_dim, self.head_dim, 1], -1)
    valid = valid.bool().squeeze(-1)
    (batch, length), size, device = valid.shape, self.index_kpool, valid.device
    first = torch.where(valid.any(-1), valid.long().argmax(-1), length)
    number = torch.arange((length + size - 1) // size, device=device)
    place = first[:, None, None] + (number[:, None] * size + torch.arange(size, device=device))
    text, safe = torch.arange(batch, device=device)[:, None, None], place.clamp(0, length - 1)
    inside = valid[text, safe] & (place < length)
    logits = gates[text, safe].float() + self.index_kpool_compress_ape.float()
    shares = torch.nan_to_num(logits.masked_fill(~inside[..., None], float("-inf")).softmax(2)).to(keys.dtype)
    return (shares * keys[text, safe]).sum(2), place.masked_fill(~inside, -1), inside.all(-1)


# ---------------------------------------------------------------------- the proof
def _chooses_the_same(module: Any) -> bool:
    """Whether a small random instance of its class chooses the same tokens."""
    generator = torch.Generator().manual_seed(0)
    own = small_instance(module, module.config, _SMALL, generator, 0)
    with torch.no_grad():
        adapted = deepcopy(own)
        adapted.get_pooled_states = MethodType(_all_pools, adapted)
        return all(_agree(own, adapted, length, generator) for length in _LENGTHS)


def _agree(own: Any, adapted: Any, length: int, generator: torch.Generator) -> bool:
    """Whether both choose the same sets of tokens in texts that are whole, and padded on the left and on the right."""
    hidden, query = (
        torch.randn(3, length, _SMALL[name], generator=generator) for name in ("hidden_size", "q_lora_rank")
    )
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[1, : length // 3], mask[2, length - length // 3 :] = False, False
    want, got = (module(hidden, query, mask, None).sort(-1).values for module in (own, adapted))
    return torch.equal(want, got)
