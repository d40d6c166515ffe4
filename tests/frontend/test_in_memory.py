"""What a manifest keeps of a model in memory."""

from __future__ import annotations

import torch
from torch import nn

from moec.frontend.in_memory import IN_MEMORY, hash_of, is_in_memory, state_hash


def test_the_hash_is_of_names_and_values_and_not_of_their_order_or_place() -> None:
    torch.manual_seed(0)
    state = nn.Linear(3, 2).to(torch.bfloat16).state_dict()
    found = state_hash(state)
    assert is_in_memory(found) and not is_in_memory({"config.json": "0"}) and len(found[IN_MEMORY]) == 64
    assert state_hash(dict(reversed(list(state.items())))) == found
    assert state_hash({**state, "weight": state["weight"].t().contiguous().t()}) == found
    changed = state["weight"].clone()
    changed[0, 0] += 1
    assert state_hash({**state, "weight": changed}) != found != state_hash({"other": state["weight"]})


def test_blocks_of_rows_count_as_their_shapes() -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    assert hash_of([("a", [rows])]) != hash_of([("a", [rows.reshape(2, 3)])])
    assert hash_of([("a", [torch.tensor(1.0)])]) != hash_of([("a", [torch.tensor(1)])])
