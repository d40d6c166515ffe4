"""`moec::experts` against a naive reference, for every activation, layout and dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from moec.dialect import Activation
from moec.errors import MoecError
from tests.dialect.experts_case import ACTIVATIONS, EXPERTS, HIDDEN, Case, case


def error(
    given: Case, rule: Activation, wanted: Activation, before: bool = False, wanted_before: bool | None = None
) -> float:
    """Largest difference in units of the reference's spread, of the operator with `rule` and the naive reference with
    `wanted`."""
    got = torch.ops.moec.experts(*given.tensors(), **rule.arguments(), score_before=before)
    want = given.naive(wanted, before if wanted_before is None else wanted_before)
    assert got.dtype == given.x.dtype and got.shape == given.x.shape
    return float((got - want).abs().max() / want.std())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str) -> None:
    rule = ACTIVATIONS[name]
    given = case(rule, biases=True)
    assert (
        error(given, rule, rule)
        < 1e-12
        < error(given, rule, replace(rule, name="tanh" if rule.name != "tanh" else "silu"))
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt-oss", {"alpha": 1.0}),
        ("gpt-oss", {"beta": 0.0}),
        ("gpt-oss", {"limit": 0.0}),
        ("gpt-oss", {"clamp_after": True}),
        ("clamped after", {"clamp_after": False}),
        ("gelu", {"name": "gelu_tanh"}),
        ("plain silu", {"alpha": 1.702}),
    ],
)
def test_every_option_counts(name: str, change: dict[str, Any]) -> None:
    rule = ACTIVATIONS[name]
    assert error(case(rule), rule, replace(rule, **change)) > 1e-5


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(
    ("top_k", "shape", "used"),
    [(1, (9,), EXPERTS), (EXPERTS, (9,), EXPERTS), (2, (2, 3), EXPERTS), (2, (1,), 2), (1, (4,), 1), (3, (2, 3, 4), 4)],
)
def test_every_shape(before: bool, biases: bool, top_k: int, shape: tuple[int, ...], used: int) -> None:
    given = case(top_k=top_k, biases=biases, shape=shape, used=used)
    assert (
        error(given, Activation(), Activation(), before)
        < 1e-12
        < error(given, Activation(), Activation(), before, not before)
    )


def test_no_tokens() -> None:
    given = case(shape=(0,))
    assert torch.ops.moec.experts(*given.tensors()).shape == (0, HIDDEN)


def test_ids_in_any_order_and_twice() -> None:
    given = case()
    turned = Case(given.x, given.ids.flip(-1), given.weights.flip(-1), *given.tensors()[3:])
    torch.testing.assert_close(torch.ops.moec.experts(*turned.tensors()), torch.ops.moec.experts(*given.tensors()))
    same = Case(given.x, torch.zeros_like(given.ids), given.weights, *given.tensors()[3:])
    assert error(same, Activation(), Activation()) < 1e-12


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_dtypes(dtype: torch.dtype, limit: float) -> None:
    given = case(top_k=EXPERTS).to(dtype)
    assert error(given, Activation(), Activation()) < limit < error(given, Activation(), Activation("gelu"))


def test_summed_in_float32() -> None:
    """Many experts of one token: 16-bit sums would lose more than the 16-bit products do."""
    given = case(top_k=EXPERTS).to(torch.bfloat16)
    given.weights = given.weights.float()
    exact = case(top_k=EXPERTS).to(torch.bfloat16).to(torch.float64)
    exact.weights = given.weights.double()
    parts = [
        torch.ops.moec.experts(given.x, given.ids[:, [k]], given.weights[:, [k]], *given.tensors()[3:])
        for k in range(EXPERTS)
    ]
    narrow, want = torch.stack(parts).sum(0, dtype=torch.bfloat16), exact.naive(Activation())
    assert (torch.ops.moec.experts(*given.tensors()) - want).norm() < (narrow - want).norm()


@pytest.mark.parametrize("biases", [False, True])
def test_operator_is_well_formed(biases: bool) -> None:
    given = case(biases=biases, shape=(2, 3))
    leaves = tuple(t.requires_grad_() if t is not None and t.is_floating_point() else t for t in given.tensors())
    assert set(torch.library.opcheck(torch.ops.moec.experts.default, leaves, {"score_before": biases}).values()) == {
        "SUCCESS"
    }


@pytest.mark.parametrize("bad", [-1, EXPERTS, 2**40])
def test_an_id_that_is_no_expert_is_named(bad: int) -> None:
    given = case()
    given.ids.view(-1)[2] = bad
    with pytest.raises(MoecError, match=f"ids reach from .*{bad}.*, experts from 0 to {EXPERTS - 1}") as caught:
        torch.ops.moec.experts(*given.tensors())
    assert caught.value.code == "M212"
