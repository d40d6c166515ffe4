"""The divergence is that of its definition, never below 0, and infinite only where q rules out what p does not; the
same holds for logits that are -inf."""

from __future__ import annotations

import math

import torch

from moec.execution.divergence import apart, divergence


def test_it_follows_its_definition() -> None:
    p, q = torch.randn(2, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    want = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(p, q), want)
    assert not torch.allclose(divergence(q, p), want) and (divergence(p, p) == 0).all()


def test_what_is_ruled_out() -> None:
    some, never = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    assert abs(divergence(never, some).item() - math.log(2)) < 1e-6
    assert divergence(some, never).item() == math.inf


def test_logits_that_are_ruled_out_in_both_count_for_nothing() -> None:
    one, other = torch.randn(2, 3, 5, 9, generator=torch.Generator().manual_seed(0))
    masked = [torch.cat([x, torch.full((3, 5, 2), -math.inf)], -1) for x in (one, other)]
    wanted = apart(one, other, logits=True)
    assert apart(*masked, logits=True) == wanted > 0.1  # a factor of 0 times infinity is not a number
    assert wanted == divergence(*(x.double().log_softmax(-1).flatten(0, 1) for x in (one, other))).mean()
    assert apart(one, masked[1][..., 2:], logits=True) == math.inf


def test_other_outputs_are_apart_by_their_squares() -> None:
    wanted = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert abs(apart(wanted, 0.9 * wanted, logits=False) - 0.01) < 1e-6
    assert apart(wanted, wanted, logits=False) == 0


def test_what_is_not_a_number_is_not_near_anything() -> None:
    some = torch.tensor([[0.0, 1.0, 2.0]])
    nothing = torch.tensor([[math.nan, 1.0, 2.0]])
    for pair in ((some, nothing), (nothing, some), (nothing, nothing)):
        assert math.isnan(apart(*pair, logits=True)) and math.isnan(divergence(*(v.log_softmax(-1) for v in pair)))
