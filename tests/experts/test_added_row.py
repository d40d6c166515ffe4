"""A row that is put behind a router's: tokens of its text go there, and no others."""

from __future__ import annotations

import torch
from torch import Tensor

from moec.experts.added_row import Read, fit_row
from moec.experts.merged_router import confusion, fit_router

GENERATOR = torch.Generator().manual_seed(0)
CENTERS = torch.randn(4, 16, generator=GENERATOR)


def tokens(kind: int, count: int = 600, spread: float = 0.5) -> Tensor:
    return CENTERS[kind] + spread * torch.randn(count, 16, generator=GENERATOR)


def read(new: int) -> Read:
    return Read(tokens(new), [tokens(kind) for kind in range(3)])


def old_router() -> Tensor:
    return fit_router([tokens(k) for k in range(3)], [tokens(k, 100) for k in range(3)], 1e-3).weight


def test_tokens_of_its_text_go_there_and_others_where_they_went() -> None:
    router, text, held_out = old_router(), read(3), read(3)
    found = fit_row(router, text, held_out, 1e-3)
    assert found.right > 0.95 and found.kept > 0.95
    whole = torch.cat([router, found.weight[None]])
    table = confusion(whole, [*held_out.others, held_out.new])
    assert bool((table.diagonal() > 0.9).all())
    assert abs(float(table[3, 3]) - found.right) < 1e-6 and abs(1 - float(table[:3, 3].mean()) - found.kept) < 1e-6
    chance = confusion(torch.cat([router, torch.randn(1, 16, generator=GENERATOR)]), [*held_out.others, held_out.new])
    assert float(chance[3, 3]) < 0.9 or float(chance[:3, 3].max()) > 0.1  # the bounds tell them apart


def test_no_other_margin_is_likelier() -> None:
    router = old_router()
    text, held_out = (Read(tokens(3, spread=1.5), [tokens(kind, spread=1.5) for kind in range(3)]) for _ in range(2))
    found = fit_row(router, text, held_out, 1e-3)
    labels = [1.0, -1.0, -1.0, -1.0]
    parts = [text.new, *text.others]
    shares = torch.tensor([0.5, *[0.5 / 3] * 3])
    moment = sum((s * x.T @ x / len(x) for s, x in zip(shares, parts, strict=True)), 1e-9 * torch.eye(16))
    wanted = torch.stack([s * sign * x.mean(0) for s, sign, x in zip(shares, labels, parts, strict=True)]).sum(0)
    direction = torch.linalg.solve(moment, wanted)
    least = loss(router, found.weight, held_out)
    assert 0.05 < least < 0.6  # it is not decided
    others = [loss(router, found.weight + step * direction, held_out) for step in (-0.3, 0.3)]
    assert all(least < other for other in others)


def loss(router: Tensor, row: Tensor, text: Read) -> float:
    """The mean cross-entropy of going to the new expert."""
    ahead = [x @ row - torch.logsumexp(x @ router.T, -1) for x in (text.new, *text.others)]
    new, *others = [torch.nn.functional.softplus(-a if k == 0 else a).mean() for k, a in enumerate(ahead)]
    return float(new + torch.stack(others).mean()) / 2


def test_a_text_that_is_one_of_the_others_takes_about_half_of_its_tokens() -> None:
    router, text, held_out = old_router(), read(1), read(1)
    found = fit_row(router, text, held_out, 1e-3)
    assert found.right > 0.2 and found.kept < 0.95  # nothing tells them apart
    assert bool(found.weight.isfinite().all())
