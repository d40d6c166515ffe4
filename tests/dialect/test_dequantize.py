"""`moec::dequantize` and `pack`: bits, blocks, zero points."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from moec.dialect import dequantize, pack

ROWS, WIDTH = 3, 16


def numbers(bits: int) -> Tensor:
    return torch.randint(0, 2**bits, (2, ROWS, WIDTH), generator=torch.Generator().manual_seed(bits))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lowest_bits_come_first(bits: int) -> None:
    q, per_byte = numbers(bits), 8 // bits
    packed = pack(q, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (2, ROWS, WIDTH // per_byte)
    for k in range(WIDTH):
        byte = packed[..., k // per_byte].int()
        assert torch.equal((byte >> (k % per_byte * bits)) % 2**bits, q[..., k].int())


@pytest.mark.parametrize("block", [4, 8, WIDTH])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_value(bits: int, zeros: bool, block: int) -> None:
    q, generator = numbers(bits), torch.Generator().manual_seed(0)
    scale = torch.rand(2, ROWS, WIDTH // block, generator=generator)
    zero = torch.randint(0, 2**bits, scale.shape, generator=generator).to(torch.uint8) if zeros else None
    got = dequantize(pack(q, bits), scale, zero, bits=bits)
    assert got.shape == q.shape and got.dtype == scale.dtype
    for e, r, k in [(e, r, k) for e in range(2) for r in range(ROWS) for k in range(WIDTH)]:
        offset = 2 ** (bits - 1) if zero is None else int(zero[e, r, k // block])
        assert float(got[e, r, k]) == float((int(q[e, r, k]) - offset) * scale[e, r, k // block])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_the_dtype_of_the_scale(dtype: torch.dtype) -> None:
    assert dequantize(pack(numbers(4), 4), torch.ones(2, ROWS, 2, dtype=dtype), None, bits=4).dtype == dtype


@pytest.mark.parametrize("zeros", [False, True])
def test_operator_is_well_formed(zeros: bool) -> None:
    zero = torch.ones(2, ROWS, 2, dtype=torch.uint8) if zeros else None
    scale = torch.rand(2, ROWS, 2, requires_grad=True)
    assert set(
        torch.library.opcheck(
            torch.ops.moec.dequantize.default, (pack(numbers(4), 4), scale, zero), {"bits": 4}
        ).values()
    ) == {"SUCCESS"}


@pytest.mark.parametrize("zeros", [False, True])
def test_gradients_reach_the_scale(zeros: bool) -> None:
    scale = torch.rand(2, ROWS, 2, dtype=torch.float64, requires_grad=True)
    zero = torch.ones(2, ROWS, 2, dtype=torch.uint8) if zeros else None
    assert torch.autograd.gradcheck(lambda s: dequantize(pack(numbers(4), 4), s, zero, bits=4), scale)


@pytest.mark.parametrize("zeros", [False, True])
def test_it_makes_no_difference_how_much_is_unpacked_at_a_time(zeros: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    packed, scale = torch.randint(0, 256, (3, 5, 16), dtype=torch.uint8, generator=g), torch.rand(3, 5, 2, generator=g)
    zero = torch.randint(0, 16, (3, 5, 2), generator=g).to(torch.uint8) if zeros else None
    want = torch.ops.moec.dequantize(packed, scale, zero, bits=4)
    for numbers in (1, 64, 7 * 32):
        monkeypatch.setattr(sys.modules["moec.dialect.dequantize"], "BLOCK_NUMBERS", numbers)
        assert torch.equal(torch.ops.moec.dequantize(packed, scale, zero, bits=4), want)
    assert not torch.equal(torch.ops.moec.dequantize(packed, scale.flip(1), zero, bits=4), want)
    assert torch.ops.moec.dequantize(packed[:0], scale[:0], None, bits=4).shape == (0, 5, 32)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_packed_wherever_they_lie(bits: int) -> None:
    q = numbers(bits).to(torch.uint8)
    want = pack(q.clone(), bits)
    shifted = torch.zeros(q.numel() + 1, dtype=torch.uint8)[1:].view_as(q).copy_(q)  # no word begins there
    spread = q.repeat_interleave(2, -1)[..., ::2]
    assert torch.equal(pack(shifted, bits), want) and torch.equal(pack(spread, bits), want)
    assert torch.equal(pack(q[1:, 1:2], bits), want[1:, 1:2]) and torch.equal(pack(q.double(), bits), want)
    assert not torch.equal(pack(q.flip(-1), bits), want)
    assert pack(q[..., :0], bits).shape == (2, ROWS, 0) and pack(q[:0], bits).shape == (0, *want.shape[1:])
    assert pack(q.to("meta"), bits).shape == want.shape
