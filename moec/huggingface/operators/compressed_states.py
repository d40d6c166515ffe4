"""What a layer with compressed attention carries from token to token (DeepSeek-V4), as flat states and in a cache.

Beside its keys, which are its values too, it has for the attention, and once more for its index (`index_`):

- `compressed`: a row for every `rate` tokens, `[batch, past_sequence // rate, size]`;
- `waiting`: the projections of tokens that no row has yet, at the end, `[batch, rate - 1, ...]`;
- `overlap`: those of the last row's tokens that the next row mixes in, `[batch, rate, ...]`, in sparse layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.huggingface.operators.own_layers import unregistered

_PREFIXES = {"compressor": "", "indexer": "index_"}
_OWN = ("compressed_kv", "buffer_kv", "buffer_gate", "entry_count", "compress_rate", "update_compressor_states")


@dataclass
class Rows:
    """The rows of one compressor, see the module; `past`: tokens that they and those that wait stand for."""

    compressed: Tensor
    waiting: Tensor
    overlap: Tensor | None = None
    past: int = 0

    def after(self, past: int) -> Rows:
        """These rows, after so many tokens."""
        self.past = past
        return self


def has_rows(layer: Any) -> bool:
    """Whether a layer of a cache is of this kind, transformers' own or moec's."""
    return hasattr(layer, "rows") or all(hasattr(layer, name) for name in _OWN)


def rate_of(what: str, states: Mapping[str, Tensor]) -> int:
    """How many tokens a row of a state stands for; 0 for one whose shape stays."""
    if what == "key":
        return 1
    return states[what.replace("compressed", "waiting")].shape[1] + 1 if what.endswith("compressed") else 0


def compressed_layer(rows: Mapping[str, Rows]) -> Any:
    """moec's own layer: keys at their full length, windows being the mask's business, and these rows by compressor."""
    layer = _functional()()
    layer.rows = dict(rows)
    return layer


def filled_layer(template: Any, states: Mapping[str, Tensor], captured: bool) -> Any:
    """A layer that holds flat states, by name within the layer: moec's own for a capture, else one of transformers', as
    `template` is one, but that no window cuts its keys."""
    layer = compressed_layer(_rows(states)) if captured else _filled(template, states)
    layer.keys = layer.values = states["key"]
    layer.dtype, layer.device, layer.is_initialized = layer.keys.dtype, layer.keys.device, True
    return layer


def compressed_states(layer: Any) -> dict[str, Tensor]:
    """The flat states of a layer of either kind, by name within the layer."""
    rows = getattr(layer, "rows", None)
    if rows is None:
        return _own(layer)
    found = {"key": layer.keys}
    for name, held in rows.items():
        prefix = _PREFIXES[name]
        found |= {f"{prefix}compressed": held.compressed, f"{prefix}waiting": held.waiting}
        found |= {} if held.overlap is None else {f"{prefix}overlap": held.overlap}
    return found


def _rows(states: Mapping[str, Tensor]) -> dict[str, Rows]:
    return {
        name: Rows(states[f"{prefix}compressed"], states[f"{prefix}waiting"], states.get(f"{prefix}overlap"))
        for name, prefix in _PREFIXES.items()
        if f"{prefix}compressed" in states
    }


# ---------------------------------------------------------------------- transformers' layers
def _own(layer: Any) -> dict[str, Tensor]:
    found = {"key": layer.keys}
    for name, compressed in layer.compressed_kv.items():
        prefix, waiting = _PREFIXES[name], torch.cat([layer.buffer_kv[name], layer.buffer_gate[name]], -1)
        missing = layer.compress_rate - 1 - waiting.shape[1]
        found |= {f"{prefix}compressed": compressed, f"{prefix}waiting": F.pad(waiting, (0, 0, missing, 0))}
        if name in getattr(layer, "overlap_kv", {}):
            found[f"{prefix}overlap"] = _overlap(layer, name, compressed)
    return found


def _overlap(layer: Any, name: str, like: Tensor) -> Tensor:
    """What the next row mixes in; zeros before the first."""
    if layer.overlap_kv[name] is None:
        return like.new_zeros(like.shape[0], layer.compress_rate, 2 * like.shape[-1])
    return torch.cat([layer.overlap_kv[name], layer.overlap_gate[name]], -1)


def _filled(template: Any, states: Mapping[str, Tensor]) -> Any:
    layer, past = deepcopy(template), states["key"].shape[2]
    kind: Any = type(template)
    layer.__class__ = _whole(kind)
    for name, rows in _rows(states).items():
        left = past % layer.compress_rate
        waiting = rows.waiting[:, rows.waiting.shape[1] - left :]
        layer.buffer_kv[name], layer.buffer_gate[name] = waiting.chunk(2, -1)
        layer.compressed_kv[name], layer.entry_count[name] = rows.compressed, past // layer.compress_rate
        if rows.overlap is not None and layer.entry_count[name]:
            layer.overlap_kv[name], layer.overlap_gate[name] = rows.overlap.chunk(2, -1)
    return layer


@cache
def _functional() -> Any:
    from transformers.cache_utils import DynamicLayer

    return _with_all_keys(DynamicLayer)


@cache
def _whole(own: Any) -> Any:
    return _with_all_keys(own)


@unregistered()
def _with_all_keys(base: Any) -> Any:
    """A kind of layer whose keys are never cut, and are its values."""
    from transformers.cache_utils import DynamicLayer

    class Whole(base):  # type: ignore[misc]
        is_sliding = False
        keys: Any

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            self.keys = self.values = key_states if self.keys is None else torch.cat([self.keys, key_states], 2)
            self.is_initialized = True
            return self.keys, self.values

        def get_seq_length(self) -> int:
            # the original asks whether there are any
            return 0 if self.keys is None else self.keys.shape[2]

        get_mask_sizes = DynamicLayer.get_mask_sizes

    return Whole
