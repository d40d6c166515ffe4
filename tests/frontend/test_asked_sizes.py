"""Sizes of tensors note the numbers that code holds them against, and are numbers all the same."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from moec.frontend.asked_sizes import SizesAsked, sizes_around


class Held:
    """A size beside a number that is kept elsewhere."""

    most = 11

    def __init__(self) -> None:
        self.limit = 77

    def __call__(self, x: Tensor) -> bool:
        return len(x) > min(self.limit, self.most)


def factors(ask: Callable[[Tensor], object]) -> set[Fraction]:
    """How many times as large a size of `[6, 5, 4]` would have to be."""
    with SizesAsked() as asked:
        ask(torch.ones(6, 5, 4))
    return set(asked.found.values())


@pytest.mark.parametrize(
    ("ask", "factor"),
    [
        (lambda x: x.shape[0] > 12, Fraction(2)),
        (lambda x: x.size(1) == 5, Fraction(1)),
        (lambda x: x.shape[0] * x.shape[1] >= 300, Fraction(10)),
        (lambda x: x.view(-1, 4).shape[0] < 60, Fraction(2)),
        (lambda x: x.numel() >= 600, Fraction(5)),
        (lambda x: x.shape[0] * 1.5 / 3 > 9.0, Fraction(3)),
        (lambda x: -x.shape[1] % 20, None),  # a minus is no size
        (lambda x: x.shape[1] % 20, Fraction(4)),
        (lambda x: max(x.shape[0] // 3, 8), Fraction(1, 2)),
        (lambda x: max(x.shape[0] // 3, 8), Fraction(4)),
        (lambda x: x.shape[-1] == 4, None),  # of no tokens
        (lambda x: len(x) > 24, Fraction(4)),
        (lambda x: torch.arange(len(x)) < 18, Fraction(3)),
        (lambda x: torch.ge(torch.arange(len(x)).unsqueeze(1), 24), Fraction(4)),
        (lambda x: x < 18, None),  # no places
        (Held(), Fraction(77, 6)),
        (Held(), Fraction(11, 6)),
    ],
)
def test_what_a_size_is_held_against_is_noted(ask: Callable[[Tensor], object], factor: Fraction | None) -> None:
    found = factors(ask)
    assert factor in found if factor is not None else not found


def test_they_count_as_before() -> None:
    with SizesAsked():
        x = torch.arange(24.0).view(4, 6)
        rows, width = x.shape
        got = x.view(rows // 2, -1)[: rows - 3], torch.zeros(rows * 2, width), list(range(rows)), {rows: 1}[4]
    assert torch.equal(got[0], torch.arange(12.0)[None]) and got[1].shape == (8, 6)
    assert (got[2], got[3], rows - 1.5, 2 * rows, rows == 4) == ([0, 1, 2, 3], 1, 2.5, 8, True)


def test_both_sides_of_a_number() -> None:
    assert {(511, 1), (512, 1), (513, 1), (63, 8), (63, 9)} <= sizes_around(63, 1, Fraction(512, 63))
    assert {(7, 3), (7, 4), (6, 3)} <= sizes_around(7, 3, Fraction(1)) and (0, 1) not in sizes_around(1, 1, Fraction(0))
