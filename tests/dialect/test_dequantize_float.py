"""`moec::dequantize_float`: every code of both formats, blocks, stacks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moec.dialect import dequantize_float

BYTES = torch.arange(256, dtype=torch.uint8)


def e4m3(code: int) -> float:
    """By the definition: sign, four bits of exponent with bias 7, three of fraction; no infinities."""
    sign, exponent, fraction = code >> 7, code >> 3 & 15, code & 7
    size = fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


def e2m1(code: int) -> float:
    sign, exponent, fraction = code >> 3, code >> 1 & 3, code & 1
    size = fraction / 2 if exponent == 0 else (1 + fraction / 2) * 2.0 ** (exponent - 1)
    return -size if sign else size


def test_every_code_of_fp8() -> None:
    numbers = [c for c in range(256) if c & 127 != 127]  # the rest is NaN
    codes = torch.tensor(numbers, dtype=torch.uint8)[None]
    got = dequantize_float(codes, torch.tensor([[0.5, 3.0]]), format="fp8")
    assert got.tolist() == [[e4m3(c) * (0.5 if i < 127 else 3.0) for i, c in enumerate(numbers)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_code_of_nvfp4(dtype: torch.dtype) -> None:
    codes = BYTES.reshape(2, 4, 32)  # a stack of two, four rows, 64 numbers in blocks of 16
    scale = torch.tensor([8, 40, 56, 126], dtype=torch.uint8).expand(2, 4, 4).contiguous()
    overall = torch.tensor([0.25, 3.0], dtype=dtype)
    got = dequantize_float(codes, scale, overall, format="nvfp4")
    assert got.dtype == dtype and got.shape == (2, 4, 64)
    for e in range(2):
        for r in range(4):
            for k in range(64):
                byte = int(codes[e, r, k // 2])
                assert float(got[e, r, k]) == e2m1(byte >> 4 if k % 2 else byte & 15) * e4m3(
                    int(scale[e, r, k // 16])
                ) * float(overall[e])


def test_a_matrix_has_one_overall_scale() -> None:
    codes, scale = BYTES.reshape(4, 64), torch.full((4, 8), 56, dtype=torch.uint8)
    whole = dequantize_float(codes, scale, torch.tensor(2.0), format="nvfp4")
    assert torch.equal(whole[1:3], dequantize_float(codes[1:3], scale[1:3], torch.tensor(2.0), format="nvfp4"))
    assert torch.equal(whole * 2, dequantize_float(codes, scale, torch.tensor(4.0), format="nvfp4"))


def test_one_scale_serves_a_stack_of_fp8() -> None:
    codes = BYTES.reshape(2, 2, 64) & 63
    got = dequantize_float(codes, torch.tensor(0.5), format="fp8")
    assert (
        torch.equal(got, dequantize_float(codes, torch.full((2, 2, 1), 0.5), format="fp8")) and got.shape == codes.shape
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_rounded_once(dtype: torch.dtype) -> None:
    codes, scale, overall = (
        BYTES.reshape(4, 64),
        torch.arange(64, 96, dtype=torch.uint8).reshape(4, 8),
        torch.tensor(0.0123),
    )
    wide = dequantize_float(codes, scale, overall, format="nvfp4")
    got = dequantize_float(codes, scale, overall, format="nvfp4", dtype=dtype)
    assert wide.dtype == torch.float32 and torch.equal(got, wide.to(dtype))
    twice = dequantize_float(codes, scale, overall.to(dtype), format="nvfp4")
    assert not torch.equal(got, twice), "which is not what computing in 16 bits gives"


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        ((BYTES.reshape(4, 64) & 63, torch.ones(4, 2)), "fp8"),
        ((BYTES.reshape(4, 64) & 63, torch.tensor(1.0)), "fp8"),
        ((BYTES.reshape(2, 2, 64), torch.full((2, 2, 8), 56, dtype=torch.uint8), torch.ones(2)), "nvfp4"),
        ((BYTES.reshape(4, 64), torch.full((4, 8), 56, dtype=torch.uint8), torch.tensor(1.0)), "nvfp4"),
    ],
)
def test_operator_is_well_formed(args: tuple[Tensor, ...], kind: str) -> None:
    for dtype in (None, torch.float16):
        found = torch.library.opcheck(torch.ops.moec.dequantize_float.default, args, {"format": kind, "dtype": dtype})
        assert set(found.values()) == {"SUCCESS"}
