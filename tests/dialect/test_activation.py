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
