"""Tokens that choose between keys which rounding can't tell apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from moec.frontend.export import capture
from moec.program.decoder_signature import in_rows
from moec.proof.chosen_keys import hanging_choice, hanging_keys, key_choices
from moec.proof.coverage import run_load
from moec.proof.decided_tokens import NOISE, Decided

INF = float("inf")


def hanging(*rows: list[float], count: int = 2) -> list[bool]:
    return hanging_keys(torch.tensor([rows]), count, NOISE[torch.float32])[0].tolist()


def test_equal_scores_hang_where_one_of_them_is_chosen_and_one_is_not() -> None:
    assert hanging([3.0, 1.0, 1.0, 0.0], [3.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]) == [True, False, True]
    assert hanging([3.0, 1.0 + 1e-5, 1.0], [3.0, 1.0 + 1e-3, 1.0]) == [True, False]
    assert hanging([1.0, 1.0], [0.0, 0.0]) == [False, False], "all are chosen"


def test_keys_that_may_not_be_seen_are_no_choice() -> None:
    assert hanging([3.0, 1.0, -INF, -INF], [3.0, -INF, -INF, -INF], [-1e38, -3e38, -3e38, -3e38]) == [False] * 3
    assert hanging([INF, 1.0, 1.0, 0.0], [INF, INF, 1.0, 1.0]) == [True, False], "blocks that are always seen"


def test_of_several_heads_one_is_enough() -> None:
    scores = torch.tensor([[[[3.0, 1.0, 0.0]], [[3.0, 1.0, 1.0]]]])
    assert hanging_keys(scores, 2, 1e-5).tolist() == [[True]] and hanging_keys(scores, 1, 1e-5).tolist() == [[False]]


def largest(scores: Tensor, dim: int = -1, largest: bool = True) -> Tensor:
    """Six of a dimension, or as many as there are."""
    return scores.topk(min(6, scores.shape[dim]), dim=dim, largest=largest).values


CHOICES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "keys": (lambda x: largest(x @ x.mT), True),
    "keys, by head": (lambda x: largest((x @ x.mT)[:, None] * torch.ones(1, 2, 1, 1), 3), True),
    "experts": (lambda x: x.topk(2, dim=-1).values, False),
    "expert choice": (lambda x: largest(x.flatten(0, 1).mT), False),
    "expert choice, each text for itself": (lambda x: largest(x.mT), False),
    "mixture of depths": (lambda x: largest(x[..., 0]), False),
    "along tokens": (lambda x: largest(x, 1), False),
    "the smallest": (lambda x: largest(x @ x.mT, largest=False), False),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_of_keys_is_told_from_all_others(name: str) -> None:
    choose, keys = CHOICES[name]

    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return choose(x)

    program = capture(Chooses(), {"x": torch.randn(3, 11, 4)}, {"x": ("batch", "tokens", 4)})
    assert len(key_choices(program)) == keys
    (node,) = program.nodes(torch.ops.aten.topk.default)
    found = hanging_choice(node, (torch.zeros(1, 1, 8), 6), 1e-5)
    assert (found is not None) is keys and (found is None or found.tolist() == [[True]])
    assert run_load(program, {"x": torch.randn(2, 9, 4)}).undecided_keys == 0


def test_rows_of_several_tokens_are_compared_where_all_of_them_are() -> None:
    tokens = torch.ones(2, 9, dtype=torch.bool)
    tokens[0, 2] = False
    assert in_rows(tokens, 2).tolist() == [[True, False, False, True], [True] * 4], "and those that mix them in"
    assert in_rows(tokens, 1).equal(tokens) and in_rows(tokens, 10).shape == (2, 0)


def test_what_is_said_of_them() -> None:
    found = Decided("float32", 1e-5, 3, 4, what="keys")
    assert str(found) == "3 of 4 tokens; the others choose between keys that rounding can't tell apart"
    assert "float32 can't tell this model's keys apart" in Decided("float32", 1e-5, 0, 4, what="keys").problem
