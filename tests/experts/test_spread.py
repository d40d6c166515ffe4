"""Experts are given up where that costs least."""

from __future__ import annotations

import torch

from moec.experts.spread import spread

STEEP, FLAT = torch.tensor([9.0, 6.0, 3.0, 0.0]), torch.tensor([0.3, 0.2, 0.1, 0.0])


def test_experts_are_given_up_where_that_costs_least() -> None:
    assert spread([STEEP, FLAT], 1, 0.625) == [4, 1]
    assert spread([STEEP, FLAT], 2, 0.5) == [2, 2]
    assert spread([FLAT, FLAT], 1, 1.0) == [4, 4]


def test_a_cliff_behind_a_slope_is_seen() -> None:
    cliff = torch.tensor([1.0, 0.9, 0.9, 0.0])  # the first expert that is given up costs most, the others nothing
    even = torch.tensor([2.1, 1.4, 0.7, 0.0])
    assert spread([cliff, even], 1, 0.625) == [1, 4]


def test_large_layers_count_for_more_and_short_ones_end() -> None:
    assert spread([FLAT, FLAT * 1.5], 1, 0.75, [1, 1]) == [2, 4]
    assert spread([FLAT, FLAT * 1.5], 1, 0.75, [1, 2]) == [3, 3]
    assert spread([STEEP, torch.tensor([0.2, 0.0])], 1, 5 / 6) == [4, 1]
    assert spread([STEEP, torch.tensor([2.0, 0.0])], 1, 1.0) == [4, 2]
