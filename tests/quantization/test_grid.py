"""A grid says what of its settings is not possible, and which weights do not fit it."""

from __future__ import annotations

import pytest
import torch

from moec.quantization.grid import Grid
from moec.weights.lazy import from_tensor


@pytest.mark.parametrize(
    ("grid", "word"),
    [
        (Grid(5, 32), "bits=5"),
        (Grid(4, 24), "group=24"),
        (Grid(4, 256), "group=256"),
        (Grid(4, 32, True, "x"), "method='x'"),
        (Grid(True, 32), "bits=True"),
        (Grid(4, 32, positive_scales=2), "positive_scales=2"),
    ],  # type: ignore[arg-type]
)
def test_settings_that_are_none(grid: Grid, word: str) -> None:
    assert word in grid.problem and not Grid(4, 32).problem


def test_weights_that_do_not_fit() -> None:
    assert "do not divide" in Grid(4, 32).misfit(from_tensor(torch.zeros(4, 48), "w")) and not Grid(4, 16).misfit(
        from_tensor(torch.zeros(4, 48), "w")
    )
    assert "uint8 already" in Grid(4, 16).misfit(from_tensor(torch.zeros(4, 48, dtype=torch.uint8), "w"))
