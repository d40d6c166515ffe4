"""Compressed attention (DeepSeek-V4, sections 2.3.1 and 2.3.2 of its report) without branches on lengths.

Every few tokens become one row, a weighted mean of what their projections say; a token sees the rows of closed groups
beside its window of recent tokens, all of them (heavily compressed) or those that an index chooses (sparse). The sparse
kind mixes two projections: one of the group's own tokens, one of the group before.

transformers branches on how many groups a call closes. Here all calls go one way, whether they close none, one or many.
It is used where it says what the module itself says, on a small copy, in calls that end inside of groups.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moec.huggingface.operators.compressed_states import Rows, compressed_layer
from moec.huggingface.operators.proven import apart, modules_like, require_same, small_instance

_CALL = ["hidden_states", "q_residual", "position_ids", "past_key_values", "layer_idx"]
_PARTS = ("compress_rate", "head_dim", "kv_proj", "gate_proj", "position_bias", "kv_norm", "rotary_emb")
_SMALL = {"hidden_size": 16, "q_lora_rank": 12, "index_n_heads": 3, "index_topk": 2}
_MOST = 3  # tokens in a group of the small copy
_CALLS = (1, 1, 7, 1, 2, 3, 6)


def adapt_compressed(model: nn.Module) -> int:
    """Give every compressor of a captured copy a forward without branches, in place; returns how many.

    Raises:
        MoecError: M206 when one has the parts of a known one and does not compute what it does.
    """
    found = modules_like(model, _PARTS, _CALL)
    proven: set[type] = set()
    for path, module in found.items():
        if type(module) not in proven and not hasattr(module, "scorer"):  # an index is proven inside of its compressor
            _prove(path, module, _kind(path, module))
            proven.add(type(module))
    for module in found.values():
        _adapt(module)
    return len(found)


def _kind(path: str, module: Any) -> str:
    """The kind of its layer's attention, as the config has it: the number of the layer is the first in the path."""
    number = next((int(part) for part in path.split(".") if part.isdigit()), 0)
    return str(module.rotary_emb.config.layer_types[number])


def _adapt(module: Any) -> None:
    forward = _index if hasattr(module, "scorer") else _sparse if hasattr(module, "indexer") else _heavy
    module.forward = MethodType(forward, module)


# ---------------------------------------------------------------------- the forwards
def _heavy(
    self: Any, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor, past_key_values: Any, layer_idx: int
) -> tuple[Tensor, Tensor]:
    """Rows `[B, 1, C, D]`, and the mask of those that each token sees."""
    rows = _compressed(self, hidden_states, _rows(self, "compressor", hidden_states, past_key_values, layer_idx))
    one = position_ids.new_ones(position_ids.shape).sum(-1)[:, None, None] == 1  # a call of one token sees all
    return rows.unsqueeze(1), _mask(self, _closed(self, rows, position_ids) | one, hidden_states)


def _sparse(
    self: Any, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor, past_key_values: Any, layer_idx: int
) -> tuple[Tensor, Tensor]:
    """The same of rows that an index chooses."""
    rows = _compressed(self, hidden_states, _rows(self, "compressor", hidden_states, past_key_values, layer_idx))
    seen = self.indexer(hidden_states, q_residual, position_ids, past_key_values, layer_idx)
    return rows.unsqueeze(1), _mask(self, seen, hidden_states)


def _index(
    self: Any, hidden_states: Tensor, q_residual: Tensor, position_ids: Tensor, past_key_values: Any, layer_idx: int
) -> Tensor:
    """Which rows each token sees, bool `[B, S, C]`: of those of closed groups, the ones with the largest scores."""
    batch, length = hidden_states.shape[:2]
    keys = _compressed(self, hidden_states, _rows(self, "indexer", hidden_states, past_key_values, layer_idx))
    cos, sin = self.rotary_emb(hidden_states, position_ids=position_ids, layer_type=self.rope_layer_type)
    query = self.q_b_proj(q_residual).view(batch, length, -1, self.head_dim).transpose(1, 2)
    query = _rotation(self)(query, cos, sin).transpose(1, 2)
    closed = _closed(self, keys, position_ids)
    scores = self.scorer(query, keys, hidden_states).masked_fill(~closed, float("-inf"))
    count = torch.sym_min(self.index_topk, scores.shape[-1])  # type: ignore[no-untyped-call]
    chosen = scores.topk(count, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True) & closed


def _closed(module: Any, rows: Tensor, position_ids: Tensor) -> Tensor:
    """Which groups are closed at each token, bool `[B, S, C]`."""
    number = torch.arange(rows.shape[1], device=rows.device)
    return number < ((position_ids + 1) // module.compress_rate)[..., None]


def _mask(module: Any, seen: Tensor, like: Tensor) -> Tensor:
    """`[B, 1, S, C]` in the form of the other masks: bool for moec's own attention, else added to the scores."""
    seen = seen.expand(like.shape[0], -1, -1).unsqueeze(1)
    if module.rotary_emb.config._attn_implementation == "moec":
        return seen
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, float("-inf"))


def _rotation(module: Any) -> Callable[..., Tensor]:
    found: Callable[..., Tensor] = sys.modules[type(module).__module__].apply_rotary_pos_emb
    return found


# ---------------------------------------------------------------------- groups of tokens to rows
def _rows(module: Any, name: str, hidden: Tensor, cache: Any, layer: int) -> Rows:
    """What the cache holds; nothing, where there is no cache."""
    if cache is not None:
        found: Rows = cache.layers[layer].rows.setdefault(name, _no_rows(module, hidden))
        return found.after(cache.layers[layer].keys.shape[2] - hidden.shape[1])
    return _no_rows(module, hidden)


def _no_rows(module: Any, hidden: Tensor) -> Rows:
    """Those before the first token."""
    width, rate, size = module.kv_proj.out_features, module.compress_rate, module.head_dim
    new = hidden.new_zeros
    batch = hidden.shape[0]
    overlap = new(batch, rate, 2 * size) if width > size else None
    return Rows(new(batch, 0, size), new(batch, rate - 1, 2 * width), overlap)


def _compressed(module: Any, hidden: Tensor, rows: Rows) -> Tensor:
    """The rows `[B, C, D]` of all groups that are closed after a call; `rows` holds what the next one needs."""
    rate = module.compress_rate
    total, first = rows.past + hidden.shape[1], rows.compressed.shape[1]
    tokens = torch.cat([rows.waiting, torch.cat([module.kv_proj(hidden), module.gate_proj(hidden)], -1)], 1)
    number = torch.arange(first, total // rate, device=hidden.device)  # of the groups that this call closes
    place = number[:, None] * rate + torch.arange(rate, device=hidden.device) - (rows.past - (rate - 1))
    values, gates = tokens[:, place].chunk(2, -1)
    gates = gates + module.position_bias
    if rows.overlap is not None:
        values, gates = _with_groups_before(rows, values, gates, number, module.head_dim)
    shares = gates.softmax(2, dtype=torch.float32).to(values.dtype)
    made = module.kv_norm((values * shares).sum(2))
    places = (number * rate).unsqueeze(0).expand(hidden.shape[0], -1)
    cos, sin = module.rotary_emb(made, position_ids=places, layer_type=module.rope_layer_type)
    made = _rotation(module)(made.unsqueeze(1), cos, sin).squeeze(1)
    rows.compressed = torch.cat([rows.compressed, made], 1)
    rows.waiting = _left_over(tokens, total, rate)
    return rows.compressed


def _with_groups_before(rows: Rows, values: Tensor, gates: Tensor, number: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Values and gates `[B, n, 2 rate, D]`: those of the group before with their first half, then the group's own with
    their second. Before the first group there is none."""
    assert rows.overlap is not None
    before = torch.cat([rows.overlap.unsqueeze(1), torch.cat([values[..., :size], gates[..., :size]], -1)], 1)
    rows.overlap = before[:, -1]
    old_values, old_gates = before[:, :-1].chunk(2, -1)
    none = (number == 0)[None, :, None, None]
    old_values, old_gates = old_values.masked_fill(none, 0.0), old_gates.masked_fill(none, float("-inf"))
    return torch.cat([old_values, values[..., size:]], 2), torch.cat([old_gates, gates[..., size:]], 2)


def _left_over(tokens: Tensor, total: int, rate: int) -> Tensor:
    """The tokens that no closed group has, `[B, rate - 1, ...]`, at the end; zeros before them."""
    place = torch.arange(rate - 1, device=tokens.device) + (total - (rate - 1))
    return tokens[:, 1 - rate :].masked_fill((place < total // rate * rate)[None, :, None], 0.0)


# ---------------------------------------------------------------------- the proof
def _prove(path: str, module: Any, kind: str) -> None:
    """Compare with the module's own forward on a small random instance of its class, call by call."""
    config = module.rotary_emb.config
    rates = {name: min(rate, _MOST) for name, rate in config.compress_rates.items()}
    sizes = _SMALL | {"compress_rates": rates, "layer_types": [kind], "num_hidden_layers": 1}
    generator = torch.Generator().manual_seed(0)
    own = small_instance(module, config, sizes | {"_attn_implementation": "eager"}, generator)
    with torch.no_grad():
        adapted = deepcopy(own)
        for inner in modules_like(adapted, _PARTS, _CALL).values():
            _adapt(inner)
        difference = _difference(own, adapted, own.rotary_emb.config, generator)
    require_same(difference, path, module)


def _difference(own: Any, adapted: Any, config: Any, generator: torch.Generator) -> float:
    """The largest difference of the rows, in their spread; infinite where other rows are seen."""
    from transformers import DynamicCache

    theirs: Any = DynamicCache(config=config)
    ours: Any = DynamicCache(config=config)
    ours.layers = [compressed_layer({})]
    keys, worst, end = torch.zeros(2, 1, sum(_CALLS), 1), 0.0, 0
    for length in _CALLS:
        start, end = end, end + length
        ours.layers[0].keys = keys[:, :, :end]
        hidden, query = (torch.randn(2, length, _SMALL[n], generator=generator) for n in ("hidden_size", "q_lora_rank"))
        places = torch.arange(start, end).expand(2, -1)
        want, bias = own(hidden, query, places, theirs, 0)
        got, mask = adapted(hidden, query, places, ours, 0)
        bias = torch.zeros_like(mask) if bias is None else bias
        if not torch.equal(bias, mask):
            return float("inf")
        worst = max(worst, apart(got, want))
    return worst
