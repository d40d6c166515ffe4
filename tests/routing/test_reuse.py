"""Hit rates of a cache of experts, by hand and against uniform routing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.routing.reuse import ReuseTally


def tally(ids: Tensor, experts: int) -> dict[int, float | None]:
    found = ReuseTally(experts, ids.shape[1])
    found.add(ids, torch.ones_like(ids, dtype=torch.bool))
    return {r.cached: r.hit_rate for r in found.found()}


def by_hand(ids: Tensor, size: int) -> float:
    """A list of the experts in the cache, the latest first."""
    cache: list[int] = []
    hits = seen = 0
    for token in ids.tolist():
        if len(cache) == size:
            hits, seen = hits + sum(e in cache for e in token), seen + len(token)
        for e in reversed(token):  # the best is fetched last
            cache = [e, *(c for c in cache if c != e)]
        cache = cache[:size]
    return hits / seen


@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (16, 2), (24, 3)])
def test_it_is_the_cache_that_one_would_write(experts: int, top_k: int) -> None:
    weights = torch.rand(700, experts, generator=torch.Generator().manual_seed(1)) * torch.linspace(1, 3, experts)
    ids = weights.topk(top_k, -1).indices
    for size, rate in tally(ids, experts).items():
        assert rate == pytest.approx(by_hand(ids, size), abs=1e-12)


def test_uniform_routing_hits_the_cached_share() -> None:
    weights = torch.rand(6000, 16, generator=torch.Generator().manual_seed(2))
    found = tally(weights.topk(2, -1).indices, 16)
    assert list(found) == [2, 4, 8]
    assert all(rate == pytest.approx(size / 16, abs=0.02) for size, rate in found.items() if rate is not None)
    assert tally((weights[:, :4]).topk(2, -1).indices, 16)[4] == 1  # four experts only, all of them cached


def test_turns_through_all_experts_never_hit_and_the_text_may_be_too_short() -> None:
    turns = (torch.arange(400) % 8)[:, None]
    assert tally(turns, 8) == {1: 0, 2: 0, 4: 0}
    assert tally(turns[:3], 8)[4] is None
    assert tally(torch.zeros(9, 1, dtype=torch.int64), 1) == {}


def test_caches_that_do_not_hold_one_token_are_not_asked_and_zero_weights_are_no_choices() -> None:
    found = ReuseTally(8, 3)
    assert found.sizes == [4]
    ids, used = torch.tensor([[0, 1]] * 50), torch.tensor([[True, False]] * 50)
    single = ReuseTally(4, 2)
    single.add(ids, used)
    assert single.found()[0].hit_rate is None  # one expert alone never fills a cache of two
