"""States that modules keep in themselves are theirs for one call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moec.errors import MoecError
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


def test_a_module_may_keep_two_states() -> None:
    class KeepsTwo(Keeps):
        recurrent_states: torch.Tensor | None = None

    module = KeepsTwo()
    module.recurrent_states = None
    places = {NAME: (module, "conv1d_state"), "past_key_values.1.recurrent_state": (module, "recurrent_states")}
    before = dict(vars(module))
    with held_in(places, dict.fromkeys(places, torch.ones(2)), None):
        assert len(taken_from(places)) == 2
    assert vars(module) == before


def test_two_stacks_whose_states_have_one_name_are_refused() -> None:
    one, two = (nn.ModuleList([nn.Linear(2, 2), Keeps()]) for _ in range(2))
    with pytest.raises(MoecError, match=r"both 'one\.1' and 'two\.1'") as caught:
        places_in_modules(nn.ModuleDict({"one": one, "two": two}))
    assert caught.value.code == "M206"
    assert len(places_in_modules(nn.ModuleDict({"one": one}))) == 1
