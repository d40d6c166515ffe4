"""A module that calls a function: what a test captures of a few lines of PyTorch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Calls(nn.Module):
    """`function` of one tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
