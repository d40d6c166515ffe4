"""GPTQ makes the error of outputs small where inputs go together, and is rounding where they don't."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.quantization.gptq import encode_with, inverse_factor
from moec.quantization.grid import Grid
from moec.quantization.rounding import encode

OUT, IN = 24, 256


def correlated(count: int = 2048, seed: int = 0) -> Tensor:
    """Rows `[count, IN]` that a few directions make up for the most part, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, 16, generator=generator) @ torch.randn(16, IN, generator=torch.Generator().manual_seed(9))
    return base + 0.3 * torch.randn(count, IN, generator=generator)


def moments(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


def decoded(codes: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    offset = 2.0 ** (grid.stored - 1) if zero is None else zero.repeat_interleave(grid.group, -1)
    return (codes.float() - offset) * scale.repeat_interleave(grid.group, -1)


def output_error(values: Tensor, found: Tensor, rows: Tensor) -> float:
    return float((rows @ (found - values).T).norm() / (rows @ values.T).norm())


def weight() -> Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(1))


def gptq(values: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    found = encode_with(values, hessian, grid)
    assert found is not None
    return decoded(*found, grid)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [16, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_outputs_are_closer_than_rounded_ones(bits: int, group: int, symmetric: bool) -> None:
    grid, values = Grid(bits, group, symmetric, "gptq"), weight()
    rounded = decoded(*encode(values, Grid(bits, group, symmetric)), grid)
    fitted = gptq(values, moments(correlated()), grid)
    other = gptq(values, moments(correlated()).flip(0, 1), grid)  # the moments of other inputs
    errors = [
        output_error(values, found, correlated(seed=5)) for found in (fitted, rounded, other)
    ]  # rows that it was not fitted to
    assert errors[0] < 0.6 * errors[1] and errors[0] < 0.6 * errors[2]


@pytest.mark.parametrize("symmetric", [True, False])
def test_without_correlation_it_is_rounding(symmetric: bool) -> None:
    grid = Grid(4, 32, symmetric, "gptq")
    codes, scale, zero = encode_with(weight(), torch.eye(IN), grid) or pytest.fail("an identity has an inverse")
    want = encode(weight(), Grid(4, 32, symmetric))
    assert torch.equal(codes, want[0])
    torch.testing.assert_close(scale, want[1])
    assert (zero is None and want[2] is None) if symmetric else torch.equal(zero, want[2])  # type: ignore[arg-type]


def test_shapes_and_types_are_those_of_rounding() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        grid = Grid(4, 64, False, "gptq")
        found, want = (
            encode_with(weight().to(dtype), moments(correlated()), grid),
            encode(weight().to(dtype), Grid(4, 64, False)),
        )
        assert found is not None
        assert [(p.shape, p.dtype) for p in found if p is not None] == [
            (p.shape, p.dtype) for p in want if p is not None
        ]


def test_three_bits_stay_eight_levels_in_the_bytes_of_four() -> None:
    for symmetric in (True, False):
        codes = (encode_with(weight(), moments(correlated()), Grid(3, 64, symmetric, "gptq")) or pytest.fail())[0]
        assert codes.unique().tolist() == list(range(4, 12) if symmetric else range(8))


def test_inputs_that_are_always_zero_are_rounded_and_harm_nothing() -> None:
    rows = correlated()
    rows[:, 40:90] = 0
    found = gptq(weight(), moments(rows), Grid(8, 64, True, "gptq"))
    assert float((found - weight())[:, 40:90].abs().max()) < 0.05 and output_error(weight(), found, rows) < 0.01


def test_few_rows_still_give_a_factor() -> None:
    assert inverse_factor(moments(correlated(3))) is not None
    damped = moments(correlated(3)) + 0.01 * float(moments(correlated(3)).diagonal().mean()) * torch.eye(IN)
    factor = inverse_factor(moments(correlated(3)))
    assert factor is not None
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(IN), atol=0.01, rtol=0)


def test_a_matrix_that_float32_cannot_factor() -> None:
    spread = torch.logspace(4, -5, IN)
    turn = torch.linalg.qr(torch.randn(IN, IN, generator=torch.Generator().manual_seed(0)))[0]
    hessian = (turn * spread) @ turn.T
    assert inverse_factor(hessian, damping=1e-9) is not None
    assert torch.linalg.cholesky_ex(hessian)[1] != 0  # what a single attempt would have made of it


@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
def test_what_no_damping_helps_is_said(fill: float) -> None:
    assert encode_with(weight(), torch.full((IN, IN), fill), Grid(4, 64, True, "gptq")) is None


def test_equal_inputs_make_equal_codes() -> None:
    a, b = (encode_with(weight(), moments(correlated()), Grid(2, 32, True, "gptq")) for _ in range(2))
    assert a is not None and b is not None and torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
