"""A cache that neither looks at its values nor writes in place says what transformers' own says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicIndexedLayer, LinearAttentionLayer

from moec.huggingface.states.functional_cache import functional_cache, own_cache
from moec.huggingface.states.state_kinds import states_of

STATES = {
    "past_key_values.1.conv_state": torch.zeros(2, 4, 3),
    "past_key_values.1.recurrent_state": torch.zeros(2, 4, 5),
    "past_key_values.2.key": torch.zeros(2, 1, 0, 4),
    "past_key_values.2.value": torch.zeros(2, 1, 0, 4),
    "past_key_values.2.index_key": torch.zeros(2, 0, 6),
}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def own() -> Any:
    found = DynamicCache()
    found.layers = [LinearAttentionLayer(), LinearAttentionLayer(), DynamicIndexedLayer()]  # type: ignore[no-untyped-call]
    return found


def used(cache: Any, length: int) -> list[Tensor]:
    """What a model gets from a cache in one call, and what it leaves there."""
    window = cache.update_conv_state(drawn(2, 4, length), 1, conv_kernel_size=3)[..., -length:]
    state = cache.get_recurrent_state(1)
    left = cache.update_recurrent_state((0 if state is None else state) + drawn(2, 4, 5), 1)
    keys = cache.update(drawn(2, 1, length, 4), drawn(2, 1, length, 4), 2)
    index = cache.update_indexer(drawn(2, length, 6), 2)
    kept = [value for layer in cache.layers for value, _ in states_of(layer).values()]
    return [value.clone() for value in (window, left, *keys, index, *kept)]


@pytest.mark.parametrize("lengths", [(5, 1, 2), (1, 1, 4), (2, 6)])
def test_calls_of_any_length_get_and_leave_what_transformers_own_layers_do(lengths: tuple[int, ...]) -> None:
    mine, theirs = functional_cache(STATES), own()
    assert mine.get_seq_length() == 0 and mine.has_previous_state(1)
    for length in lengths:
        for got, want in zip(used(mine, length), used(theirs, length), strict=True):
            assert torch.equal(got, want)
    assert mine.get_seq_length() == sum(lengths)


def test_a_text_that_begins_finds_nothing_in_transformers_own_layers_and_one_that_goes_on_its_states() -> None:
    begun, going = (
        own_cache(STATES, began=False),
        own_cache({**STATES, "past_key_values.1.conv_state": drawn(2, 4, 3)}, True),
    )
    assert begun.get_conv_state(1) is None and not begun.has_previous_state(1)
    before = going.get_conv_state(1).clone()
    whole = going.update_conv_state(drawn(2, 4, 2), 1, conv_kernel_size=3)
    assert torch.equal(whole, torch.cat([before, drawn(2, 4, 2)], -1)) and type(going.layers[1]) is LinearAttentionLayer


def test_what_was_given_is_never_written_to() -> None:
    given = {name: value.clone() for name, value in STATES.items()}
    for cache in (functional_cache(given), own_cache(given, began=True)):
        used(cache, 3)
    assert all(torch.equal(given[name], STATES[name]) for name in given)
