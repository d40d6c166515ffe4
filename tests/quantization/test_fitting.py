"""Pieces of a matrix, a text or a block give what the whole gives, however they lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moec.dialect import Activation, dequantize
from moec.quantization.fitting import ROWS, Block, Expert, fit_experts, fit_matrix, moments
from moec.quantization.gptq import encode_with, inverse_factor
from moec.quantization.grid import Grid
from moec.quantization.hessians import Arrivals, second_moments
from moec.quantization.rounding import encode
from moec.workers.pool import Here

WIDE, HERE = 64, Here()
GRID = Grid(4, 16, False, "gptq")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(count: int, seed: int) -> Tensor:
    """Inputs that go together."""
    return normal(count, 5, seed=seed) @ normal(5, WIDE) + 0.1 * normal(count, WIDE, seed=seed + 1)


def elsewhere(values: Tensor) -> Tensor:
    """The same numbers, one place further on in memory."""
    return torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape)


def transposed(values: Tensor) -> Tensor:
    """The same numbers, column by column in memory."""
    return values.t().contiguous().t()


def test_a_matrix_in_pieces_is_the_matrix() -> None:
    values, hessian = normal(ROWS + 300, WIDE), second_moments([rows(200, 1)])
    codes = fit_matrix(HERE, values, inverse_factor(hessian), GRID)
    found = dequantize(*codes, bits=4)
    whole = encode_with(values, hessian, GRID) or pytest.fail("it has a factor")
    wanted = dequantize(*(lambda c, s, z: (pack(c), s, z))(*whole), bits=4)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3
    assert float((found.roll(ROWS, 0) - wanted).norm() / wanted.norm()) > 0.5, "pieces in another order"
    plain = fit_matrix(HERE, values, None, Grid(4, 16))
    assert torch.equal(plain[1], encode(values, Grid(4, 16))[1]) and plain[2] is None


def pack(codes: Tensor) -> Tensor:
    from moec.dialect import pack

    return pack(codes, 4)


def test_moments_are_added_up_in_the_order_of_the_text() -> None:
    parts = [rows(n, n).reshape(-1, 2, WIDE) for n in (40, 6, 100)]
    found = moments(HERE, parts)
    assert torch.equal(found, second_moments(parts))
    torch.testing.assert_close(found, torch.cat([p.reshape(-1, WIDE) for p in parts]).T @ torch.cat(
        [p.reshape(-1, WIDE) for p in parts]) / 146)  # fmt: skip
    assert inverse_factor(torch.full((4, 4), float("nan"))) is None
    wanted = inverse_factor(found)
    given = inverse_factor(found)
    assert wanted is not None and given is not None and torch.equal(given, wanted) and given.is_contiguous()


@pytest.mark.parametrize("lies", [elsewhere, transposed])
def test_bytes_do_not_hang_on_where_numbers_lie(lies: Callable[[Tensor], Tensor]) -> None:
    text, values = rows(203, 3), normal(50, WIDE)
    hessian = moments(HERE, [text])
    assert torch.equal(moments(HERE, [lies(text)]), hessian)
    both = [fit_matrix(HERE, one, inverse_factor(hessian), GRID) for one in (values, lies(values))]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))  # type: ignore[arg-type]
    block = Block(Arrivals(text, torch.arange(203)[:, None] % 2, torch.ones(203, 1), 2), Activation("silu"))
    found = []
    for kind in (lambda t: t, lies):
        first, second = kind(normal(96, WIDE, seed=7)), kind(normal(WIDE, 48, seed=8))
        experts = [Expert(e, first, second, None, (None if e else GRID, GRID)) for e in (0, 1)]
        made = list(fit_experts(HERE, block, experts, (WIDE, 96, 48)))
        assert made[1][0] is None and not any(f.rounded for pair in made for f in pair if f)
        found.append([part for pair in made for f in pair if f for part in f.codes])
    assert len(found[0]) == 9 and all(map(torch.equal, *found))
