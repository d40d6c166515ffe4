"""Linear layers in every form that models write them in; what only looks like one is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moec.frontend.export import capture
from moec.program.program import Program
from moec.recognition.linear import find_linears, without_views

IN, OUT = 6, 10
WEIGHT, BIAS = torch.randn(OUT, IN), torch.randn(OUT)


class Model(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias, self.function = nn.Parameter(WEIGHT.clone()), nn.Parameter(BIAS.clone()), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def captured(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Program:
    return capture(Model(function), {"x": torch.randn(3, 5, IN)}, {"x": ("batch", "sequence", None)})


LAYERS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], bool]] = {
    "linear": (lambda x, w, b: F.linear(x, w, b), True),
    "without bias": (lambda x, w, b: F.linear(x, w), False),
    "addmm": (lambda x, w, b: torch.addmm(b, x.view(-1, IN), w.t()).view(*x.shape[:-1], OUT), True),
    "mm": (lambda x, w, b: torch.mm(x.flatten(0, 1), w.permute(1, 0)), False),
    "matmul and addition": (lambda x, w, b: b + x @ w.transpose(-1, -2), True),
    "cast weight": (lambda x, w, b: F.linear(x.double(), w.double()), False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_found_in_its_canonical_layout(name: str) -> None:
    function, biased = LAYERS[name]
    program = captured(function)
    (linear,) = find_linears(program).values()
    assert torch.equal(linear.weight.load().float(), WEIGHT)
    assert linear.bias is not None and torch.equal(linear.bias.load(), BIAS) if biased else linear.bias is None
    x = torch.randn(2, 4, IN)
    found = F.linear(x, linear.weight.load().float(), BIAS if biased else None)
    torch.testing.assert_close(program.run(x=x)["output"].float().view_as(found), found)


def test_views_are_seen_through() -> None:
    program = captured(LAYERS["addmm"][0])
    (linear,) = find_linears(program).values()
    assert linear.x.name != "x" and without_views(linear.x).name == "x"


OTHERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "two activations": lambda x, w, b: x @ x.transpose(1, 2),
    "scaled addmm": lambda x, w, b: torch.addmm(b, x.view(-1, IN), w.t(), beta=2),
    "bias of another shape": lambda x, w, b: torch.addmm(w[:1, :1].t(), x.view(-1, IN), w.t()),
    "computed weight": lambda x, w, b: F.linear(x, w * 2),
    "computed bias": lambda x, w, b: F.linear(x, w, b * 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_not_a_linear_layer(name: str) -> None:
    assert find_linears(captured(OTHERS[name])) == {}
