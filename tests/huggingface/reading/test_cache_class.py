"""The class of cache that a model insists on, its states where all others are."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from moec.huggingface.reading.cache_class import cache_class
from moec.huggingface.reading.functional_cache import functional_cache, own_cache
from tests.scanning_models import scanning_model

STATE = "past_key_values.0.recurrent_state"


def test_most_models_take_a_dynamic_cache() -> None:
    assert cache_class(scanning_model("granite")) is DynamicCache
    kind = cache_class(scanning_model("minimax"))
    assert issubclass(kind, MiniMaxCache) and kind is cache_class(scanning_model("minimax"))


def test_a_list_beside_the_layers_becomes_their_states() -> None:
    kind, state, new = cache_class(scanning_model("minimax")), torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    for cache in (functional_cache({STATE: state}, kind), own_cache({STATE: state}, True, kind)):
        assert isinstance(cache, MiniMaxCache) and torch.equal(cache.get_linear_cache(0), state)
        cache.set_linear_cache(0, new)
        assert torch.equal(cache.layers[0].recurrent_states[0], new)
    assert torch.equal(state, torch.ones(2, 4, 8, 8)), "states that were given stay as they were"
    assert own_cache({STATE: state}, False, kind).get_linear_cache(0) is None, "a text that begins has none"
