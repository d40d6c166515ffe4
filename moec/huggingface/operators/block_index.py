"""An index over blocks of keys (MiniMax-M3) without a branch on the length.

A token sees the blocks of keys that score highest, the block of a key that scores highest counting for all of its keys,
and always those just before it. The module pads the last block where it is not full, which it asks of the length. Here
the last key stands for those that are missing: the largest of a block stays what it is.

It is used where it says what the module itself says, on a small copy, for lengths that end in and between blocks.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moec.huggingface.operators.attention import PADDING_COUNTS
from moec.huggingface.operators.proven import modules_like, one_of_each, require_choice, small_instance

_CALL = ["hidden_states", "position_embeddings", "past_key_values", "position_ids"]
_PARTS = ("block_size", "topk_blocks", "local_blocks", "num_heads", "head_dim", "q_proj", "k_proj", "q_norm", "k_norm")
_HIDDEN, _HEADS, _SIZE, _BLOCK, _TOP = 16, 2, 8, 3, 2  # of the small copy
_LENGTHS = (1, 2, 3, 4, 7, 9, 14)


def adapt_block_index(model: nn.Module) -> int:
    """Give every such index of a captured copy a forward without the branch, in place; returns how many.

    Raises:
        MoecError: M206 when one has the parts of a known one and chooses other blocks.
    """
    found = modules_like(model, _PARTS, _CALL)
    for path, module in one_of_each(found).items():
        require_choice(_chooses_the_same(module), path, module, "blocks")
    for module in found.values():
        module.forward = MethodType(_forward, module)
    for module in model.modules() if found else ():
        if hasattr(module, "indexer"):  # the keys of padding count for their blocks, in the layers after this one
            setattr(module, PADDING_COUNTS, True)
    return len(found)


def _forward(
    self: Any, hidden_states: Tensor, position_embeddings: Any, past_key_values: Any, position_ids: Tensor
) -> Tensor:
    """The chosen blocks `[B, H, S, K]`, -1 where there are fewer."""
    batch, length = hidden_states.shape[:2]
    query = self.q_norm(self.q_proj(hidden_states).view(batch, length, -1, self.head_dim)).transpose(1, 2)
    keys = self.k_norm(self.k_proj(hidden_states).view(batch, length, 1, self.head_dim)).transpose(1, 2)
    rotate = sys.modules[type(self).__module__].apply_rotary_pos_emb
    query, keys = rotate(query, keys, *(part[..., : self.head_dim] for part in position_embeddings))
    if past_key_values is not None:
        keys = past_key_values.layers[self.layer_idx].update_index(keys)
    scores = torch.matmul(query.float(), keys.float().transpose(-1, -2))
    key = torch.arange(keys.shape[2], device=keys.device)
    scores = scores.masked_fill(key > position_ids[:, None, :, None], float("-inf"))
    blocks = (keys.shape[2] + self.block_size - 1) // self.block_size
    place = torch.arange(blocks, device=keys.device)[:, None] * self.block_size
    place = place + torch.arange(self.block_size, device=keys.device)
    best = scores[..., place.clamp(max=keys.shape[2] - 1)].amax(-1)
    near = torch.arange(blocks, device=keys.device) - (position_ids // self.block_size)[..., None]
    near = (near <= 0) & (near > -self.local_blocks)  # the token's own block, and those before it
    best = best.masked_fill(near.unsqueeze(1), float("inf"))
    count = torch.sym_min(self.topk_blocks, blocks)  # type: ignore[no-untyped-call]
    found, chosen = best.topk(count, dim=-1)
    return chosen.masked_fill(found == float("-inf"), -1)


def _chooses_the_same(module: Any) -> bool:
    """Whether a small random instance of its class chooses the same blocks."""
    sizes = {
        "hidden_size": _HIDDEN,
        "index_n_heads": _HEADS,
        "index_head_dim": _SIZE,
        "index_block_size": _BLOCK,
        "index_topk_blocks": _TOP,
    }
    generator = torch.Generator().manual_seed(0)
    own = small_instance(module, module.config, sizes, generator, 0)
    with torch.no_grad():
        return all(_agree(own, length, generator) for length in _LENGTHS)


def _agree(own: Any, length: int, generator: torch.Generator) -> bool:
    hidden = torch.randn(2, length, _HIDDEN, generator=generator)
    places = torch.arange(length)
    angles = places[None, :, None] * torch.rand(_SIZE // 4, generator=generator).repeat(2)
    given = hidden, (angles.cos(), angles.sin()), None, places.expand(2, -1)
    return torch.equal(own(*given), _forward(own, *given))
