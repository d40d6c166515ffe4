"""`moec::route` with a capacity against a naive reference: choices enter one after the other, and experts fill up."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from moec.dialect import Capacity, Routing
from moec.dialect.capacity import within_capacity

EXPERTS, TOKENS = 5, 40


def naive(ids: Tensor, limit: int, counted: Tensor | None, order: str) -> Tensor:
    """Which choices `[T, K]` are kept."""
    tokens, choices = range(ids.shape[0]), range(ids.shape[1])
    line = product(tokens, choices) if order == "tokens" else ((t, k) for k in choices for t in tokens)
    taken, kept = [0] * EXPERTS, torch.zeros(ids.shape, dtype=torch.bool)
    for t, k in line:
        if counted is None or counted[t]:
            taken[int(ids[t, k])] += 1
            kept[t, k] = taken[int(ids[t, k])] <= limit
    return kept


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, EXPERTS, generator=generator) + torch.linspace(0, 1, EXPERTS)


@pytest.mark.parametrize("order", ["choices", "tokens"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("limit", [0, 4, 1000])
def test_each_line_is_filled_in_its_order(order: str, padded: bool, limit: int) -> None:
    logits = drawn(3, TOKENS)
    counted = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.7 if padded else None
    weights, ids = torch.ops.moec.route(logits, None, limit, counted, top_k=2, order=order)
    plain, _ = torch.ops.moec.route(logits, None, top_k=2)
    want = torch.stack([naive(ids[b], limit, None if counted is None else counted[b], order) for b in range(3)])
    assert torch.equal(weights != 0, want) and torch.equal(weights[want], plain[want])
    if limit == 4:
        other = naive(
            ids[0], limit, None if counted is None else counted[0], "tokens" if order == "choices" else "choices"
        )
        assert not torch.equal(want[0], other) and not torch.equal(want[0], naive(ids[0], 5, None, order))


def test_what_is_dropped_first_does_not_count_in_the_sum() -> None:
    rule = Routing(2, floor=1e-7).arguments()
    weights, _ = torch.ops.moec.route(drawn(TOKENS), None, 4, **rule, drop_first=True)
    after, _ = torch.ops.moec.route(drawn(TOKENS), None, 4, **rule)
    kept = (after != 0).sum(-1)
    assert set(kept.tolist()) == {0, 1, 2}
    torch.testing.assert_close(weights.sum(-1), (kept > 0).float())
    assert (after.sum(-1)[kept == 1] < 0.99).any()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("combine", ["softmax", "scores", "ones"])
def test_what_is_dropped_first_is_refused_where_no_sum_is_taken(combine: str, device: str) -> None:
    """A softmax would give a choice that is dropped its share."""
    with pytest.raises(ValueError, match="drop_first needs combine 'renormalize'"):
        torch.ops.moec.route(drawn(TOKENS).to(device), None, 4, top_k=2, combine=combine, drop_first=True)


def test_one_token_and_none() -> None:
    assert torch.ops.moec.route(drawn(), None, 1, top_k=2)[0].shape == (2,)
    assert torch.ops.moec.route(drawn(0), None, 1, top_k=2)[0].shape == (0, 2)
    assert within_capacity(torch.tensor([[1], [1]]), EXPERTS, Capacity(1)).tolist() == [[True], [False]]


def test_only_what_is_kept_has_a_derivative() -> None:
    logits = drawn(TOKENS).double().requires_grad_()
    given = {"top_k": 2, "combine": "scores"}
    weights, _ = torch.ops.moec.route(logits, None, 4, **given)
    weights.sum().backward()
    assert logits.grad is not None and torch.equal(logits.grad.abs().sum(-1) > 1e-12, (weights != 0).any(-1))
    torch.autograd.gradcheck(
        lambda x: torch.ops.moec.route(x, None, 4, **given)[0], (drawn(9).double().requires_grad_(),)
    )
