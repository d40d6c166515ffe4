"""Figures of routers whose answers are known: collapsed, uniform, with a dead expert, specialised."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moec.routing.alarms import alarms_of
from moec.routing.figures import RouterFigures, figures_of, summary_of
from moec.routing.tally import Choice, RouterTally


def routed(logits: Tensor, top_k: int = 1) -> Choice:
    shares = logits.softmax(-1)
    weights, ids = shares.topk(top_k, -1)
    return Choice(logits.shape[-1], ids, weights, shares)


def figures(*choices: Choice, domains: tuple[str, ...] = ()) -> RouterFigures:
    tally = RouterTally(choices[0].experts, choices[0].ids.shape[1])
    for number, choice in enumerate(choices):
        tally.add(choice, number % len(domains) if domains else None)
    return figures_of("layer", tally, domains)


def turns(experts: int, tokens: int, scale: float = 30.0) -> Tensor:
    """Logits of tokens that go to one expert after the other."""
    return scale * torch.eye(experts)[torch.arange(tokens) % experts]


def kinds(found: RouterFigures) -> list[str]:
    return [alarm.kind for alarm in alarms_of(found)]


def test_a_collapsed_router() -> None:
    found = figures(routed(torch.tensor([[0.0, 30.0, 0.0, 0.0]]).repeat(200, 1)))
    assert found.load == (0, 1, 0, 0) and found.max_vio == 3 and found.effective_experts == pytest.approx(1)
    assert found.dead == (0, 2, 3) and found.entropy == pytest.approx(0, abs=1e-6) and found.confidence == 1
    assert kinds(found) == ["collapse", "dead"]


def test_a_uniform_router() -> None:
    found = figures(routed(turns(4, 200)))
    assert found.load == (0.25,) * 4 and found.max_vio == 0 and found.effective_experts == pytest.approx(4)
    assert found.probability is not None and found.probability == pytest.approx((0.25,) * 4)
    assert found.dead == () == found.starved and kinds(found) == []
    assert [r.hit_rate for r in found.reuse] == [0, 0] and [r.uniform for r in found.reuse] == [0.25, 0.5]


def test_a_router_that_does_not_care() -> None:
    found = figures(routed(turns(4, 200, scale=0.01)))
    assert found.entropy == pytest.approx(1, abs=1e-4) and found.confidence == pytest.approx(0.25, abs=0.01)
    assert found.margin == pytest.approx(0.0025, abs=1e-4) and kinds(found) == ["indifferent"]


def test_a_dead_expert_and_a_starved_one() -> None:
    logits = torch.cat([turns(3, 999), torch.full((999, 2), -50.0)], 1)
    logits[0, 3] = 60
    found = figures(routed(logits))
    assert found.dead == (4,) and found.starved == (3,)
    assert kinds(found) == ["dead", "starved"]
    assert found.effective_experts == pytest.approx(math.exp(math.log(3)), rel=0.01)


def test_few_tokens_condemn_no_expert() -> None:
    found = figures(routed(turns(4, 3)))
    assert found.dead == () and kinds(found) == ["short"]


def test_a_router_specialised_by_domain() -> None:
    law, code = (routed(turns(2, 20, 30).roll(s, 1).repeat(1, 2) - torch.tensor(m) * 90.0)
                 for s, m in ((0, [0, 0, 1, 1]), (1, [1, 1, 0, 0])))  # fmt: skip
    found = figures(*[law, code] * 8, domains=("law", "code"))
    assert found.specialisation is not None and found.specialisation.bits == pytest.approx(1)
    assert found.specialisation.corrected_bits > 0.8
    assert found.domains == {"law": (0.5, 0.5, 0, 0), "code": (0, 0, 0.5, 0.5)}
    assert found.load == (0.25,) * 4  # which the load alone does not show
    assert figures(*[law, code] * 8).specialisation is None


def test_hard_load_and_gate_mass_are_apart() -> None:
    shares = torch.tensor([[0.9, 0.1]] * 40)
    found = figures(Choice(2, torch.tensor([[0, 1]] * 40), shares, shares))
    assert found.load == (0.5, 0.5) and found.gate_mass == pytest.approx((0.9, 0.1))
    assert found.margin is None and found.near_ties is None  # no expert is left out


def test_pairs_by_hand() -> None:
    ids = torch.tensor([[0, 1]] * 30 + [[2, 3]] * 10)
    found = figures(Choice(4, ids, torch.ones(40, 2)))
    assert [p.experts for p in found.pairs] == [(0, 1), (2, 3)]
    assert found.pairs[0].share == 0.75 and found.pairs[0].lift == pytest.approx(0.75 / 0.75**2)
    assert found.probability is None and found.entropy is None and found.margin is None


def test_a_summary_for_a_log() -> None:
    good, bad = figures(routed(turns(4, 200))), figures(routed(torch.tensor([[9.0, 0, 0, 0]]).repeat(200, 1)))
    found = summary_of([good, bad])
    assert found["router/max_vio"] == pytest.approx(1.5) and found["router/dead"] == 3
    assert found["router/effective_share"] == pytest.approx((1 + 0.25) / 2)
