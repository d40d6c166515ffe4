"""Codes and scales in the blocks of a GGUF file, as the format's own library reads them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from moec.dialect import dequantize, pack
from moec.huggingface.gguf.blocks import as_bytes, form_of, from_blocks, why_not
from moec.huggingface.saving.half_precision import Rounding
from moec.weights.lazy import decoded, from_tensor
from moec.weights.weight import PackedWeight

ROWS, WIDTH = 6, 128


def packed(bits: int, group: int = 32, dtype: torch.dtype = torch.float16, zero: bool = False) -> PackedWeight:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (2, ROWS, WIDTH), generator=generator)
    scale = torch.randn(2, ROWS, WIDTH // group, generator=generator).to(dtype)
    zeros = torch.full(scale.shape, 3, dtype=torch.uint8) if zero else None
    parts = [from_tensor(t, str(n)) for n, t in enumerate((pack(codes, bits), scale))]
    return PackedWeight(parts[0], parts[1], None if zeros is None else from_tensor(zeros, "zero"), bits)


def by_library(data: Tensor, form: str) -> Tensor:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    found = gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType[form])
    return torch.from_numpy(np.asarray(found))


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("bits", "form"), [(4, "Q4_0"), (8, "Q8_0")])
def test_the_library_reads_the_numbers_that_the_program_has(bits: int, form: str, group: int) -> None:
    coded, rounding = packed(bits, group), Rounding()
    data = as_bytes("w", decoded(coded), form, rounding).load()
    want = dequantize(coded.packed.load(), coded.scale.load().float(), bits=bits)
    assert torch.equal(by_library(data, form), want)
    assert (rounding.steps, rounding.small) == (0.0, 0) and rounding.scales == coded.scale.load().numel()
    data[0, 0, 3] ^= 1  # one bit of one code
    assert not torch.equal(by_library(data, form), want)


@pytest.mark.parametrize(("bits", "form"), [(4, "Q4_0"), (8, "Q8_0")])
def test_blocks_are_read_as_the_codes_that_were_written(bits: int, form: str) -> None:
    coded = packed(bits)
    data = as_bytes("w", decoded(coded), form, Rounding())
    found = from_blocks(data, form)
    assert torch.equal(found.packed.load(), coded.packed.load()) and torch.equal(found.scale.load(), coded.scale.load())
    assert found.bits == bits and found.zero is None and found.shape == coded.shape
    assert torch.equal(found.packed.read(1, 2), coded.packed.load()[1:2])


def test_floats_that_lose_digits_are_named() -> None:
    rounding = Rounding()
    for name, value in {"exact": 1.5, "rounded": 1.1, "too large": 1e6}.items():
        weight = from_tensor(torch.full((2, 32), value), name)
        as_bytes(name, weight, "F16", rounding).load()
    assert rounding.floats == {"rounded"} and rounding.lost == {"too large"}


def test_what_has_no_image_is_said() -> None:
    assert [why_not(decoded(packed(bits))) for bits in (4, 8)] == ["", ""]
    assert "16" in why_not(decoded(packed(4, 16))) and "2 bits" in why_not(decoded(packed(2)))
    assert "zero points" in why_not(decoded(packed(4, zero=True)))


def test_vectors_stay_float32() -> None:
    vector, matrix = (from_tensor(torch.zeros(shape), "w") for shape in ((4,), (4, 4)))
    assert (form_of(vector, "F16"), form_of(matrix, "F16"), form_of(decoded(packed(8)), "F16")) == (
        "F32",
        "F16",
        "Q8_0",
    )
