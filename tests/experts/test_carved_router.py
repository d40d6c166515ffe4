"""Routers in closed form: a ridge finds what is linear in the logarithms, and a random one does not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moec.experts.carved_router import contributions, mean_rows, ridge
from moec.experts.router_fit import best_experts


def test_a_router_that_exists_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    x, true = torch.randn(400, 8, generator=generator) + 2, torch.randn(5, 8, generator=generator)
    norms = (x @ true.T / 4).exp()
    router, bias = ridge(x, norms, 1e-6)
    chosen = best_experts(F.linear(x, router, bias), 2)
    assert float((chosen == best_experts(norms, 2)).float().mean()) > 0.97
    other = best_experts(x @ torch.randn(5, 8, generator=generator).T, 2)
    assert float((other == best_experts(norms, 2)).float().mean()) < 0.9  # the bound tells them apart


def test_a_penalty_makes_rows_smaller_and_the_mean_stays() -> None:
    x, norms = torch.randn(64, 4), torch.rand(64, 3) + 0.1
    (loose, _), (tight, bias) = ridge(x, norms, 1e-6), ridge(x, norms, 1e6)
    assert float(tight.norm()) < 1e-3 * float(loose.norm())
    assert torch.allclose(bias, (norms + 1e-3 * norms.mean()).log().mean(0), atol=1e-3)


def test_contributions_are_norms_of_what_groups_add() -> None:
    hidden, w_out = torch.randn(9, 6), torch.randn(4, 6)
    groups = [torch.tensor([0, 3, 5]), torch.tensor([1, 2, 4])]
    found = contributions(hidden.split(4), w_out, groups)
    wanted = torch.stack([(hidden[:, g] @ w_out[:, g].T).norm(dim=1) for g in groups], 1)
    assert torch.allclose(found, wanted, atol=1e-5)
    router, bias = mean_rows(torch.arange(12.0).view(6, 2), groups)
    assert router[0].tolist() == pytest.approx([16 / 3, 19 / 3]) and not bias.any()


def test_a_silent_expert_breaks_nothing() -> None:
    router, bias = ridge(torch.randn(20, 3), torch.zeros(20, 2), 0.01)
    assert bool(router.isfinite().all()) and bool(bias.isfinite().all())
