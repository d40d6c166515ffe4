"""Epsilons, limits and thresholds of a model's code are among the constants of its engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moec.frontend.module_source import ModuleSource
from moec.program.program import Program
from moec.proof.literals import literals, missing_literals
from moec.targets.backend import Constant
from moec.weights.lazy import from_tensor


class Guarded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        x = torch.nn.functional.layer_norm(x, (4,), eps=1e-6).clamp(-20.0, 1.0)
        x = torch.where(x > 15.0, x, x * 3.0) + self.weight.clamp(max=9.0)  # of a weight alone: it is folded
        return x * 0.5 + 1e-20  # nothing that any float keeps


@pytest.fixture(scope="module")
def program() -> Program:
    return ModuleSource(Guarded(), {"x": torch.randn(3, 4)}).capture()


def numbers(*values: float, dtype: torch.dtype = torch.float32) -> dict[str, Constant]:
    return {str(v): Constant(str(v), "", (), from_tensor(torch.tensor(v, dtype=dtype), str(v))) for v in values}


def test_epsilons_bounds_and_thresholds_are_found(program: Program) -> None:
    assert {value for _, value in literals(program)} == {1e-5, 1e-6, -20.0, 15.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_is_looked_for_as_a_precision_has_it(program: Program, dtype: torch.dtype) -> None:
    assert list(missing_literals(program, numbers(1e-5, 1e-6, -20.0, 15.0, dtype=dtype))) == []
    lost = dict(missing_literals(program, numbers(1e-4, 1e-6, -20.0, dtype=dtype)))
    assert sorted(lost.values()) == [1e-5, 15.0]


def test_a_number_within_a_large_table_does_not_count(program: Program) -> None:
    table = {"table": Constant("table", "", (100,), from_tensor(torch.full((100,), 15.0), "table"))}
    assert 15.0 in dict(missing_literals(program, table)).values()
