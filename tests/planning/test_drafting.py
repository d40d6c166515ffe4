"""Speculative decoding."""

from __future__ import annotations

import numpy as np
import pytest

from moec.errors import MoecError
from moec.planning.devices import devices
from moec.planning.drafting import accepted, break_even, drafts
from moec.planning.formats import FORMATS
from moec.planning.load import UNIFORM, read_load
from moec.planning.touched import distinct
from tests.planning.shapes import dense, mixture

BF16 = FORMATS["bf16"]


def test_a_draft_of_three_takes_the_experts_of_four_tokens() -> None:
    """Qwen3-30B's mixtures: 3.6 times the experts of one token; 3.2 were measured (vLLM, issue 46295)."""
    (row,) = drafts(mixture(128, 8), [BF16], [None], [1], 64, 3, UNIFORM)
    assert row.experts == pytest.approx((8, distinct(128, 8, 4))) and row.experts[1] / row.experts[0] > 3.6
    (skewed,) = drafts(mixture(128, 8), [BF16], [None], [1], 64, 3, read_load("zipf:0.8", mixture(128, 8)))
    assert skewed.experts[1] < 0.9 * row.experts[1]
    assert 1 < row.slowdown[0] == row.bytes[1] / row.bytes[0] < 3.7


def test_accepted_tokens_are_what_is_drawn() -> None:
    drawn = np.random.default_rng(0).random((20000, 3)) < 0.7
    length = 1 + np.cumprod(drawn, axis=1).sum(axis=1)
    assert accepted(0.7, 3) == pytest.approx(length.mean(), rel=0.01)
    assert accepted(0.8, 3) != pytest.approx(length.mean(), rel=0.01)


@pytest.mark.parametrize("slowdown", [1.2, 2.0, 3.5, 4.0])
def test_at_break_even_as_many_more_tokens_come_as_it_takes_longer(slowdown: float) -> None:
    assert accepted(break_even(slowdown, 3), 3) == pytest.approx(slowdown)


def test_where_nothing_is_lost_and_where_nothing_can_be_gained() -> None:
    assert break_even(1.0, 3) == 0 and break_even(4.4, 3) > 1


def test_a_dense_model_gains_at_once_where_a_mixture_does_not() -> None:
    (plain,), (mixed,) = (list(drafts(s, [BF16], [None], [1], 64, 3, UNIFORM)) for s in (dense(), mixture(128, 8)))
    assert plain.slowdown[0] < 1.05 and plain.break_even[1] < 0.05 < 0.4 < mixed.break_even[0]


def test_times_where_it_fits_and_once_where_it_does_not() -> None:
    huge = mixture(experts=512, layers=64)
    here = [devices()[n] for n in ("rtx4090", "rtx3090", "b200")]
    assert [d.device for d in drafts(huge, [BF16], here, [1], 64, 3, UNIFORM)] == [None]
    rows = list(drafts(mixture(), [BF16], here[:2], [1, 8], 64, 2, UNIFORM))
    assert [(r.device, r.batch) for r in rows] == [(n, b) for b in (1, 8) for n in ("rtx4090", "rtx3090")]
    assert all(1 < r.slowdown[0] <= r.slowdown[1] < 3 for r in rows)


@pytest.mark.parametrize("draft", [-1, 0, 65])
def test_drafts_that_are_none(draft: int) -> None:
    with pytest.raises(MoecError, match="--draft"):
        list(drafts(mixture(), [BF16], [None], [1], 64, draft, UNIFORM))
