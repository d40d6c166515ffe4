"""Activations as data: the function, its derivative and the keyword arguments that say it."""

from __future__ import annotations

import pytest
import torch

from moec.dialect import Activation
from tests.dialect.experts_case import ACTIVATIONS, naive_neuron


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_function(name: str) -> None:
    rule = ACTIVATIONS[name]
    h = torch.linspace(-3, 3, 40, dtype=torch.float64).reshape(10, 4)
    want = [
        [naive_neuron(rule, *map(float, row[i :: 4 // rule.rows_per_neuron])) for i in range(4 // rule.rows_per_neuron)]
        for row in h
    ]
    torch.testing.assert_close(rule(h), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_pull_back_is_the_derivative(name: str) -> None:
    rule = ACTIVATIONS[name]
    h = (torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2).requires_grad_()
    grad = torch.randn(rule(h).shape, dtype=torch.float64)
    (want,) = torch.autograd.grad(rule(h), h, grad)
    torch.testing.assert_close(rule.pull_back(h.detach(), grad), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_arguments_round_trip(name: str) -> None:
    assert Activation.of({**ACTIVATIONS[name].arguments(), "top_k": 2}) == ACTIVATIONS[name]


@pytest.mark.parametrize(("cap", "up_cap"), [(4.0, 0.0), (0.0, 25.0), (0.7, 1.5)])
def test_soft_caps_bend_the_factor_and_the_up_half(cap: float, up_cap: float) -> None:
    """Inkling 2: the sigmoid sees the gate as it is."""
    rule = Activation(cap=cap, up_cap=up_cap)
    h = (torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5).requires_grad_()
    gate, up = h.chunk(2, -1)
    bent = cap * torch.tanh(gate / cap) if cap else gate
    want = bent * gate.sigmoid() * (up_cap * torch.tanh(up / up_cap) if up_cap else up)
    torch.testing.assert_close(rule(h), want)
    grad = torch.randn(want.shape, dtype=torch.float64)
    torch.testing.assert_close(rule.pull_back(h.detach(), grad), *torch.autograd.grad(want, h, grad))
    assert Activation.of(rule.arguments()) == rule


@pytest.mark.parametrize("caps", [{"cap": 4.0}, {"up_cap": 2.0}])
def test_a_soft_cap_beside_a_limit_is_refused(caps: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        Activation(limit=7.0, **caps)
