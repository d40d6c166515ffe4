"""Experts that are rows of tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moec.frontend.export import capture
from moec.recognition.looked_up_experts import find_looked_up


class Retrieval(nn.Module):
    """Each token reads the rows that score highest, or rows that it is told."""

    def __init__(self, chosen: bool) -> None:
        super().__init__()
        self.router, self.chosen = nn.Linear(8, 12), chosen
        self.down, self.up = nn.Embedding(12, 8), nn.Embedding(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        scores, rows = self.router(x).topk(3, -1)
        rows = rows if self.chosen else torch.zeros_like(x[:, :3]).long()
        inner = torch.relu((self.down(rows) * x[:, None]).sum(-1)) * scores
        return (inner[..., None] * self.up(rows)).sum(1)


def test_tables_that_a_rank_looks_up_are_experts() -> None:
    (found,) = find_looked_up(capture(Retrieval(True).eval(), {"x": torch.randn(5, 8)}, {"x": ("tokens", None)}))
    assert (found.experts, found.top_k, found.hidden, len(found.tables)) == (12, 3, 8, 2)
    assert (found.parameters, found.active_parameters) == (2 * 12 * 8, 2 * 3 * 8)


def test_tables_that_no_rank_looks_up_are_none() -> None:
    assert not find_looked_up(capture(Retrieval(False).eval(), {"x": torch.randn(5, 8)}, {"x": ("tokens", None)}))
