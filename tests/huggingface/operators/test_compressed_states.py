"""Rows that stand for several tokens, flat and in a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from moec.huggingface.operators.compressed_states import compressed_states, filled_layer, has_rows, rate_of
from moec.huggingface.states.functional_cache import functional_cache, own_cache
from tests.sparse_models import build


def text(model: Any, length: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a text after transformers' own cache, and its states by a signature's names."""
    ids = torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(1))
    cache = DynamicCache(config=model.config)
    cache.layers = [_whole(layer) for layer in cache.layers]
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    held = {number: compressed_states(layer) for number, layer in enumerate(cache.layers)}
    return ids, {f"past_key_values.{n}.{what}": value for n, states in held.items() for what, value in states.items()}


def _whole(layer: Any) -> Any:
    empty = {"key": torch.zeros(2, 1, 0, 16)}
    return filled_layer(layer, empty, captured=False)


@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_states_that_transformers_left_are_gone_on_with_as_by_transformers_itself(length: int) -> None:
    model = build("deepseek_v4")
    more = torch.randint(3, 90, (2, 5), generator=torch.Generator().manual_seed(2))
    ids, states = text(model, length)
    with torch.no_grad():
        want = model(input_ids=torch.cat([ids, more], 1), use_cache=False).logits[:, length:]  # type: ignore[operator]
        got = model(input_ids=more, past_key_values=own_cache(states, True, model)).logits  # type: ignore[operator]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def test_a_rate_is_read_from_what_waits_and_zeros_stand_before_it() -> None:
    _, states = text(build("deepseek_v4"), 6)
    of = {name.removeprefix("past_key_values.1."): value for name, value in states.items() if ".1." in name}
    assert {what: rate_of(what, of) for what in of} == {"key": 1, "compressed": 4, "waiting": 0}
    assert of["compressed"].shape[1] == 1 and of["waiting"].shape[1] == 3
    assert bool((of["waiting"][:, :1] == 0).all()) and bool((of["waiting"][:, 1:] != 0).all())


def test_only_layers_with_rows_are_taken_for_such() -> None:
    config = build("deepseek_v4").config
    assert all(has_rows(layer) for layer in DynamicCache(config=config).layers)
    assert not any(has_rows(layer) for layer in DynamicCache(config=build("deepseek_v32").config).layers)
    model = build("deepseek_v4")
    assert has_rows(functional_cache(text(model, 5)[1], model).layers[0])
