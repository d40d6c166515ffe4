"""The share of a fit that is taken is the one that leaves least on other text."""

from __future__ import annotations

import pytest
import torch

from moec.experts.stream_step import STEPS, best_step


@pytest.mark.parametrize(("share", "taken"), [(-0.4, 0.0), (0.0, 0.0), (0.1, 0.0), (0.6, 0.5), (0.9, 1.0), (3.0, 1.0)])
def test_it_is_the_share_that_leaves_least(share: float, taken: float) -> None:
    generator = torch.Generator().manual_seed(0)
    back, wanted = torch.randn(50, 4, generator=generator), torch.randn(50, 4, generator=generator)
    step = best_step(share * back, back, wanted)
    unit = float(back.square().sum() / wanted.square().sum())
    assert step.taken == taken and step.left == min(step.stream)
    assert step.stream == pytest.approx([(share - s) ** 2 * unit for s in STEPS], rel=1e-5, abs=1e-6)
