"""Sums over the tokens of a layer."""

from __future__ import annotations

import pytest
import torch

from moec.routing.tally import Choice, RouterTally


def test_by_hand() -> None:
    tally = RouterTally(3, 2)
    shares = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    tally.add(Choice(3, torch.tensor([[0, 1], [2, 1]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]]), shares), domain=1)
    assert tally.counts.tolist() == [1, 2, 1] and tally.mass.tolist() == [0.75, 0.75, 0.5]
    assert tally.pairs.tolist() == [[1, 1, 0], [1, 2, 1], [0, 1, 1]]
    assert tally.confidence == pytest.approx(1.0) and tally.margin == pytest.approx(0.1 + 0.1) and tally.ties == 0
    assert tally.windows[0][0] == 1 and tally.windows[0][1].tolist() == [1, 2, 1]


def test_a_weight_of_zero_is_no_choice_and_absent_scores_are_not_made_up() -> None:
    tally = RouterTally(3, 2)
    tally.add(Choice(3, torch.tensor([[0, 1]]), torch.tensor([[1.0, 0.0]])))
    assert tally.counts.tolist() == [1, 0, 0] and tally.scored == 0 and tally.tokens == 1
    assert not tally.windows


def test_a_bias_may_make_the_margin_negative_and_near_ties_are_counted() -> None:
    tally = RouterTally(2, 1)
    shares = torch.tensor([[0.4, 0.6], [0.5, 0.5]])
    tally.add(Choice(2, torch.tensor([[0], [0]]), torch.ones(2, 1), shares))
    assert tally.margin == pytest.approx(-0.2) and tally.ties == 1


def test_parts_add_up_to_the_whole_and_some_tokens_can_be_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(30, 5, generator=generator).softmax(-1)
    weights, ids = shares.topk(2, -1)
    choice, kept = Choice(5, ids, weights, shares), torch.arange(30) % 3 > 0
    whole, parts, some = RouterTally(5, 2), RouterTally(5, 2), RouterTally(5, 2)
    whole.add(choice)
    for part in (choice.only(kept), choice.only(~kept)):
        parts.add(part)
    some.add(choice.only(kept))
    assert torch.equal(whole.counts, parts.counts) and whole.entropy == pytest.approx(parts.entropy, abs=1e-4)
    assert some.tokens == 20 and not torch.equal(some.counts, whole.counts)
