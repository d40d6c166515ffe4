"""The class of cache that a model insists on, its states where all others are."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from moec.huggingface.states.cache_class import cache_class
from moec.huggingface.states.functional_cache import functional_cache, own_cache
from tests.scanning_models import scanning_model

STATE = "past_key_values.1.recurrent_state"


def test_most_models_take_a_dynamic_cache() -> None:
    assert cache_class(scanning_model("granite")) is DynamicCache
    kind = cache_class(scanning_model("minimax"))
    assert issubclass(kind, MiniMaxCache) and kind is cache_class(scanning_model("minimax"))


def test_a_list_beside_the_layers_becomes_their_states() -> None:
    model, state, new = scanning_model("minimax"), torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    for cache in (functional_cache({STATE: state}, model), own_cache({STATE: state}, True, model)):
        assert isinstance(cache, MiniMaxCache) and torch.equal(cache.get_linear_cache(1), state)
        cache.set_linear_cache(1, new)
        assert torch.equal(cache.layers[1].recurrent_states[0], new)
    assert torch.equal(state, torch.ones(2, 4, 8, 8)), "states that were given stay as they were"
    assert own_cache({STATE: state}, False, model).get_linear_cache(1) is None, "a text that begins has none"
