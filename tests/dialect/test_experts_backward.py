"""The derivative of `moec::experts`, against finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moec.dialect import Activation
from tests.dialect.experts_case import ACTIVATIONS, case


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient(name: str, before: bool) -> None:
    rule = ACTIVATIONS[name]
    given = case(rule, biases=True, shape=(3,), used=3)
    leaves = [t.requires_grad_() for t in given.tensors() if t.is_floating_point()]
    call = lambda x, *rest: torch.ops.moec.experts(x, given.ids, *rest, **rule.arguments(), score_before=before)  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


def test_gradients_of_absent_and_frozen_arguments() -> None:
    given = case(shape=(2, 3))
    given.x.requires_grad_()
    torch.ops.moec.experts(*given.tensors()).sum().backward()
    assert given.x.grad is not None and given.w_in.grad is None
    given.w_out.requires_grad_()
    torch.ops.moec.experts(*given.tensors()).sum().backward()
    assert given.w_out.grad is not None and given.w_in.grad is None and given.weights.grad is None


def test_a_wrong_derivative_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Activation, "pull_back", lambda self, h, grad: torch.cat([grad, grad], -1))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        test_gradient("silu", False)


@pytest.mark.parametrize("train_experts", [False, True])
def test_backward_is_well_formed(train_experts: bool) -> None:
    given = case(biases=True)
    arguments = (torch.ones_like(given.x), *given.tensors(), '{"score_before": false}', train_experts)
    torch.library.opcheck(torch.ops.moec.experts_backward.default, arguments)
    assert len(torch.ops.moec.experts_backward(*arguments)) == (6 if train_experts else 2)


def test_what_is_no_expert_has_no_gradient() -> None:
    """The forward on CUDA lets such a choice add nothing; all other gradients are those without it."""
    given = case(shape=(4,), biases=True)
    wild, rule = given.ids.clone(), '{"score_before": false}'
    wild[0, 0], wild[3, 1] = -1, 2**40
    known = (wild >= 0) & (wild < given.w_in.shape[0])
    got = torch.ops.moec.experts_backward(torch.ones_like(given.x), given.x, wild, *given.tensors()[2:], rule, True)
    silent = replace(given, ids=wild.where(known, 0), weights=given.weights * known)
    want = torch.ops.moec.experts_backward(torch.ones_like(given.x), *silent.tensors(), rule, True)
    assert (got[1][~known] == 0).all() and (want[1][~known] != 0).all()
    for n in (0, 2, 3, 4, 5):
        torch.testing.assert_close(got[n], want[n])
    torch.testing.assert_close(got[1][known], want[1][known])
