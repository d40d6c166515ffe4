"""A cache that neither looks at its values nor writes in place says what transformers' own says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicIndexedLayer, LinearAttentionLayer

from moec.errors import MoecError
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


GOING = {**STATES, "past_key_values.1.conv_state": drawn(2, 4, 3)}


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


@pytest.mark.parametrize("lengths", [(5, 1, 2), (1, 1, 4), (2, 6), (3, 3, 1)])
def test_calls_of_any_length_get_and_leave_what_transformers_own_layers_do(lengths: tuple[int, ...]) -> None:
    mine, theirs = functional_cache(STATES), own()
    assert mine.get_seq_length() == 0 and mine.has_previous_state(1)
    for length in lengths:
        for got, want in zip(used(mine, length), used(theirs, length), strict=True):
            assert torch.equal(got, want)
    assert mine.get_seq_length() == sum(lengths)


@pytest.mark.parametrize("length", [2, 3, 7])
def test_as_many_tokens_as_a_window_has_are_tokens_and_padding_behind_them_leaves_no_trace(length: int) -> None:
    ends = torch.tensor([length, length - 1])
    cache, before = functional_cache(GOING, None, ends, length), GOING["past_key_values.1.conv_state"]
    new = drawn(2, 4, length)
    assert torch.equal(cache.update_conv_state(new, 1, conv_kernel_size=3), torch.cat([before, new], -1))
    whole = torch.cat([before, new], -1)
    want = torch.stack([whole[0, :, length : length + 3], whole[1, :, length - 1 : length + 2]])
    assert torch.equal(cache.layers[1].conv_states[0], want)


def test_a_window_that_a_model_cut_itself_is_refused() -> None:
    cache = functional_cache(GOING, None, torch.tensor([5, 4]), 5)
    with pytest.raises(MoecError, match="cut itself") as caught:
        cache.update_conv_state(drawn(2, 4, 3), 1)
    assert caught.value.code == "M206"


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
