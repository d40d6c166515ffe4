"""Rounding to FP8 and NVFP4: nearest, without overflow, the same by rows as at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.dialect import dequantize_float
from moec.quantization.small_floats import _nearest, quantize_floats
from moec.weights.lazy import from_tensor
from moec.weights.weight import FloatCodes

FORMATS = ["fp8", "nvfp4"]
# relative error of normal numbers, measured 0.026 to 0.027 and 0.094 to 0.096; half a step of three bits of fraction,
# and of one
BOUNDS = {"fp8": (0.02, 0.03), "nvfp4": (0.08, 0.11)}


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def value(made: FloatCodes, kind: str) -> Tensor:
    return dequantize_float(*(part.load() for part in made.parts()), format=kind, dtype=made.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(6, 128), (3, 6, 128)])
@pytest.mark.parametrize("kind", FORMATS)
def test_errors_are_those_of_the_format(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = numbers(*shape, dtype=dtype)
    got = value(quantize_floats(from_tensor(x, "x"), kind), kind)
    assert got.dtype == dtype and got.shape == x.shape
    low, high = BOUNDS[kind]
    assert low < float((got - x).float().norm() / x.float().norm()) < high


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_are_those_of_the_whole(kind: str) -> None:
    made = quantize_floats(from_tensor(numbers(5, 6, 128), "x"), kind)
    for part in made.parts():
        assert tuple(part.load().shape) == part.shape and part.load().dtype == part.dtype
        rows = (lambda a, b, p=part: p.load()[a:b]) if part.shape else (lambda a, b, p=part: p.load())
        assert all(torch.equal(part.read(a, b), rows(a, b)) for a, b in [(0, 1), (2, 5), (4, 5), (3, 3)])


@pytest.mark.parametrize("kind", FORMATS)
def test_what_the_format_has_is_kept_exactly(kind: str) -> None:
    exact = value(quantize_floats(from_tensor(numbers(4, 128), "x"), kind), kind)
    assert torch.equal(value(quantize_floats(from_tensor(exact * 8, "y"), kind), kind), exact * 8)


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 128), torch.full((2, 128), 3e38), torch.full((2, 128), 1e-38), torch.eye(2, 128) * 1e4]
)
@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_overflows(kind: str, x: Tensor) -> None:
    got = value(quantize_floats(from_tensor(x, "x"), kind), kind)
    assert bool(got.isfinite().all()) and bool((got[x == 0] == 0).all())
    assert float(x.max()) < 1e-30 or float((got - x).abs().max()) <= 0.07 * float(x.abs().max())


def test_nearest_codes_with_ties_to_even_ones() -> None:
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    x = torch.linspace(-6, 6, 2401)
    both = torch.cat([grid, -grid])
    codes = _nearest(x)
    assert torch.equal((both[codes.long()] - x).abs(), (both - x[:, None]).abs().amin(1))
    assert _nearest(torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75])).tolist() == [0, 2, 2, 4, 4, 6, 6, 10]


@pytest.mark.parametrize("kind", FORMATS)
def test_one_number_serves_a_weight_and_rows_of_any_size(kind: str) -> None:
    """Experts a thousand times smaller than others have the same relative error: the exponents are in the codes, and in
    E4M3's scales."""
    x = numbers(3, 6, 128) * torch.tensor([1.0, 30.0, 1000.0])[:, None, None]
    stack = quantize_floats(from_tensor(x, "x"), kind)
    (one,) = [p for p in stack.parts() if p.dtype != torch.uint8]
    assert one.shape == () and float(one.load()) == pytest.approx(
        float(x.max()) / (448 * (6 if kind == "nvfp4" else 1)), rel=0.3
    )
    errors = (value(stack, kind) - x).norm(dim=(1, 2)) / x.norm(dim=(1, 2))
    assert float(errors.max()) < 1.2 * BOUNDS[kind][1]
    coarse = (x / x.max() * 7).round() * x.max() / 7
    assert float(((coarse - x).norm(dim=(1, 2)) / x.norm(dim=(1, 2))).max()) > 0.9, (
        "as integers on one scale they would be gone"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_two_scales_of_nvfp4_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    """In 16 bits the number for the whole weight would be below the smallest normal one, and the product of the two be
    rounded."""
    x = numbers(6, 128, dtype=dtype) * 0.01
    made = quantize_floats(from_tensor(x, "x"), "nvfp4")
    assert (
        made.overall is not None
        and made.overall.dtype == torch.float32
        and float(made.overall.load()) < torch.finfo(torch.float16).smallest_normal
    )
    got = value(made, "nvfp4")
    assert (
        got.dtype == dtype
        and BOUNDS["nvfp4"][0] < float((got - x).float().norm() / x.float().norm()) < BOUNDS["nvfp4"][1]
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_no_scale_is_zero(kind: str) -> None:
    """TensorRT wants positive scales, of weights that are nothing too."""
    for x in (torch.zeros(2, 32), torch.eye(2, 32)):
        parts = quantize_floats(from_tensor(x, "x"), kind).parts()
        assert all(bool((p.load() > 0).all()) for p in parts[1:])
