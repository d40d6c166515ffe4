"""The divergence is that of its definition, never below 0, and infinite only where q rules out what p does not."""

from __future__ import annotations

import math

import torch

from moec.execution.divergence import divergence


def test_it_follows_its_definition() -> None:
    p, q = torch.randn(2, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    want = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(p, q), want)
    assert not torch.allclose(divergence(q, p), want) and (divergence(p, p) == 0).all()


def test_what_is_ruled_out() -> None:
    some, never = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    assert abs(divergence(never, some).item() - math.log(2)) < 1e-6
    assert divergence(some, never).item() == math.inf
