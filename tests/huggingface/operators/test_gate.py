"""Gates are told apart by their values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import Activation
from moec.huggingface.operators.gate import Gate, Order, canonical, identify, stored

RULES = [
    Activation("silu"),
    Activation("gelu"),
    Activation("gelu_tanh"),
    Activation("relu2"),
    Activation("silu", alpha=1.702),
    Activation("silu", limit=7.0),
    Activation("silu", limit=7.0, clamp_after=True),
    Activation("gelu_tanh", limit=7.0),
    Activation("silu", alpha=1.702, beta=1.0, limit=7.0),
    Activation("silu", limit=20000.0),
]
ORDERS: tuple[Order, ...] = ("gate_up", "interleaved", "up_gate")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_gate_is_found(rule: Activation, order: Order) -> None:
    owner = SimpleNamespace(swiglu_limit=rule.limit or 3.0, hidden_size=64)
    assert identify(lambda x: rule(canonical(x, order, 1)), True, (owner,)) == Gate(rule, order)


@pytest.mark.parametrize("name", ["silu", "gelu", "relu", "relu2"])
def test_plain_activations(name: str) -> None:
    rule = Activation(name, gated=False)
    assert identify(rule, False, ()) == Gate(rule)


def clamped_below(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate.clamp(-7.0, 7.0)) * up.clamp(-7.0, 7.0)


@pytest.mark.parametrize("function", [
    clamped_below,
    lambda x: 1.001 * Activation("silu")(x),
    lambda x: F.mish(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
    lambda x: x[:, :3],
    lambda x: x @ torch.ones(5),
])  # fmt: skip
def test_other_gates_are_not_guessed(function: object) -> None:
    assert identify(function, True, (SimpleNamespace(limit=7.0),)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ORDERS)
def test_canonical_puts_gates_first(order: Order) -> None:
    lines = {"gate_up": [0, 1, 2, 10, 11, 12], "interleaved": [0, 10, 1, 11, 2, 12], "up_gate": [10, 11, 12, 0, 1, 2]}
    stored = torch.tensor(lines[order]).view(1, 6, 1)
    assert canonical(stored, order, 1).flatten().tolist() == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_stored_is_the_way_back(order: Order, dim: int) -> None:
    x = torch.arange(24).reshape(4, 6)
    assert torch.equal(stored(canonical(x, order, dim), order, dim), x)
    assert order == "gate_up" or not torch.equal(canonical(x, order, dim), x)
