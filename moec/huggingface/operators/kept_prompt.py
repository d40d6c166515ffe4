"""Layers whose window moves over what a model writes, and never off the prompt (Unlimited-OCR).

Where the prompt ends is a state, `prompt_length` `[batch]` int64. It is 0 before a text begins, and then the first call
is the prompt, as for transformers' layer. Who feeds a prompt in several calls gives its length with the first, as
transformers' `generate` does.

The untouched model looks padding up where the window has moved to, for tokens of the prompt, too, which stand still.
What it so takes for padding is what the engine takes for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from moec.huggingface.operators.attention import PADDING_COUNTS, PADDING_LOOKS
from moec.huggingface.operators.functions_of_file import functions_read, let_call
from moec.huggingface.operators.own_layers import unregistered
from moec.program.decoder_signature import PROMPT, layer_of
from moec.program.program import Input

_KIND = "reference_sliding_attention"
_MASK = "create_reference_sliding_window_causal_mask"
Call = Callable[..., dict[str, Tensor]]


def keeps_prompt(layer: Any) -> bool:
    """Whether a layer of a cache is of this kind, transformers' own or moec's."""
    return getattr(layer, "_layer_type", "") == _KIND


def prompt_layer(tells: bool) -> Any:
    """moec's own layer, empty: keys and values at their full length. One that `tells` has the length of the prompt."""
    layer = _functional()()
    layer.tells = tells
    return layer


def filled_prompt_layer(states: Mapping[str, Tensor]) -> Any:
    """moec's own layer with flat states, by name within the layer."""
    layer = prompt_layer(PROMPT in states)
    layer.keys, layer.values, layer.prompt_length = states["key"], states["value"], states.get(PROMPT)
    layer.dtype, layer.device, layer.is_initialized = layer.keys.dtype, layer.keys.device, True
    return layer


def own_prompt_layer(template: Any, states: Mapping[str, Tensor], prompt: int) -> Any:
    """A layer of transformers', as `template` is one, with flat states; `prompt` is the length of all texts' prompts, 0
    where nobody knows it yet."""
    kind: Any = type(template)
    layer = copy(template)
    layer.__class__, layer.tells = _noted(kind), PROMPT in states
    layer.whole = (states["key"], states["value"])
    layer.prefill_length = prompt or None
    past = layer.whole[0].shape[2]
    if past:
        layer.lazy_initialization(*layer.whole)
        kept = min(prompt or past, past)
        layer.prefill_keys, layer.prefill_values = (value[:, :, :kept] for value in layer.whole)
        window = slice(1 - layer.sliding_window, None)
        layer.keys, layer.values = (value[:, :, kept:][:, :, window] for value in layer.whole)
        layer.prefill_cumulative_length, layer.cumulative_length = kept, past - kept
    return layer


def states_with_prompt(layer: Any) -> dict[str, Tensor]:
    """The flat states of a layer of either kind, by name within the layer."""
    key, value = getattr(layer, "whole", None) or (layer.keys, layer.values)
    found, length = {"key": key, "value": value}, layer.prefill_length
    if layer.tells:
        told = isinstance(length, Tensor)
        found[PROMPT] = layer.prompt_length if told else torch.full((len(key),), length, device=key.device)
    return found


def begin_prompts(cache: Any, tokens: int | torch.SymInt | None) -> None:
    """Let a call of so many tokens be the prompt of the texts that have none."""
    for layer in cache.layers:
        if keeps_prompt(layer) and layer.prompt_length is not None and tokens is not None:
            told = layer.prompt_length
            layer.prompt_length = torch.where(told == 0, layer.get_seq_length() + tokens, told)


def rows_by_prompt(call: Call, caches: Sequence[Input]) -> Call:
    """A call of an untouched model, whose layers know one length for all texts: those of each length by themselves."""
    name = next((spec.name for spec in caches if layer_of(spec.name)[1] == PROMPT), None)

    def apart(**given: Tensor) -> dict[str, Tensor]:
        lengths = given[str(name)]
        groups = [(lengths == length).nonzero()[:, 0] for length in set(lengths.tolist())]
        parts = [call(**{key: value[rows] for key, value in given.items()}) for rows in groups]
        order = torch.cat(groups).argsort()
        return {key: torch.cat([part[key] for part in parts])[order] for key in parts[0]}

    return apart if name else call


def adapt_kept_prompt(model: nn.Module) -> int:
    """Let the modules of a captured copy that mask such layers look padding up as they do with transformers' layers, in
    place; returns how many."""
    found = [module for module in model.modules() if _MASK in functions_read(module, lambda _: True)]
    for module in found:
        let_call(module, [_MASK], lambda own, _: _with_moved_padding(own))
        setattr(module, PADDING_LOOKS, True)
        for part in module.modules():  # what is taken for a token has to say what it says there
            setattr(part, PADDING_COUNTS, True)
    return len(found)


def _with_moved_padding(own: Callable[..., Any]) -> Callable[..., Any]:
    def mask(*, config: Any, attention_mask: Tensor | None, past_key_values: Any, **others: Any) -> Any:
        layer = next((each for each in getattr(past_key_values, "layers", ()) if keeps_prompt(each)), None)
        length = getattr(layer, "prompt_length", None)
        if attention_mask is not None and layer is not None and length is not None:
            attention_mask = _moved(attention_mask, length, layer.get_seq_length(), config.sliding_window)
        return own(config=config, attention_mask=attention_mask, past_key_values=past_key_values, **others)

    return mask


def _moved(mask: Tensor, prompt: Tensor, past: int, window: int) -> Tensor:
    """A mask `[B, T]` with what the untouched model reads for tokens of the prompts of these lengths `[B]`: the places
    that lie as many behind them as there are tokens that the window has left."""
    places = torch.arange(mask.shape[1], device=mask.device)
    left = (past - prompt - window + 1).clamp(min=0)[:, None]
    return mask.gather(1, torch.where(places < prompt[:, None], places + left, places).clamp(max=mask.shape[1] - 1))


@cache
@unregistered()
def _functional() -> Any:
    from transformers.cache_utils import DynamicLayer

    class Prompt(DynamicLayer):  # type: ignore[misc, no-untyped-call]
        _layer_type = _KIND
        tells = False
        prompt_length: Tensor | None = None

        @property
        def prefill_length(self) -> Tensor | None:
            """What the model's mask asks for, beside tokens `[B, heads, S, T]`."""
            return None if self.prompt_length is None else self.prompt_length[:, None, None, None]

        def update(self, key_states: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
            if self.tells and self.prompt_length is None:
                size = (key_states.shape[0],)
                self.prompt_length = key_states.new_full(size, key_states.shape[2], dtype=torch.int64)
            found: tuple[Tensor, Tensor] = super().update(key_states, *rest, **named)
            return found

        def get_seq_length(self) -> int:
            # the original asks whether there are any
            return 0 if self.keys is None else self.keys.shape[2]

    return Prompt


@cache
@unregistered()
def _noted(own: Any) -> Any:
    class Noted(own):  # type: ignore[misc]
        """transformers' layer, beside all keys and values that it was given."""

        whole: tuple[Tensor, Tensor]

        def update(self, key_states: Tensor, value_states: Tensor, *rest: Any, **named: Any) -> tuple[Tensor, Tensor]:
            new = (key_states, value_states)
            self.whole = tuple(torch.cat(pair, 2) for pair in zip(self.whole, new, strict=True))  # type: ignore[assignment]
            found: tuple[Tensor, Tensor] = super().update(key_states, value_states, *rest, **named)
            return found

    return Noted
