from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class Remade(nn.Module):
    """As BigBird: forward makes a module, and puts its weights in it."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        made = nn.Sequential(nn.Linear(8, 8))
        made[0] = self.line
        return torch.as_tensor(made(x))


def test_what_a_module_made_in_forward_starts_with_is_not_read() -> None:
    assert moec.capture(Remade(), {"x": torch.randn(3, 8)}).outputs == ("output",)


def _drawn_over(x: Tensor) -> Tensor:
    y = x * 2
    y.uniform_()
    return y + 1


def _drawn_over_a_part(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :1].normal_()
    return y + 1


def _dropped_in_training(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, True)


@pytest.mark.parametrize("function", [_drawn_over, _drawn_over_a_part, _dropped_in_training])
def test_every_draw_that_is_read_is_seen(function: Callable[[Tensor], Tensor]) -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    with pytest.raises(MoecError, match="random numbers"):
        moec.capture(Drawing(), {"x": torch.randn(3, 8)})
