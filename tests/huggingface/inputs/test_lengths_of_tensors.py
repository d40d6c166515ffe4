"""`len(tensor)` fixes a size, and within `open_lengths` it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.errors import MoecError
from moec.frontend.export import capture
from moec.huggingface.inputs.lengths_of_tensors import open_lengths

SAMPLE = torch.randn(3, 4)


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), len([1, 2])) + len(torch.zeros(()).shape)


def test_the_batch_stays_open_and_python_stays_as_it_was() -> None:
    model = Counting()
    with open_lengths(model):
        program = capture(model, {"x": SAMPLE}, {"x": ("batch", None)})
    assert program.run(x=torch.randn(7, 4))["output"].shape == (7, 2)
    assert "len" not in globals()


def test_without_it_the_batch_is_fixed() -> None:
    with pytest.raises(MoecError, match="batch"):
        capture(Counting(), {"x": SAMPLE}, {"x": ("batch", None)})
