"""The share of a fit that is taken is the largest one that does no harm on other text."""

from __future__ import annotations

import pytest
import torch

from moec.experts.stream_step import best_step


@pytest.mark.parametrize(("share", "taken"), [(-0.4, 0.0), (0.1, 0.0), (0.3, 0.5), (0.4, 0.5), (0.6, 1.0), (3.0, 1.0)])
def test_it_is_the_largest_share_that_does_no_harm(share: float, taken: float) -> None:
    generator = torch.Generator().manual_seed(0)
    back, wanted = torch.randn(50, 4, generator=generator), torch.randn(50, 4, generator=generator)
    step = best_step(share * back, back, wanted)
    unit = float(back.square().sum() / wanted.square().sum())
    assert step.taken == taken and step.left == step.stream[taken] <= step.before
    assert step.stream == pytest.approx({s: (share - s) ** 2 * unit for s in (0.0, 0.5, 1.0)}, rel=1e-5, abs=1e-6)
    assert step.before == step.stream[0.0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 0.0])
def test_what_is_no_number_or_was_not_fitted_is_no_step(broken: float) -> None:
    apart = torch.ones(5, 4)
    assert best_step(apart, torch.full((5, 4), broken), apart).taken == 0.0
