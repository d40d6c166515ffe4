"""The experts that explain wrong tokens are found, and no more than these."""

from __future__ import annotations

import torch

from moec.proof.blamed_experts import blame, wrong_tokens
from moec.proof.compare import Tolerance


def test_blame_takes_the_fewest_experts_and_the_guiltier_of_two() -> None:
    ids = torch.tensor([[0, 1], [0, 2], [1, 2], [3, 1]])
    assert blame(ids, torch.tensor([True, True, False, False])) == (0,)
    assert blame(ids, torch.tensor([True, False, False, True])) == (1,)
    assert blame(ids, torch.tensor([False, True, False, True])) == (0, 3)
    assert blame(ids, torch.zeros(4, dtype=torch.bool)) == ()


def test_a_token_is_wrong_by_the_figure_that_the_tolerance_bounds() -> None:
    want = torch.randn(100, 64)
    got = want + 0.3 * torch.randn(100, 64)
    got[5] = want[6]
    for budget in (Tolerance(rms=0.8), Tolerance(rms=0.4, row=1.1)):
        assert wrong_tokens(want, got, 100, budget).nonzero().tolist() == [[5]]
    assert (
        wrong_tokens(want, got, 100, Tolerance(0.4)).sum() > 50 and wrong_tokens(want, got, 100, Tolerance()).sum() == 0
    )
