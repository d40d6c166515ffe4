"""States that modules keep in themselves are theirs for one call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moec.huggingface.states.kept_in_modules import held_in, places_in_modules, state_in, taken_from

NAME = "past_key_values.1.conv_state"


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1d_state: torch.Tensor | None = None


def test_a_state_has_its_layers_number_and_its_kinds_name() -> None:
    assert state_in("model.layers.1.temporal_block", "conv1d_state") == NAME
    assert not state_in("model.block", "conv1d_state") and not state_in("model.layers.1", "memory")
    model = nn.ModuleList([nn.Linear(2, 2), Keeps()])
    assert places_in_modules(model) == {NAME: (model[1], "conv1d_state")} and places_in_modules(None) == {}


def test_a_call_leaves_nothing_behind_though_it_fails() -> None:
    module = Keeps()
    places = {NAME: (module, "conv1d_state")}
    before = dict(vars(module))
    with held_in(places, {NAME: torch.ones(2)}, None):
        module.conv1d_state = module.conv1d_state + 1
        assert taken_from(places)[NAME].tolist() == [2, 2]
    assert vars(module) == before and taken_from(places) == {}
    with pytest.raises(ValueError, match="fails"), held_in(places, {NAME: torch.ones(2)}, None):
        raise ValueError("fails")
    assert vars(module) == before
