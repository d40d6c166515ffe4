"""What each layer of a decoder carries from token to token, read from its matrices: the rows of the key and value
projections are what one token adds to the cache."""

from __future__ import annotations

from typing import Any

from torch import nn

from moec.huggingface.reading.text_part import layers_of
from moec.planning.shape import State

_LATENT = ("kv_a_proj_with_mqa", "kv_a_proj")
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack", "qkv")
_KEYS = ("k_proj", "key", "k_lin", "key_proj", "wk")
_RECURRENT = ("linear_attn", "mamba", "mixer", "temporal_block", "short_conv", "conv", "delta_net")


def states_of(model: Any) -> tuple[tuple[State, ...], tuple[str, ...]]:
    """The states of a `PreTrainedModel` on the meta device by layer, and in words what could not be read."""
    if model.config.is_encoder_decoder or not model.can_generate():
        return (), ()
    config = model.config.get_text_config()
    states, unknown = [], []
    for number, layer in layers_of(model):
        found = _of_layer(layer, of_layer(config, number), number)
        if not found and _mixes_tokens(layer):
            unknown.append(f"what layer {number} ({type(layer).__name__}) carries from token to token")
        states += found
    return tuple(states), tuple(unknown)


def _of_layer(layer: nn.Module, config: Any, number: int) -> list[State]:
    """What one layer carries; nothing for one that reads another's keys and values (Gemma 3n)."""
    if any(getattr(m, "is_kv_shared_layer", False) for m in layer.modules()):
        return []
    window = _window(config, number)
    single = _one_key_for_all(layer)
    if single:
        return single
    growing, fixed = _latent(layer) or _keys_and_values(layer, config, window), _recurrent(layer, config)
    return [state for state in (growing, fixed) if state is not None]


def _mixes_tokens(layer: nn.Module) -> bool:
    """Whether a layer does anything across tokens, and not only to each of them (layers of Nemotron-H that are nothing
    but a feed-forward network)."""
    names = {path.rpartition(".")[2] for path, _ in layer.named_modules()}
    kinds = " ".join(type(m).__name__.lower() for m in layer.modules())
    return any(word in kinds for word in ("attention", "mamba", "delta", "conv", "recurrent")) or bool(
        names & {"self_attn", "attn", "attention"}
    )


def of_layer(config: Any, number: int) -> Any:
    """What a config says of one layer, where sizes differ from layer to layer (Gemma 4)."""
    own = getattr(config, "per_layer_config", None)
    return own[number] if own is not None and number < (getattr(config, "num_hidden_layers", 0) or 0) else config


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
    return State("compressed keys and values", rows + _rows(_index(layer), ("wk", "k_proj"))) if rows else None


def _index(layer: nn.Module) -> nn.Module:
    """What picks the keys of sparse attention, by keys of its own (DeepSeek-V3.2, MiniMax-M3); empty without one."""
    found = (m for path, m in layer.named_modules() if path.rpartition(".")[2] == "indexer")
    return next(found, None) or nn.Module()


def _one_key_for_all(layer: nn.Module) -> list[State]:
    """One vector that is key and value of all heads, and a row for every few tokens of what is further back
    (DeepSeek-V4): its size and that of its index's key are those of the norms that they go through."""
    attention = next((m for m in layer.modules() if hasattr(m, "kv_norm") and hasattr(m, "kv_proj")), None)
    if attention is None:
        return []
    window = int(getattr(attention, "sliding_window", 0) or 0)
    found = [State("compressed keys and values", _width(attention), window=window)]
    far: Any = getattr(attention, "compressor", None)
    if far is not None:
        index = getattr(far, "indexer", None)
        width = _width(far) + (_width(index) if index is not None else 0)
        found.append(State("compressed keys and values", width, every=int(far.compress_rate)))
    return found


def _width(module: Any) -> int:
    return int(module.kv_norm.weight.shape[0])


def _keys_and_values(layer: nn.Module, config: Any, window: int) -> State | None:
    keys = _rows(layer, _KEYS)
    if keys:
        values = _rows(layer, ("v_proj", "value", "v_lin", "value_proj", "wv")) or keys
        return State("keys and values", keys + values + _rows(_index(layer), _KEYS), window=window)
    both = _rows(layer, ("kv_proj",))  # queries of its mixture of attention heads lie with the experts (JetMoE)
    if both:
        return State("keys and values", both, window=window)
    fused = _rows(layer, _FUSED)
    if not fused:
        return None
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return State("keys and values", fused - heads * size, window=window)


def _recurrent(layer: nn.Module, config: Any) -> State | None:
    """A convolution's window and a matrix for each head; the sizes are those that the module itself names."""
    for path, module in layer.named_modules():
        if path.rpartition(".")[2] in _RECURRENT:
            window, matrices = _fixed(module)
            if window or matrices:
                return State("recurrent", 0, window + matrices, wide=matrices if _in_float32(config) else 0)
    return None


def _in_float32(config: Any) -> bool:
    """Whether a config asks for matrices in float32 (Qwen3.5, Nemotron-3); the window stays in the model's type."""
    return any("float32" in str(getattr(config, name, "")) for name in ("mamba_ssm_dtype", "mamba_ssm_cache_dtype"))


def _fixed(module: nn.Module) -> tuple[int, int]:
    """Elements of the convolution's window, and of the matrices of a gated delta net (Qwen3-Next) or of Mamba-2; 0 for
    what the module has not."""
    convolution = next((m for m in module.modules() if isinstance(m, nn.Conv1d)), None)
    window = convolution.weight.shape[0] * convolution.kernel_size[0] if convolution is not None else 0
    read = {name: getattr(module, name, 0) or 0 for name in ("num_v_heads", "head_k_dim", "head_v_dim")}
    delta = read["num_v_heads"] * read["head_k_dim"] * read["head_v_dim"]
    mamba = getattr(module, "intermediate_size", 0) or 0
    return int(window), int(delta or mamba * (getattr(module, "ssm_state_size", 0) or 0))


def _window(config: Any, number: int) -> int:
    """Tokens that a sliding window keeps in this layer; 0 for a layer that keeps all."""
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None) or 0
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return int(window) if number < len(kinds) and kinds[number] in ("sliding_attention", "chunked_attention") else 0
    used = getattr(config, "use_sliding_window", True)
    return int(window) if used and window else 0
