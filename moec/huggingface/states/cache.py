"""transformers' cache as flat tensors: the states of earlier tokens in, those of all tokens out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from moec.errors import MoecError
from moec.huggingface.operators.compressed_states import compressed_layer, compressed_states, has_rows, rate_of
from moec.huggingface.operators.kept_prompt import keeps_prompt, prompt_layer, rows_by_prompt
from moec.huggingface.operators.looped_index import looped_indexes
from moec.huggingface.operators.padding import Padding, ends_of
from moec.huggingface.operators.scans import scans_of
from moec.huggingface.states.cache_class import cache_class
from moec.huggingface.states.functional_cache import functional_cache, held_by, own_cache
from moec.huggingface.states.kept_in_modules import held_in, places_in_modules, state_in, taken_from
from moec.huggingface.states.state_kinds import Kind, is_of_a_model, states_of, unknown_state
from moec.program.decoder_signature import (
    IDS,
    LOGITS,
    MASK,
    PAST,
    POSITIONS,
    is_past,
    layer_of,
    new_tokens,
    past_name,
    positions,
    present_name,
)
from moec.program.program import META, Input
from moec.program.signature import PER

WAY_OUT = "compile its forward alone with --no-cache"
_CACHE, _STATES = "past_key_values", "cache_params"  # what forwards call it
_TEXTS, _TOKENS = 2, 3  # of the run that shows which states there are


def has_cache(model: Any) -> bool:
    """Whether this is a decoder that transformers generates text with: it returns logits and takes `past_key_values`,
    or, where it has scans alone, `cache_params`."""
    parameters = set(inspect.signature(model.forward).parameters)
    decoder = not model.config.is_encoder_decoder and model.main_input_name == IDS
    if not decoder or not model.can_generate() or MASK not in parameters:
        return False
    return {_CACHE, POSITIONS} <= parameters or (_STATES in parameters and any(map(scans_of, model.modules())))


def cache_signature(model: Any) -> tuple[Input, ...]:
    """The states of a model on the meta device as inputs, found by running its forward there with transformers' own
    cache.

    Raises:
        MoecError: M206 when a layer of its cache holds anything but the kinds of `state_kinds`.
    """
    name = type(model).__name__
    empty = [(path, m, key) for path, m in model.named_modules() for key, value in vars(m).items() if value is None]
    cache, own = _filled_cache(model), {type(layer) for layer in _empty_cache(model).layers}
    kept = [_kept(name, path, m, key) for path, m, key in empty if _is_of_texts(vars(m).get(key))]
    found = [spec for number, layer in enumerate(cache.layers) for spec in _of_layer(name, number, layer, own)]
    found = sorted([*kept, *found], key=lambda spec: layer_of(spec.name)[0])
    if not found:
        raise MoecError("M206", f"{name} leaves its cache empty", "past_key_values", WAY_OUT)
    return tuple(found)


def _filled_cache(model: Any) -> Any:
    cache = _empty_cache(model)
    ids = torch.zeros((_TEXTS, _TOKENS), dtype=torch.int64, device=META)
    mask = torch.ones_like(ids)
    with filling(model, "a cache"), _AllOnes():
        if _CACHE in inspect.signature(model.forward).parameters:  # told positions, as in each call of `cached_call`
            more = {_CACHE: cache, POSITIONS: positions(mask, _TOKENS)}
        else:
            more = {_STATES: cache}
        model(input_ids=ids, attention_mask=mask, use_cache=True, **more)
    return cache


@contextmanager
def filling(model: Any, cache: str) -> Iterator[None]:
    """Around a run without values that fills a cache; `cache` is what an error calls it.

    Raises:
        MoecError: M206 where the model does not run with it; what moec itself says of the model is left as it is.
    """
    try:
        with torch.no_grad():
            yield
    except MoecError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        what = f"{type(model).__name__} does not run with {cache}: {reason}"
        raise MoecError("M206", what, "past_key_values", WAY_OUT) from error


def _is_of_texts(value: Any) -> bool:
    """Whether this is a tensor with an entry for each text of the run that shows the states."""
    return isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == _TEXTS


def _kept(name: str, path: str, module: Any, key: str) -> Input:
    """A state that a module keeps in itself, as an input; the module is left without it."""
    value, state = vars(module)[key], state_in(path, key)
    if not state:
        what = f"{name} keeps a state of earlier calls in its own modules, where moec knows none of that name"
        raise MoecError("M206", what, f"{path}.{key}", WAY_OUT)
    setattr(module, key, None)
    return Input(state, value.dtype, ("batch", *value.shape[1:]))


def _empty_cache(model: Any) -> Any:
    """transformers' own cache for a model, but that no window cuts it."""
    from transformers import cache_utils

    cache = cache_class(model)()
    own = cache_utils.DynamicCache(config=model.config).layers
    first = next((number for number, layer in enumerate(own) if keeps_prompt(layer)), None)
    layers = [prompt_layer(n == first) if keeps_prompt(layer) else _whole(layer) for n, layer in enumerate(own)]
    # a model may have more layers than its config counts
    cache.layers, cache.layer_class_to_replicate = layers, cache_utils.DynamicLayer
    return cache


def _whole(layer: Any) -> Any:
    from transformers import cache_utils

    if has_rows(layer):
        return compressed_layer({})
    if type(layer) is cache_utils.DynamicSlidingWindowLayer:
        return cache_utils.DynamicLayer()  # type: ignore[no-untyped-call]
    windowed = getattr(cache_utils, "LinearAttentionAndSlidingWindowAttentionLayer", None)
    if windowed is not None and type(layer) is windowed:
        return cache_utils.LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return layer


class _AllOnes(TorchFunctionMode):
    """Answers what a model asks of a mask's values, which are nowhere on the meta device: that all are ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__ and args[0].device == META:
            return True
        return func(*args, **(kwargs or {}))


def _of_layer(name: str, number: int, layer: Any, own: set[type]) -> list[Input]:
    """The states of one layer; none of one that shares another's. `own`: the kinds that its cache has at first."""
    if has_rows(layer):
        return _compressed(number, compressed_states(layer))
    unknown = unknown_state(layer)
    if is_of_a_model(layer) and (unknown or type(layer) not in own):
        kind = ".".join(filter(None, (type(layer).__name__, unknown)))
        what = f"{name} caches something else than moec knows, in a layer of its own ({kind})"
        raise MoecError("M206", what, f"layer {number}", WAY_OUT)
    found = states_of(layer)
    if any(kind.axis is not None and not _grows(value, kind) for value, kind in found.values()):
        raise MoecError("M206", f"{name} caches something else than keys and values", f"layer {number}", WAY_OUT)
    return [
        Input(past_name(number, what), value.dtype, _dimensions(value, kind))
        for what, (value, kind) in found.items()
        if 0 not in value.shape  # latent keys without a rotated part
    ]


def _compressed(number: int, states: Mapping[str, Tensor]) -> list[Input]:
    """The states of a layer that has a row for every few tokens."""
    found = []
    for what, value in states.items():
        shape: list[int | str] = ["batch", *value.shape[1:]]
        if rate := rate_of(what, states):
            shape[2 if value.dim() == 4 else 1] = f"{PAST}{PER}{rate}" if rate > 1 else PAST
        found.append(Input(past_name(number, what), value.dtype, tuple(shape)))
    return found


def _grows(value: Tensor, kind: Kind) -> bool:
    axis = kind.axis or 0
    return value.dim() == (4 if axis == 2 else 3) and value.shape[axis] == _TOKENS


def _dimensions(value: Tensor, kind: Kind) -> tuple[int | str, ...]:
    return ("batch", *(PAST if k == kind.axis else n for k, n in enumerate(value.shape[1:], 1)))


def _put_positions(cache: Any, mask: Tensor, length: int) -> None:
    """Let the first layer with an index hold the positions of earlier tokens `[3, batch, past]`, where transformers
    keeps those of all layers. The mask says them, so that they are no state."""
    past = positions(mask, mask.shape[1])[:, : mask.shape[1] - length]
    layer = next(layer for layer in cache.layers if hasattr(layer, "indexer_position_ids"))
    layer.indexer_position_ids = past.expand(3, -1, -1)  # in time, height and width


def cached_call(
    forward: Callable[..., Any], caches: Sequence[Input], captured: bool = False, model: Any = None
) -> Callable[..., dict[str, Tensor]]:
    """A decoder's forward with flat tensors by name: `logits` and the states after the call, of token ids or of vectors
    in their place.

    Positions follow from the mask, as in transformers' `generate`. A call that is `captured` has moec's own cache; else
    transformers' layers do what they do for states whose shape stays, which hold nothing before the first token.
    `model`: see `functional_cache`.
    """
    of_states = _CACHE not in inspect.signature(forward).parameters
    keeps_positions = model is not None and bool(looped_indexes(model))
    places = {n: place for n, place in places_in_modules(model).items() if any(n == spec.name for spec in caches)}

    def call(*, attention_mask: Tensor, **given: Tensor) -> dict[str, Tensor]:
        past = {name: value for name, value in given.items() if is_past(name)}
        tokens = {name: value for name, value in given.items() if name not in past}
        new = new_tokens(tokens)
        began = attention_mask.shape[1] > new.shape[1] if not captured else True
        inside = {name: past[name] for name in places}
        cached = {name: value for name, value in past.items() if name not in places}
        if captured:
            ends = ends_of(attention_mask[:, -new.shape[1] :])
            cache = functional_cache(cached, model, ends, new.shape[1])
        else:
            cache = own_cache(cached, began, model)
        if of_states:  # and no attention, which would want the mask and the positions of a whole text
            more = {MASK: attention_mask[:, -new.shape[1] :], _STATES: cache}
        else:
            if keeps_positions:
                _put_positions(cache, attention_mask, new.shape[1])
            numbers = tokens.pop(POSITIONS, None)  # a decoder of vectors may be told them
            numbers = positions(attention_mask, new.shape[1]) if numbers is None else numbers
            more = {MASK: attention_mask, POSITIONS: numbers, _CACHE: cache}
        padding = Padding.of(attention_mask, new.shape[1]) if places and captured else None
        with held_in(places, inside, padding):
            output, left = forward(**tokens, use_cache=True, **more), taken_from(places)
        present = {}
        for spec in caches:
            number, what = layer_of(spec.name)
            value = left.get(spec.name) if spec.name in places else held_by(cache.layers[number]).get(what)
            if value is None:  # the state before the call would be a wrong answer
                what = f"layer {number} of its cache no longer holds its {what} after a call"
                raise MoecError("M206", what, spec.name, WAY_OUT)
            present[present_name(spec.name)] = value.to(past[spec.name].dtype)
        return {LOGITS: output.logits, **present}

    return call if captured else rows_by_prompt(call, caches)
