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
