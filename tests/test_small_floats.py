"""Rounding to FP8 and NVFP4: nearest, without overflow, the same by rows as at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.dialect import dequantize_float
from moec.small_floats import Floats, _nearest, quantize_floats
from moec.weights import from_tensor

FORMATS = [("fp8", 32), ("fp8", 128), ("nvfp4", 16)]
# relative error of normal numbers, measured 0.026 and 0.094 to 0.096; half a step of three bits of fraction, and of one
BOUNDS = {"fp8": (0.02, 0.03), "nvfp4": (0.08, 0.11)}


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def value(made: Floats, kind: str) -> Tensor:
    return dequantize_float(*(part.load() for part in made.parts()), format=kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(6, 128), (3, 6, 128)])
@pytest.mark.parametrize(("kind", "group"), FORMATS)
def test_errors_are_those_of_the_format(kind: str, group: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = numbers(*shape, dtype=dtype)
    got = value(quantize_floats(from_tensor(x, "x"), kind, group), kind)
    assert got.dtype == dtype and got.shape == x.shape
    low, high = BOUNDS[kind]
    assert low < float((got - x).float().norm() / x.float().norm()) < high


@pytest.mark.parametrize(("kind", "group"), FORMATS)
def test_rows_are_those_of_the_whole(kind: str, group: int) -> None:
    made = quantize_floats(from_tensor(numbers(5, 6, 128), "x"), kind, group)
    for part in made.parts():
        assert tuple(part.load().shape) == part.shape and part.load().dtype == part.dtype
        assert all(torch.equal(part.read(a, b), part.load()[a:b]) for a, b in [(0, 1), (2, 5), (4, 5), (3, 3)])


@pytest.mark.parametrize(("kind", "group"), FORMATS)
def test_what_the_format_has_is_kept_exactly(kind: str, group: int) -> None:
    exact = value(quantize_floats(from_tensor(numbers(4, 128), "x"), kind, group), kind)
    assert torch.equal(value(quantize_floats(from_tensor(exact * 8, "y"), kind, group), kind), exact * 8)


@pytest.mark.parametrize("x", [torch.zeros(2, 128), torch.full((2, 128), 3e38), torch.full((2, 128), 1e-38), torch.eye(2, 128) * 1e4])
@pytest.mark.parametrize(("kind", "group"), FORMATS)
def test_nothing_overflows(kind: str, group: int, x: Tensor) -> None:
    got = value(quantize_floats(from_tensor(x, "x"), kind, group), kind)
    assert bool(got.isfinite().all()) and bool((got[x == 0] == 0).all())
    assert float(x.max()) < 1e-30 or float((got - x).abs().max()) <= 0.07 * float(x.abs().max())


def test_nearest_codes_with_ties_to_even_ones() -> None:
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    x = torch.linspace(-6, 6, 2401)
    both = torch.cat([grid, -grid])
    codes = _nearest(x)
    assert torch.equal((both[codes.long()] - x).abs(), (both - x[:, None]).abs().amin(1))
    assert _nearest(torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75])).tolist() == [0, 2, 2, 4, 4, 6, 6, 10]


def test_a_matrix_has_one_overall_scale_and_a_stack_one_each() -> None:
    x = numbers(3, 6, 128) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    stack = quantize_floats(from_tensor(x, "x"), "nvfp4", 16)
    assert stack.overall is not None and stack.overall.shape == (3,)
    assert torch.equal(stack.overall.load(), x.abs().amax((1, 2)) / (448 * 6))
    alone = quantize_floats(from_tensor(x[1], "x1"), "nvfp4", 16)
    assert alone.overall is not None and alone.overall.shape == () and torch.equal(alone.codes.load(), stack.codes.load()[1])
