"""The two parts of a transformers encoder-decoder as functions of flat tensors by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.states.cache import WAY_OUT, filling
from moec.huggingface.states.functional_cache import functional_cache
from moec.program.decoder_signature import (
    LOGITS,
    MASK,
    PAST,
    PAST_ENCODER,
    STATES,
    STATES_MASK,
    layer_of,
    past_names,
    present_name,
)
from moec.program.encoder_decoder import DECODER, DECODER_IDS, ENCODER, LAST, cross_names, is_cross
from moec.program.signature import Input

# what transformers' cross-attentions call that of which they make keys and values; decoders and layers hand it on
KEY_VALUE_STATES = ("key_value_states", STATES)


def encoder_call(model: Any) -> Callable[..., dict[str, Tensor]]:
    """The encoder alone: `last_hidden_state` `[batch, sequence, hidden]` of its inputs by name."""
    encoder = model.get_encoder()

    def call(**inputs: Tensor) -> dict[str, Tensor]:
        return {LAST: encoder(**inputs).last_hidden_state}

    return call


def decoder_call(model: Any, forward: Callable[..., Any], caches: Sequence[Input]) -> Callable[..., dict[str, Tensor]]:
    """The rest of the model, for a capture: logits and both caches from tokens, the encoder's states and both caches.

    Keys and values of the encoder's states are computed for those states only that the cache does not hold yet.
    """

    def call(*, input_ids: Tensor, encoder_hidden_states: Tensor, **more: Tensor) -> dict[str, Tensor]:
        held = more[cross_names(_layers(caches)[0], ENCODER)[0]].shape[2]
        cache = both_caches(more)
        with _without_held(model, held):
            logits = _forward(forward, input_ids, encoder_hidden_states, more.get(STATES_MASK), cache)
        return {LOGITS: logits, **present(cache, caches)}

    return call


def untouched_decoder_call(
    model: Any, forward: Callable[..., Any], caches: Sequence[Input]
) -> Callable[..., dict[str, Tensor]]:
    """The same of the untouched model with transformers' own caches, which knows ones of the encoder's states that are
    empty, or full: where some are held already, it makes all of them first, and those that are held take their
    places."""

    def call(*, input_ids: Tensor, encoder_hidden_states: Tensor, **more: Tensor) -> dict[str, Tensor]:
        mask, cache = more.get(STATES_MASK), own_caches(more)
        held = more[cross_names(_layers(caches)[0], ENCODER)[0]].shape[2]
        if held:
            made = own_caches({n: v[:, :, :0] for n, v in more.items() if n != STATES_MASK})
            _forward(forward, input_ids, encoder_hidden_states, mask, made)
            for layer, whole in zip(cache.cross_attention_cache.layers, made.cross_attention_cache.layers, strict=True):
                layer.keys = torch.cat([layer.keys, whole.keys[:, :, held:]], 2)
                layer.values = torch.cat([layer.values, whole.values[:, :, held:]], 2)
            cache.is_updated = dict.fromkeys(range(len(cache.cross_attention_cache.layers)), True)
        logits = _forward(forward, input_ids, encoder_hidden_states, mask, cache)
        return {LOGITS: logits, **present(cache, caches)}

    return call


def found_caches(model: Any, states: Tensor) -> tuple[Input, ...]:
    """The inputs for both caches of a model on the meta device, seen in a run on encoder's states `[B, T, width]`.

    Raises:
        MoecError: M206 when it keeps anything but keys and values, or leaves a cache empty.
    """
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    kind, cache = type(model).__name__, EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids = torch.zeros((states.shape[0], 3), dtype=torch.int64, device=states.device)
    with filling(model, "a cache of keys and values"):
        _forward(model.forward, ids, states, None, cache)
    found: list[Input] = []
    for number in range(len(cache.self_attention_cache.layers)):
        for whose, dimension, length, one in (
            (DECODER, PAST, 3, cache.self_attention_cache),
            (ENCODER, PAST_ENCODER, states.shape[1], cache.cross_attention_cache),
        ):
            found += _pair(kind, one.layers, number, whose, dimension, length)
    if not found:
        raise MoecError("M206", f"{kind} leaves its cache empty", "past_key_values", WAY_OUT)
    return tuple(found)


def _pair(kind: str, layers: Sequence[Any], number: int, whose: str, dimension: str, length: int) -> list[Input]:
    """The cache inputs of a layer. Raises M206 unless they are keys and values of so many tokens."""
    layer = layers[number] if number < len(layers) else None
    tensors: list[Any] = [getattr(layer, name, None) for name in ("keys", "values")]
    if any(t is None or t.dim() != 4 or t.shape[2] != length for t in tensors):
        what = f"{kind} keeps something else than keys and values of the {whose}'s tokens"
        raise MoecError("M206", what, f"layer {number}", WAY_OUT)
    names = cross_names(number, whose)
    return [
        Input(n, t.dtype, ("batch", t.shape[1], dimension, t.shape[3])) for n, t in zip(names, tensors, strict=True)
    ]


def _forward(forward: Callable[..., Any], ids: Tensor, states: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
    from transformers.modeling_outputs import BaseModelOutput

    encoded = BaseModelOutput(last_hidden_state=states)
    encoded.router_logits = encoded.router_probs = None  # models with experts ask for them, for losses
    masked = {} if mask is None else {MASK: mask}
    output = forward(
        **{DECODER_IDS: ids}, encoder_outputs=encoded, past_key_values=cache,
        use_cache=True, **masked,
    )  # fmt: skip
    logits: Tensor = output.logits
    return logits


def _layers(caches: Sequence[Input]) -> list[int]:
    return sorted({layer_of(c.name)[0] for c in caches})


def both_caches(tensors: Mapping[str, Tensor]) -> Any:
    """transformers' cache of an encoder-decoder that holds these keys and values, none of the encoder's states known to
    be complete: whether they are would hang on a size, and fix it in a capture."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    layers = sorted({layer_of(name)[0] for name in tensors if name.endswith("key")})
    found = {}
    for whose in (DECODER, ENCODER):
        pairs = [zip(past_names(n), cross_names(n, whose), strict=True) for n in layers]
        found[whose] = functional_cache({plain: tensors[name] for pair in pairs for plain, name in pair})
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache.self_attention_cache, cache.cross_attention_cache, cache.is_updated = found[DECODER], found[ENCODER], {}
    return cache


def own_caches(tensors: Mapping[str, Tensor]) -> Any:
    """The same with transformers' own layers, as `generate` fills them: nothing is in them before the first token."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for number in sorted({layer_of(name)[0] for name in tensors if name.endswith("key")}):
        for whose, one in ((DECODER, cache.self_attention_cache), (ENCODER, cache.cross_attention_cache)):
            keys, values = (tensors[name] for name in cross_names(number, whose))
            if keys.shape[2]:
                one.update(keys, values, number)
    return cache


def present(cache: Any, caches: Sequence[Input]) -> dict[str, Tensor]:
    """What continues each cache input, by name."""
    found = {}
    for spec in caches:
        one = cache.cross_attention_cache if is_cross(spec.name) else cache.self_attention_cache
        layer = one.layers[layer_of(spec.name)[0]]
        found[present_name(spec.name)] = layer.keys if spec.name.endswith("key") else layer.values
    return found


@contextmanager
def _without_held(model: Any, held: int) -> Iterator[None]:
    """Within, every cross-attention is given the states only whose keys and values are not held yet."""

    def rest(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        found = {name: kwargs[name] for name in KEY_VALUE_STATES if kwargs.get(name) is not None}
        return (args, {**kwargs, **{name: states[:, held:] for name, states in found.items()}}) if found else None

    names = {*KEY_VALUE_STATES}
    taking = {m for m in model.modules() if names & set(inspect.signature(m.forward).parameters)}
    inner = [m for m in taking if not any(other in taking for other in m.modules() if other is not m)]
    handles = [m.register_forward_pre_hook(rest, with_kwargs=True) for m in inner]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
