"""Samples: valid, random, reproducible, and with padding where there is room for it."""

from __future__ import annotations

import pytest
import torch

from moec.frontend.domain import Domain, sample_input
from moec.program.program import Input

SIZES = {"batch": 4, "sequence": 9}


def draw(
    dtype: torch.dtype, domain: Domain | None, shape: tuple[int | str, ...] = ("batch", "sequence"), seed: int = 0
) -> torch.Tensor:
    return sample_input(Input("x", dtype, shape), domain, SIZES, torch.Generator().manual_seed(seed))


def test_tokens_cover_their_vocabulary_and_nothing_else() -> None:
    ids = draw(torch.int64, Domain("token", 5), (1000,))
    assert set(ids.tolist()) == set(range(5))
    assert draw(torch.int32, None).dtype == torch.int32 and set(draw(torch.int64, None).flatten().tolist()) <= {0, 1}


def test_masks_keep_a_token_of_each_row_and_pad_all_rows_but_the_first() -> None:
    mask = draw(torch.int64, Domain("mask"), (4, 3))
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]]


def test_positions_count() -> None:
    assert torch.equal(draw(torch.int64, Domain("position")), torch.arange(9).expand(4, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_numbers_are_normal(dtype: torch.dtype) -> None:
    values = draw(dtype, None, (4000,))
    assert (
        values.dtype == dtype and abs(float(values.float().std()) - 1) < 0.1 and abs(float(values.float().mean())) < 0.1
    )
