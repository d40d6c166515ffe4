from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import moec
from moec.errors import MoecError


class Noisy(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.line, self.dropout, self.always = nn.Linear(8, 8), nn.Dropout(0.5), always

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.line(x))
        return y + 0.01 * torch.randn_like(y) if self.always or self.training else y


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    with pytest.raises(MoecError, match="random numbers") as caught:
        moec.capture(Noisy(always=True).eval(), {"x": torch.randn(3, 8)})
    assert caught.value.code == "M206" and "training" in caught.value.fix


def test_noise_of_training_is_none() -> None:
    assert moec.capture(Noisy(always=False).eval(), {"x": torch.randn(3, 8)}).outputs == ("output",)
