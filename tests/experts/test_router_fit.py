"""Fitted rows are least-squares solutions found another way, rows with too few tokens stay, and what does not help is
not kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moec.experts.router_fit import FitData, best_experts, fit_router, fit_rows

T, E, H = 400, 6, 10
RIDGE = 0.01


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def data(seed: int, tokens: int = T, noise: float = 0.0, top: int = 3) -> FitData:
    """Activations that a fixed linear map has moved, and noise: the first can be made up for, the second cannot."""
    x = random(tokens, H, seed=seed)
    wanted = x @ router().T
    return FitData(
        x @ (torch.eye(H) + 0.1 * random(H, H, seed=99)) + noise * random(tokens, H, seed=seed + 50),
        wanted,
        best_experts(wanted, top),
    )


def router() -> Tensor:
    return random(E, H, seed=7)


def test_a_row_is_the_least_squares_solution_of_the_tokens_that_it_counts_for() -> None:
    bias, training = random(E, seed=3), data(0, noise=0.2)
    found = fit_rows(router(), router(), bias, training, RIDGE, 1)
    for e in range(E):
        x, y = (
            training.x[training.counts[:, e]].double(),
            training.wanted[training.counts[:, e], e].double() - bias[e].double(),
        )
        pull = (RIDGE * x.square().sum() / H).sqrt() * torch.eye(H, dtype=torch.float64)
        start = router()[e].double()
        want = torch.linalg.lstsq(torch.cat([x, pull]), torch.cat([y, pull @ start])[:, None]).solution[:, 0]
        torch.testing.assert_close(found[e], want, rtol=1e-8, atol=1e-8)
        assert not torch.allclose(
            found[e], torch.linalg.lstsq(x, y[:, None]).solution[:, 0], rtol=1e-5
        )  # the mutant: without the pull


def test_few_tokens_give_the_same_as_the_other_form_of_the_equations() -> None:
    few = data(0, tokens=8, top=E)
    wide = fit_rows(router(), router(), None, few, RIDGE, 1)
    twice = FitData(
        *(torch.cat([t, t]) for t in (few.x, few.wanted, few.counts))
    )  # more tokens than columns, nothing else
    torch.testing.assert_close(fit_rows(router(), router(), None, twice, RIDGE, 1), wide, rtol=1e-7, atol=1e-7)
    assert not torch.allclose(wide, router().double(), rtol=1e-3)


def test_rows_with_few_tokens_stay() -> None:
    training = data(0)
    floor = int(training.counts.sum(0).median()) + 1
    new, rows = fit_rows(router(), router(), None, training, RIDGE, floor), training.rows(floor)
    assert 0 < len(rows) < E
    for e in range(E):
        assert torch.equal(new[e], router()[e].double()) == (e not in rows)


def test_only_what_counts_is_fitted() -> None:
    training = data(0, noise=0.2)
    base = fit_rows(router(), router(), None, training, RIDGE, 1)
    beside, inside = training.wanted.masked_fill(~training.counts, 1e6), training.wanted + training.counts
    assert torch.equal(fit_rows(router(), router(), None, replace(training, wanted=beside), RIDGE, 1), base)
    assert not torch.allclose(
        fit_rows(router(), router(), None, replace(training, wanted=inside), RIDGE, 1), base, rtol=1e-3
    )


def test_the_best_and_the_chosen_count() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    assert best_experts(logits, 2).tolist() == [[True, True, False, False], [False, False, True, True]]
    chosen = torch.tensor([[False, False, False, True], [False] * 4])  # as a correction bias chooses
    assert best_experts(logits, 1, chosen).tolist() == [[True, False, False, True], [False, False, False, True]]
    assert best_experts(logits, 9).all()


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_linear_shift_is_made_up_for(noise: float) -> None:
    training, held_out = data(0, noise=noise), data(1, noise=noise)
    found = fit_router(router(), router(), None, training, held_out, 1e-6, 50, lambda w: w.float())
    assert (
        found.weight is not None
        and found.weight.dtype == torch.float32
        and found.rows == E
        and sum(found.tokens) == 3 * T
    )
    assert found.loss_before == pytest.approx(held_out.loss(router(), None)) and found.loss_after == pytest.approx(
        held_out.loss(found.weight, None)
    )
    assert (found.loss_after < 1e-4 * found.loss_before) == (noise == 0)  # what is not linear stays


def test_fitting_twice_is_fitting_once() -> None:
    training, held_out = data(0, noise=0.2), data(1, noise=0.2)
    first = fit_router(router(), router(), None, training, held_out, RIDGE, 1, lambda w: w.float())
    assert first.weight is not None
    again = fit_router(first.weight, router(), None, training, held_out, RIDGE, 1, lambda w: w.float())
    assert again.weight is None and again.loss_before == again.loss_after == first.loss_after


def test_a_fit_that_does_not_help_elsewhere_is_not_kept() -> None:
    training, held_out = data(0), data(1)
    misled = replace(training, wanted=random(T, E, seed=11))
    for wrong, rounded in (
        (misled, lambda w: w),
        (training, torch.zeros_like),
        (replace(training, x=training.x * torch.nan), lambda w: w),
    ):
        found = fit_router(router(), router(), None, wrong, held_out, RIDGE, 50, rounded)
        assert found.weight is None and "does not lower its error" in found.reason and found.rows == E
    found = fit_router(router(), router(), None, training, held_out, RIDGE, T + 1, lambda w: w)
    assert (
        found.weight is None
        and found.rows == 0
        and f"best of {T + 1} tokens" in found.reason
        and str(max(found.tokens)) in found.reason
    )


def test_what_is_right_already_is_left() -> None:
    training, held_out = (FitData(s.x, s.x @ router().T, s.counts) for s in (data(0), data(1)))
    found = fit_router(router(), router(), None, training, held_out, RIDGE, 1, lambda w: w)
    assert found.weight is None and "the untouched model's" in found.reason
    assert (
        fit_router(router() * (1 + 1e-3), router(), None, training, held_out, RIDGE, 1, lambda w: w).weight is not None
    )
