"""An index over pools of keys (Qwen4-exp) that looks at one token after the other, for all tokens at once.

The keys that a token may see are counted from the text's first on, and so many of them are a pool. A token sees the
keys of the pools that score highest, and those behind its last full pool. The module makes that choice in a loop over
texts and tokens, on lists whose lengths the mask says. Since a token sees what earlier ones see, and itself, the pools
are the same for all of them. Here they are made once, and a token has those that are full where it stands.

It is used where it says what the module itself says, on a small copy, with padding before texts, inside and behind, in
one call and in two with a cache, with masks of truth values and of numbers. A window over tokens, where a later token
does not see what earlier ones saw, moves the pools with it: models whose file makes such masks are refused.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.huggingface.operators.proven import REPORT, modules_like, require_choice, small_instance

_CALL = ["hidden_states", "position_embeddings", "attention_mask", "past_key_values"]
_PARTS = ("index_qk_proj", "token_budget", "compress_ratio", "block_topk", "index_head_dim", "q_layernorm")
_SMALL = {
    "hidden_size": 16,
    "indexer_n_heads": 16,  # with few, scores of zero tie
    "indexer_head_dim": 8,
    "indexer_budget": 6,
    "indexer_compress_ratio": 3,
}
_MASKS = {"create_causal_mask", "create_recurrent_attention_mask"}  # in which tokens see what earlier ones see
_LENGTHS, _ROTATED = (1, 2, 3, 7, 12, 17), 4  # tokens, and numbers of a head that turn, of the small copy


def looped_indexes(model: nn.Module) -> dict[str, Any]:
    """The modules of this kind, by their paths; a model with any hands its cache the positions of all tokens."""
    return modules_like(model, _PARTS)


def adapt_looped_index(model: Any) -> int:
    """Give every such index of a captured copy a forward without loops, in place; returns how many.

    Raises:
        MoecError: M206 when one has the parts of a known one and chooses other tokens, or its model may have masks with
            a window.
    """
    found = looped_indexes(model)
    for path, module, config in _one_of_each(model, found):
        _require_no_window(path, module)
        require_choice(_chooses_the_same(module, config), path, module, "tokens")
    for module in found.values():
        module.forward = MethodType(_forward, module)
    return len(found)


def _one_of_each(model: Any, found: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The first index of each class and config, with its path and the config. It keeps none: that of the nearest module
    around it is meant."""
    firsts: dict[tuple[type, int], tuple[str, Any, Any]] = {}
    for path, module in found.items():
        around = [model]
        for name in path.split("."):
            around.append(getattr(around[-1], name))
        config = next(m.config for m in reversed(around) if hasattr(m, "config")).get_text_config()
        firsts.setdefault((type(module), id(config)), (path, module, config))
    return list(firsts.values())


def _require_no_window(path: str, module: nn.Module) -> None:
    """Raise M206 where the file of a module makes masks in which a token may not see what earlier ones see."""
    names = vars(sys.modules[type(module).__module__])
    others = sorted(n for n in names if n.startswith("create_") and n.endswith("_mask") and n not in _MASKS)
    if others:
        what = f"{type(module).__name__} may have masks with a window, from {others[0]}"
        raise MoecError("M206", what, path, REPORT)


def _forward(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor,
    past_key_values: Any,
) -> Tensor:
    """Which keys each token sees, bool `[B, 1, S, T]`.

    Args:
        hidden_states: `[B, S, H]`. position_embeddings: cosines and sines `[B, T, D]` of all tokens.
        attention_mask: `[B, 1, S, T]`, bool or added to scores; a token sees what earlier ones of its text see.
    """
    batch, length = hidden_states.shape[:2]
    heads = self.index_qk_proj(hidden_states).view(batch, length, -1, self.index_head_dim)
    query, keys = heads[:, :, : self.index_n_heads], heads[:, :, self.index_n_heads]
    if past_key_values is not None:
        keys = past_key_values.update_indexer(keys, self.layer_idx)
    visible = (attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0)[:, 0]
    size, total = self.compress_ratio, keys.shape[1]
    pools = (total + size - 1) // size
    place = visible.any(1).long().cumsum(-1) - 1  # of each key among those that a text has, [B, T]
    full = (visible.sum(-1) // size)[..., None]  # pools of each token, [B, S, 1]
    scores = _scores(self, query, _pooled(self, keys, place, visible.any(1), pools), position_embeddings)
    number = torch.arange(pools, device=keys.device)
    scores = scores.masked_fill(number >= full, float("-inf"))
    chosen = scores.topk(torch.sym_min(self.block_topk, pools), dim=-1).indices  # type: ignore[no-untyped-call]
    picked = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True) & (number < full)
    pool = place.clamp(min=0)[:, None, :] // size  # of each key, [B, 1, T]
    seen = picked.gather(-1, pool.expand(-1, length, -1)) | (pool >= full)
    return (seen & visible).unsqueeze(1)


def _pooled(module: Any, keys: Tensor, place: Tensor, present: Tensor, pools: Any) -> tuple[Tensor, Tensor]:
    """The mean key of each pool `[B, P, D]`, and where its first key stands `[B, P]`; of a pool that is not full,
    anything.

    Args:
        keys: `[B, T, D]`. place: `[B, T]`, among those that are `present`.
    """
    batch, total, width = keys.shape
    places = pools * module.compress_ratio
    at = torch.arange(total, device=keys.device).expand(batch, -1)
    order = place.new_zeros(batch, places + 1).scatter(1, place.masked_fill(~present, places), at)[:, :places]
    found = keys.gather(1, order[..., None].expand(-1, -1, width)).reshape(batch, pools, -1, width)
    return found.float().mean(2).to(keys.dtype), order.reshape(batch, pools, -1)[..., 0]


def _scores(
    module: Any, query: Tensor, pooled: tuple[Tensor, Tensor], position_embeddings: tuple[Tensor, Tensor]
) -> Tensor:
    """What each pool is worth to each token, `[B, S, P]`; a pool has the position of its first key."""
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb
    (keys, first), length = pooled, query.shape[1]
    cos, sin = position_embeddings
    query = rotate(module.q_layernorm(query), cos=cos[:, -length:], sin=sin[:, -length:], unsqueeze_dim=2)
    at = first[..., None].expand(-1, -1, cos.shape[-1])
    keys = module.k_layernorm(keys).unsqueeze(2)
    keys = rotate(keys, cos=cos.gather(1, at), sin=sin.gather(1, at), unsqueeze_dim=2).squeeze(2)
    scores = query.float().flatten(1, 2) @ keys.float().transpose(-1, -2)
    return scores.unflatten(1, (length, module.index_n_heads)).relu().sum(2) / module.index_head_dim**0.5


# ---------------------------------------------------------------------- the proof
def _chooses_the_same(module: Any, config: Any) -> bool:
    """Whether a small random instance of its class chooses the same tokens, if it is called as this one is."""
    if not modules_like(module, _PARTS, _CALL):
        return False
    generator = torch.Generator().manual_seed(0)
    own = small_instance(module, config, _SMALL, generator, 0)
    with torch.no_grad():
        return all(_agree(own, length, generator) for length in _LENGTHS)


def _agree(own: Any, length: int, generator: torch.Generator) -> bool:
    """Whether both choose the same in texts that are whole, padded before, inside, and behind, in one call and in two,
    and where the mask is added to scores."""
    hidden = torch.randn(4, length, _SMALL["hidden_size"], generator=generator)
    part, real = length // 3, torch.ones(4, length, dtype=torch.bool)
    real[1, :part], real[2, part : 2 * part], real[3, length - part :] = False, False, False
    visible = (torch.ones(length, length, dtype=torch.bool).tril() & real[:, None]).unsqueeze(1)
    angles = torch.rand(4, length, _ROTATED, generator=generator)
    added = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
    whole, twice = [0, length], sorted({0, length // 2, length})
    for mask, cuts in ((visible, whole), (added, whole), (visible, twice), (added, twice)):
        caches = [_cache() if cuts is twice else None for _ in range(2)]
        for first, last in pairwise(cuts):
            seen = angles[:, :last]
            given = hidden[:, first:last], (seen.cos(), seen.sin()), mask[:, :, first:last, :last]
            wanted = own(*given, caches[0]) & visible[:, :, first:last, :last]
            if not torch.equal(wanted, _forward(own, *given, caches[1])):
                return False
    return True


def _cache() -> Any:
    from transformers.cache_utils import DynamicCache, DynamicIndexedLayer

    cache = DynamicCache()
    cache.layers.append(DynamicIndexedLayer())  # type: ignore[no-untyped-call]
    return cache
