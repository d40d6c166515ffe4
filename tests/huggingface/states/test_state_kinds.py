"""Names of the states that a layer of transformers' cache holds."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicIndexedLayer, LinearAttentionAndFullAttentionLayer

from moec.huggingface.states.state_kinds import kind_of, put, states_of


def test_states_are_named_as_they_are_kept() -> None:
    layer = LinearAttentionAndFullAttentionLayer(number_of_states=2)
    assert states_of(layer) == {}
    for what in ("key", "value", "conv_state", "conv_state_1", "recurrent_state_1"):
        put(layer, what, torch.zeros(1))
    assert list(states_of(layer)) == ["key", "value", "conv_state", "conv_state_1", "recurrent_state_1"]
    assert layer.conv_states[1] is states_of(layer)["conv_state_1"][0] and layer.recurrent_states[0] is None
    assert kind_of("recurrent_state_1")[1] == 1 and kind_of("index_key")[0].axis == 1


def test_keys_of_an_index_stand_beside_those_of_the_attention() -> None:
    layer = DynamicIndexedLayer()
    layer.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    layer.update_indexer(torch.ones(1, 3, 4))
    assert list(states_of(layer)) == ["key", "value", "index_key"]
