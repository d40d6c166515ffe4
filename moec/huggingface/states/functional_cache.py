"""transformers' cache over tensors that are there from the start: nothing asks whether a layer is empty, and nothing is
written in place, so that one graph serves a prompt and what follows it.

A state of zeros is what transformers takes for none: a convolution pads with zeros, a recurrence starts from them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from moec.errors import MoecError
from moec.huggingface.operators.compressed_states import compressed_states, filled_layer, has_rows
from moec.huggingface.operators.convolutions import PARTS
from moec.huggingface.operators.kept_prompt import (
    begin_prompts,
    filled_prompt_layer,
    keeps_prompt,
    own_prompt_layer,
    states_with_prompt,
)
from moec.huggingface.operators.own_layers import unregistered
from moec.huggingface.operators.padding import behind
from moec.huggingface.states.cache_class import cache_class
from moec.huggingface.states.state_kinds import is_of_a_model, kind_of, put, states_of
from moec.program.decoder_signature import PROMPT, layer_of

_CUT = "the model hands its cache a convolution's window that it cut itself, in which padding is not told apart"


def by_layer(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """States by layer, and by name within it."""
    found: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        number, what = layer_of(name)
        found[number][what] = value
    return dict(found)


def functional_cache(
    tensors: Mapping[str, Tensor],
    model: Any = None,
    ends: Tensor | None = None,
    tokens: int | torch.SymInt | None = None,
) -> Any:
    """A cache that holds these states, by the names of a signature; keys and values at their full length: windows are
    the mask's business.

    `model`: whose cache it is; it may be of a class of its own, or have layers of its own. `ends` `[batch]` int64: how
    many of a call's tokens there are up to the last that is no padding, all by default. A window goes on behind that
    one, so that padding between a prompt and what follows leaves no trace. `tokens`: how many a call has; where nobody
    says it, a model hands each convolution its new tokens.

    The cache raises M206 where a model hands it a window that it cut itself: the padding in there cannot be told.
    """
    found = _cache(by_layer(tensors), None, model)
    for layer in found.layers:
        layer.ends, layer.tokens = ends, tokens
    begin_prompts(found, tokens)
    return found


def own_cache(tensors: Mapping[str, Tensor], began: bool, model: Any = None) -> Any:
    """The same with the layers that transformers itself has for states that do not grow: what an untouched model is run
    with. They hold nothing unless the text `began`."""
    return _cache(by_layer(tensors), began, model)


def held_by(layer: Any) -> dict[str, Tensor]:
    """The states that a layer holds, by name within the layer."""
    if has_rows(layer):
        return compressed_states(layer)
    if keeps_prompt(layer):
        return states_with_prompt(layer)
    return {what: value for what, (value, _) in states_of(layer).items()}


def _cache(layers: Mapping[int, Mapping[str, Tensor]], began: bool | None, model: Any) -> Any:
    from transformers.cache_utils import DynamicCache

    found = (DynamicCache if model is None else cache_class(model))()
    templates = dict(enumerate(DynamicCache(config=model.config).layers if model is not None else ()))
    prompt = 0 if began is None else next((int(held[PROMPT][0]) for held in layers.values() if PROMPT in held), 0)
    for number in range(max(layers) + 1):
        states, template = layers.get(number, {}), templates.get(number)
        if has_rows(template):
            found.layers.append(filled_layer(template, states, began is None))
            continue
        if keeps_prompt(template):
            own = began is not None
            found.layers.append(own_prompt_layer(template, states, prompt) if own else filled_prompt_layer(states))
            continue
        layer = _layer(states, template)() if began is None or not _fixed(states) else _own_layer(states)
        for what, value in states.items():
            if began is not False or not kind_of(what)[0].numbered:
                _hold(layer, what, value if began is None else value.clone())
        if "key" in states and "value" not in states:
            put(layer, "value", states["key"][..., :0])  # of no size, and therefore no state
        found.layers.append(layer)
    return found


def _fixed(states: Mapping[str, Tensor]) -> int:
    """How many states a layer may have of one kind that does not grow; 0 without one."""
    return max((kind_of(what)[1] + 1 for what in states if kind_of(what)[0].numbered), default=0)


def _hold(layer: Any, what: str, value: Tensor) -> None:
    put(layer, what, value)
    kind, number = kind_of(what)
    layer.dtype, layer.device = value.dtype, value.device
    if not kind.numbered:
        layer.is_initialized = True
        layer.is_indexer_initialized = kind.what == "index_key" or getattr(layer, "is_indexer_initialized", False)
        return
    layer.has_previous_state[number] = True
    getattr(layer, f"is_{kind.attribute}_initialized")[number] = True
    if kind.what == "conv_state":
        layer.conv_kernel_size[number] = value.shape[-1]


def _own_layer(states: Mapping[str, Tensor]) -> Any:
    from transformers.cache_utils import LinearAttentionAndFullAttentionLayer, LinearAttentionLayer

    kind = LinearAttentionAndFullAttentionLayer if "key" in states else LinearAttentionLayer
    return kind(number_of_states=_fixed(states))


def _layer(states: Mapping[str, Tensor], template: Any = None) -> Any:
    """A way to make a layer for these states; one that a model has of its own, as `template` is, writes nothing in
    place."""
    if states and is_of_a_model(template):
        own: Any = type(template)
        return _with_keys(own)
    count = _fixed(states)
    if count:
        made = _with_states("key" in states)
        return lambda: made(number_of_states=count)
    if not states:
        return _without_any()
    return _with_index() if "index_key" in states else _with_keys()


@cache
@unregistered()
def _with_keys(own: Any = None) -> Any:
    from transformers.cache_utils import DynamicLayer

    class Keys(own or DynamicLayer):  # type: ignore[misc]
        def get_seq_length(self) -> int:
            return self.keys.shape[-2]  # type: ignore[union-attr, no-any-return]  # the original asks whether it is empty, which fixes the length

    return Keys


@cache
@unregistered()
def _with_index() -> Any:
    from transformers.cache_utils import DynamicIndexedLayer

    class Indexed(_with_keys(), DynamicIndexedLayer):  # type: ignore[misc, no-untyped-call]
        pass

    return Indexed


@cache
def _without_any() -> Any:
    """A layer that shares another's keys and values, or looks at one token alone."""
    from transformers import cache_utils

    return getattr(cache_utils, "DummyLayer", cache_utils.DynamicLayer)


@cache
@unregistered()
def _with_states(and_keys: bool) -> Any:
    """A layer of states whose shape stays, with keys and values beside them or not."""
    from transformers.cache_utils import LinearAttentionAndFullAttentionLayer, LinearAttentionLayer

    class States(LinearAttentionLayer):  # type: ignore[no-untyped-call]
        ends: Tensor | None = None
        tokens: int | torch.SymInt | None = None

        def update_conv_state(  # type: ignore[override]  # the kernel's size is the window's
            self, conv_states: Tensor, state_idx: int = 0, **_: Any
        ) -> Tensor:
            """What a convolution reads, `[batch, channels, kernel + sequence]`; its end is kept."""
            kept: Any = self.conv_states[state_idx]
            if self.tokens is not None and not statically_known_true(conv_states.shape[-1] == self.tokens):
                raise MoecError("M206", _CUT, "past_key_values", "compile its forward alone with --no-cache")
            whole = torch.cat([kept, conv_states.to(kept.dtype)], -1)
            self.conv_states[state_idx] = behind(whole, kept.shape[-1], self.ends)
            setattr(whole, PARTS, (kept, conv_states))
            return whole

        def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
            self.recurrent_states[state_idx] = recurrent_states
            return recurrent_states

    class StatesAndKeys(States, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc, override, no-untyped-call]
        def get_seq_length(self) -> int:
            return self.keys.shape[-2]  # type: ignore[union-attr, no-any-return]  # see `_with_keys`

    return StatesAndKeys if and_keys else States
