"""A choice of experts hangs on rounding where two logits are near, and on others where an expert's room ends."""

from __future__ import annotations

import torch
from torch import Tensor

from moec.dialect import Capacity, Routing
from moec.proof.chosen_experts import hanging
from moec.proof.decided_tokens import NOISE

HALF = torch.float16


def test_only_differences_below_the_noise_hang() -> None:
    logits = torch.tensor([[2.0, 1.985, 0.0], [2.0, 1.95, 0.0], [2.0, 1.0, 0.99]])
    assert hanging(logits, None, Routing(1), NOISE[HALF]).tolist() == [True, False, False], (
        "two logits of 2.0 move by 0.01 each"
    )
    assert hanging(logits, None, Routing(1), NOISE[torch.bfloat16]).tolist() == [True, True, False]
    assert not hanging(logits, None, Routing(1), NOISE[torch.float32]).any()
    assert hanging(logits, torch.tensor([0.0, 1e-3, 0.0]), Routing(1, "sigmoid"), NOISE[HALF])[0]


def test_with_a_capacity_those_at_its_end_hang_on_others() -> None:
    logits = torch.tensor([[2.0, 1.99, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    found = hanging(logits, None, Routing(1), NOISE[HALF], Capacity(2))
    assert found.tolist() == [True, True, True, False, False], "without the first, the third has room; with it, not"
    counted = torch.tensor([False, True, True, True, True])
    found = hanging(logits, None, Routing(1), NOISE[HALF], Capacity(1000, counted))
    assert found.tolist() == [True, False, False, False, False]


def test_first_and_second_choice_that_change_places_hang_where_first_ones_come_first() -> None:
    logits = torch.tensor([[2.0, 1.99, 0.0], [2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 2.0, 1.0]])
    assert not hanging(logits, None, Routing(2), NOISE[HALF]).any(), "the same two experts"
    found = hanging(logits, None, Routing(2), NOISE[HALF], Capacity(2))
    assert found.tolist() == [True, True, True, True], "which of the others' choices come third"
    assert hanging(logits, None, Routing(2), NOISE[HALF], Capacity(9)).tolist() == [True, False, False, False]
    assert not hanging(logits, None, Routing(2), NOISE[HALF], Capacity(2, order="tokens")).any(), "a line an expert"


def test_tokens_that_an_earlier_block_left_open_push_others_too() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])

    def found(spoiled: list[bool], limit: int = 2, **room: Tensor) -> list[bool]:
        rule = Capacity(limit, **room)
        return hanging(logits, None, Routing(1), NOISE[HALF], rule, torch.tensor(spoiled)).tolist()

    assert found([False] * 4) == [False] * 4 and found([False] * 3 + [True], 3) == [False, False, True, False]
    assert found([True, False, False, False]) == [False, True, True, False]
    uncounted = torch.tensor([False, True, True, True])
    assert found([True, False, False, False], 1, counted=uncounted) == [False] * 4, "padding takes no room"
