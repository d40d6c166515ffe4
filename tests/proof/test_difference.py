"""Figures of one output."""

from __future__ import annotations

import math

import pytest
import torch

from moec.errors import MoecError
from moec.proof.difference import difference, summary

WANT = torch.arange(32.0).reshape(4, 8)


def test_a_difference_is_measured_in_spreads_of_its_sample() -> None:
    found = summary("logits", [difference("logits", WANT, WANT + 0.5, 0.1)])
    assert found.deviation == pytest.approx(0.5 / float(WANT.std(correction=0))) and found.rms == found.deviation
    one = WANT.clone()
    one[0, 0] += 0.5  # the largest difference stays, the mean of squares falls by the number of elements
    spiked = summary("logits", [difference("logits", WANT, one, 0.1)])
    assert spiked.deviation == found.deviation and spiked.rms == pytest.approx(found.rms / math.sqrt(32))
    assert found.row == found.rms and spiked.row == pytest.approx(found.rms / math.sqrt(8))  # of the row that has it


def test_rows_choose_in_logits_and_not_in_a_cache() -> None:
    assert summary("logits", [difference("logits", WANT, WANT.flip(-1), 0.1)]).top1 == 0
    assert summary("present.0.key", [difference("present.0.key", WANT, WANT.flip(-1), 0.1)]).top1 is None


@pytest.mark.parametrize(
    ("got", "problem"), [(None, "missing"), (WANT[:2], "shape"), (WANT * math.nan, "NaN"), (WANT / 0, "infinite")]
)
def test_what_cannot_be_compared_is_a_problem(got: torch.Tensor | None, problem: str) -> None:
    found = summary("logits", [difference("logits", WANT, got, 0.1)])
    assert problem in found.problem and found.deviation == math.inf


def test_a_reference_that_is_no_number_ends_the_proof() -> None:
    with pytest.raises(MoecError, match="M105"):
        difference("logits", WANT * math.nan, WANT, 0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (5,), (3, 1), (9, 8), (3, 40_000), (300, 7, 32)])
def test_figures_of_many_blocks_are_those_of_the_whole(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    want = torch.randn(shape, generator=generator).to(dtype)
    got = (want + 0.03 * torch.randn(shape, generator=generator)).to(dtype)
    before, found = (want.clone(), got.clone()), difference("logits", want, got, 0.1)
    assert torch.equal(want, before[0]) and torch.equal(got, before[1])
    w, g = want.double(), got.double()
    error = (g - w).abs()
    squares = error.square()
    figures = {
        "elements": w.numel(), "max_abs": error.max(), "sum_abs": error.sum(), "spread": w.std(correction=0),
        "total": w.sum(), "squares": w.square().sum(), "relative": error.norm() / w.norm(),
        "cosine": (w * g).sum() / w.norm() / g.norm(), "error_squares": squares.sum(),
        "row_squares": (squares.mean(-1) if shape else squares).max(),
    }  # fmt: skip
    assert {n: getattr(found, n) for n in figures} == pytest.approx({n: float(v) for n, v in figures.items()}, 1e-9)
    rows = w.shape[:-1].numel() if len(shape) and shape[-1] > 1 else 0
    same = (w.amax(-1, True) == w.gather(-1, g.argmax(-1, True))) if rows else torch.zeros(0)  # a tie is no error
    assert (found.rows, found.agree) == (rows, int(same.sum()))


def test_a_single_wrong_element_of_the_last_block_is_seen() -> None:
    want = torch.zeros(70_000, 4)
    want[:, 0] = 0.25
    got = want.clone()
    got[-1, 2] = 0.5
    found = difference("logits", want, got, 0.1)
    assert (found.max_abs, found.sum_abs, found.row_squares, found.agree) == (0.5, 0.5, 0.0625, 69_999)
