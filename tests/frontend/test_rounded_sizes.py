"""A capacity that a model rounds with `int` stays a size of the program."""

from __future__ import annotations

import torch
from torch import nn

from moec.execution.engine import EagerEngine
from moec.frontend.export import capture


class Cut(nn.Module):
    """Rows from a place on that hangs on their number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = max(int(0.7 * x.shape[0] / 3), 2)
        return torch.where(torch.arange(x.shape[0])[:, None] < place, x, 0.0)


def test_int_of_a_fraction_is_no_constant() -> None:
    program = capture(Cut(), {"x": torch.ones(9, 2)}, {"x": ("rows", None)})
    assert not program.conditions
    for rows in (1, 9, 90, 180):
        x = torch.ones(rows, 2)
        assert torch.equal(EagerEngine(program)(x=x)["output"], Cut()(x))
