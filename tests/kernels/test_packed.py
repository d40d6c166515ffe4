"""Packed weights, and experts with them in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import moec.dialect
from moec.dialect import Activation, pack
from moec.kernels import launch
from moec.kernels.packed import ExpertCodes
from moec.kernels.tiles import Tile
from tests.kernels.accuracy import MARGIN, problem, ratio
from tests.kernels.conftest import Interpret

EXPERTS, HIDDEN, INNER = 5, 64, 32


def packed(rows: int, depth: int, kind: str, group: int, zeros: bool, dtype: torch.dtype) -> ExpertCodes:
    generator = torch.Generator().manual_seed(rows)
    scale = (torch.rand(EXPERTS, rows, depth // group, generator=generator) + 0.5) / depth**0.5
    if kind == "fp8":
        return ExpertCodes(
            torch.randn(EXPERTS, rows, depth, generator=generator).to(torch.float8_e4m3fn), scale.to(dtype), group=group
        )
    bits = int(kind[-1])
    values = torch.randint(0, 2**bits, (EXPERTS, rows, depth), generator=generator)
    zero = (
        torch.randint(2 ** (bits - 2), 2 ** (bits - 1), scale.shape, generator=generator).to(torch.uint8)
        if zeros
        else None
    )
    return ExpertCodes(pack(values, bits), (scale / 2 ** (bits - 2)).to(dtype), zero, bits)


@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("bits", [4, 8])
def test_unpacked_is_what_the_dialect_dequantizes(bits: int, zeros: bool) -> None:
    weight = packed(6, 64, f"int{bits}", 16, zeros, torch.float32)
    assert weight.shape == (EXPERTS, 6, 64) and weight.group == 16 and weight.format == f"int{bits}"
    assert torch.equal(weight.unpacked(), moec.dialect.dequantize(weight.values, weight.scale, weight.zero, bits=bits))


def test_blocks_of_fp8() -> None:
    """DeepSeek-V3's: a scale for 128 by 128, the last of each row and column smaller."""
    values = torch.randn(1, 200, 150).to(torch.float8_e4m3fn)
    scale = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    weight = ExpertCodes(values, scale, group=128, rows=128)
    ratios = (weight.unpacked() / values.float())[0]
    assert [float(ratios[a, b].round()) for a, b in ((0, 0), (127, 128), (128, 127), (199, 149))] == [1, 2, 3, 4]


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
@pytest.mark.parametrize(
    ("kind", "group", "zeros", "depth"),
    [
        ("int4", 32, False, 32),
        ("int4", 32, True, 32),
        ("int4", 16, True, 32),
        ("int8", 32, False, 32),
        ("int8", 16, True, 16),
        ("fp8", 32, False, 32),
        ("int4", 32, True, 64),
    ],
)
def test_every_kind(interpret: Interpret, kind: str, group: int, zeros: bool, depth: int, sort: bool) -> None:
    """Groups of a step, of less than a step, and steps beyond the matrix's end."""
    given = replace(
        problem(tokens=9, experts=EXPERTS, hidden=HIDDEN, inner=INNER, dtype=torch.bfloat16),
        w_in=packed(2 * INNER, HIDDEN, kind, group, zeros, torch.bfloat16),
        w_out=packed(HIDDEN, INNER, kind, group, zeros, torch.bfloat16),
    )
    got = interpret(launch.experts, *given.tensors(), rule=Activation(), tile=Tile(16, 32, depth), sort=sort)
    assert isinstance(given.w_in, ExpertCodes)
    shifted = replace(given, w_in=replace(given.w_in, scale=given.w_in.scale.roll(1, 1)))
    assert ratio(got, given, Activation()) < MARGIN < ratio(got, shifted, Activation())


def test_float32_and_mixed(interpret: Interpret) -> None:
    """Packed into a float32 model, one matrix only, by the table's tile."""
    given = replace(
        problem(tokens=3, experts=EXPERTS, hidden=HIDDEN, inner=INNER),
        w_out=packed(HIDDEN, INNER, "int4", 32, True, torch.float32),
    )
    got = interpret(launch.experts, *given.tensors(), rule=Activation())
    assert isinstance(given.w_out, ExpertCodes)
    assert (
        ratio(got, given, Activation())
        < MARGIN
        < ratio(got, replace(given, w_out=replace(given.w_out, zero=None)), Activation())
    )


@pytest.mark.parametrize("sort", [False, True], ids=["few", "many"])
def test_blocks_of_fp8_in_the_kernel(interpret: Interpret, sort: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(EXPERTS, 2 * INNER, HIDDEN, generator=generator).to(torch.float8_e4m3fn)
    weight = ExpertCodes(values, torch.rand(EXPERTS, 3, 2, generator=generator) + 0.5, group=48, rows=24)
    given = replace(problem(experts=EXPERTS, hidden=HIDDEN, inner=INNER), w_in=weight)
    got = interpret(launch.experts, *given.tensors(), rule=Activation(), tile=Tile(16, 32, 32), sort=sort)
    wrong = replace(given, w_in=replace(weight, scale=weight.scale.roll(1, 1)))
    assert ratio(got, given, Activation()) < MARGIN < ratio(got, wrong, Activation())
