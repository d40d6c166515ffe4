"""Two routers beside each other."""

from __future__ import annotations

import pytest
import torch

from moec.routing.drift import DriftTally
from moec.routing.tally import Choice


def choice(*ids: list[int]) -> Choice:
    return Choice(4, torch.tensor(ids), torch.ones(len(ids), len(ids[0])))


def test_by_hand() -> None:
    tally = DriftTally(4)
    tally.add(choice([0, 1], [0, 1]), choice([1, 0], [0, 2]))
    tally.add(choice([2, 3]), choice([2, 3]))
    found = tally.found("layer")
    assert found.agreement == pytest.approx((1 + 0.5 + 1) / 3) and found.same == pytest.approx(2 / 3)
    assert found.total_variation == pytest.approx(1 / 6)  # one of six choices went from expert 1 to 2


def test_equal_loads_may_hide_that_every_token_moved() -> None:
    tally = DriftTally(4)
    tally.add(choice([0, 1], [2, 3]), choice([2, 3], [0, 1]))
    found = tally.found("layer")
    assert (found.agreement, found.same, found.total_variation) == (0, 0, 0)
