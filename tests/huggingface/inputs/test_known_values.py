"""What hangs on given values alone is computed at the capture; what hangs on inputs is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.export import capture
from moec.huggingface.inputs.known_values import KnownValues

GRID = torch.tensor([[2, 3], [1, 4]])


class OnAGrid(nn.Module):
    def __init__(self, knows: bool) -> None:
        super().__init__()
        self.knows = knows

    def forward(self, x: Tensor) -> Tensor:
        if self.knows:
            with KnownValues():
                return self.placed(x)
        return self.placed(x)

    def placed(self, x: Tensor) -> Tensor:
        places = torch.cat([torch.arange(h).repeat_interleave(w) for h, w in GRID.tolist()])
        ends = torch.empty(2, dtype=torch.int64)
        ends[:] = GRID.prod(-1).cumsum(0)
        longest = torch.arange(int(ends.max()))
        return x * places + (longest < x.mean()) + ends.sum()


def test_loops_over_known_values_are_captured_as_constants() -> None:
    program = capture(OnAGrid(True), {"x": torch.randn(3, 10)}, {"x": ("batch", None)})
    x = torch.randn(5, 10)
    assert torch.equal(program.run(x=x)["output"], OnAGrid(False)(x))


def test_without_them_the_loop_ends_the_capture() -> None:
    with pytest.raises(MoecError) as caught:
        capture(OnAGrid(False), {"x": torch.randn(3, 10)}, {"x": ("batch", None)})
    assert caught.value.code == "M207"
