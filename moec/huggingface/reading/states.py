"""What each layer of a decoder carries from token to token, read from its matrices: the rows of the key and value
projections are what one token adds to the cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from moec.planning.shape import State

_LAYER = re.compile(r"(.*\.)?(layers|h|blocks|block)\.(\d+)")
_LATENT = ("kv_a_proj_with_mqa", "kv_a_proj")
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack", "qkv")
_RECURRENT = ("linear_attn", "mamba", "mixer", "temporal_block", "short_conv", "conv", "delta_net")


def states_of(model: Any) -> tuple[tuple[State, ...], tuple[str, ...]]:
    """The states of a `PreTrainedModel` on the meta device by layer, and in words what could not be read."""
    if model.config.is_encoder_decoder or not model.can_generate():
        return (), ()
    config = model.config.get_text_config()
    states, unknown = [], []
    for number, layer in layers_of(model):
        found = _latent(layer) or _keys_and_values(layer, config, _window(config, number)) or _recurrent(layer)
        if found is None:
            unknown.append(f"what layer {number} ({type(layer).__name__}) carries from token to token")
        elif found.fixed or found.per_token:
            states.append(found)
    return tuple(states), tuple(unknown)


def layers_of(model: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """Every layer of a model with its number, in order."""
    for name, module in model.named_modules():
        match = _LAYER.fullmatch(name)
        if match and not (match[1] and _LAYER.match(match[1])):
            yield int(match[3]), module


def _rows(layer: nn.Module, names: tuple[str, ...]) -> int:
    """Output features of the first module of such a name, 0 where there is none."""
    for path, module in layer.named_modules():
        if path.rpartition(".")[2] in names and isinstance(getattr(module, "weight", None), nn.Parameter):
            shape = module.weight.shape
            return int(shape[-1] if type(module).__name__ == "Conv1D" else shape[0])  # GPT-2's lie the other way round
    return 0


def _latent(layer: nn.Module) -> State | None:
    """Multi-head latent attention: the compressed vector and the rotary key, which all heads share."""
    rows = _rows(layer, _LATENT)
    return State("compressed keys and values", rows) if rows else None


def _keys_and_values(layer: nn.Module, config: Any, window: int) -> State | None:
    keys = _rows(layer, ("k_proj", "key", "k_lin", "key_proj", "wk"))
    if keys:
        values = _rows(layer, ("v_proj", "value", "v_lin", "value_proj", "wv")) or keys
        return State("keys and values", keys + values, window=window)
    fused = _rows(layer, _FUSED)
    if not fused:
        return None
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return State("keys and values", fused - heads * size, window=window)


def _recurrent(layer: nn.Module) -> State | None:
    """A convolution's window and a matrix for each head; the sizes are those that the module itself names."""
    for path, module in layer.named_modules():
        if path.rpartition(".")[2] in _RECURRENT and (fixed := _fixed(module)):
            return State("recurrent", 0, fixed)
    return None


def _fixed(module: nn.Module) -> int:
    """Elements of the state of a gated delta net (Qwen3-Next) or of Mamba-2; 0 where the module is neither."""
    convolution = next((m for m in module.modules() if isinstance(m, nn.Conv1d)), None)
    window = convolution.weight.shape[0] * convolution.kernel_size[0] if convolution is not None else 0
    read = {name: getattr(module, name, 0) or 0 for name in ("num_v_heads", "head_k_dim", "head_v_dim")}
    delta = read["num_v_heads"] * read["head_k_dim"] * read["head_v_dim"]
    mamba = getattr(module, "intermediate_size", 0) or 0
    scan = mamba * (getattr(module, "ssm_state_size", 0) or 0)
    return int(window + (delta or scan)) if (delta or scan or window) else 0


def _window(config: Any, number: int) -> int:
    """Tokens that a sliding window keeps in this layer; 0 for a layer that keeps all."""
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None) or 0
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return int(window) if number < len(kinds) and kinds[number] in ("sliding_attention", "chunked_attention") else 0
    used = getattr(config, "use_sliding_window", True)
    return int(window) if used and window else 0
