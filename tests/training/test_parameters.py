"""Routers apart from the rest."""

from __future__ import annotations

from typing import Any

import torch

from moec.training import freeze_routers, router_groups, router_parameters
from tests import zoo

IDS = torch.randint(3, zoo.VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))


def step(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """Which parameters one step changes."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    return {name: not torch.equal(p, before[name]) for name, p in model.named_parameters()}


def test_frozen_routers_stay_and_the_rest_learns() -> None:
    model: Any = zoo.build("mixtral")
    names = freeze_routers(model)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    moved = step(model, optimizer)
    assert len(names) == 2 and not any(moved[n] for n in names) and sum(moved.values()) == len(moved) - 2
    freeze_routers(model, frozen=False)
    assert all(step(model, torch.optim.AdamW(model.parameters(), lr=1e-2))[n] for n in names)


def test_groups_hold_every_parameter_once_and_routers_have_their_own_rate() -> None:
    model: Any = zoo.build("mixtral")
    rest, routers = router_groups(model, lr=1e-2, router_lr=0.0, weight_decay=0.0)
    assert len(rest["params"]) + len(routers["params"]) == len(list(model.parameters()))
    moved = step(model, torch.optim.AdamW([rest, routers]))
    own = set(router_parameters(model))
    assert all(moved[name] is (name not in own) for name in moved)
