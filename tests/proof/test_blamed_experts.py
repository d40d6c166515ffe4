"""The experts that explain wrong tokens are found, and no more than these."""

from __future__ import annotations

import torch

from moec.proof.blamed_experts import blame


def test_blame_takes_the_fewest_experts_and_the_guiltier_of_two() -> None:
    ids = torch.tensor([[0, 1], [0, 2], [1, 2], [3, 1]])
    assert blame(ids, torch.tensor([True, True, False, False])) == (0,)
    assert blame(ids, torch.tensor([True, False, False, True])) == (1,)
    assert blame(ids, torch.tensor([False, True, False, True])) == (0, 3)
    assert blame(ids, torch.zeros(4, dtype=torch.bool)) == ()
