"""A call of a graph whose cache holds tokens only, with a cache that holds padding where the mask says so.

That is what a program's cache is, and what its engine is asked for and compared in. A text that an engine writes itself
keeps the cache as the graph has it, and comes through here with its first call at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from moec.program.decoder_signature import IDS, MASK, is_past, is_present

COMPACT = "moec.compact_cache"  # of a model's metadata: its cache holds tokens only
Call = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def call_compact(call: Call, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run a graph whose metadata says `COMPACT`: inputs and outputs are as those of the program.

    Args:
        call: the graph, caches `[B, G, P, D]` without padding. Several texts that go on by several tokens are more than
            the operator takes (the runtime says so itself): they go in one by one.
        inputs: by name; caches have a place for each of the mask's.
    """
    texts = _texts(inputs)
    if len(texts) > 1:
        rows = [call_compact(call, text) for text in texts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    mask = inputs[MASK].bool()
    if bool(mask.all()):
        return call(inputs)
    outputs = call(compact_inputs(inputs))
    place = (mask.cumsum(1) - 1).clamp(min=0)
    return {name: _at(value, place) if is_present(name) else value for name, value in outputs.items()}


def compact_calls(inputs: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The calls of such a graph that make up one of the program: all texts, or each of them."""
    return [compact_inputs(text) for text in _texts(inputs)]


def _texts(inputs: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    batch, new = inputs[IDS].shape
    if batch == 1 or not 1 < new < inputs[MASK].shape[1]:
        return [inputs]
    return [{name: value[n : n + 1] for name, value in inputs.items()} for n in range(batch)]


def compact_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of a call with the tokens of each cache moved to the front of their rows."""
    past = inputs[MASK][:, : inputs[MASK].shape[1] - inputs[IDS].shape[1]].bool()
    order = past.int().argsort(dim=1, descending=True, stable=True)
    return {name: _at(value, order) if is_past(name) else value for name, value in inputs.items()}


def _at(cache: Tensor, place: Tensor) -> Tensor:
    """`[B, G, L, D]` of a cache's places `[B, L]`."""
    return cache.gather(2, place[:, None, :, None].expand(-1, cache.shape[1], -1, cache.shape[3]))
