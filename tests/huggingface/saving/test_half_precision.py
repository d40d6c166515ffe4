"""What 16 bits make of scales is counted, and said."""

from __future__ import annotations

import pytest
import torch

from moec.huggingface.saving.half_precision import Rounding


def test_scales_that_lose_digits_are_counted() -> None:
    rounding = Rounding()
    rounding.half("w", 8, torch.tensor([1.0, 1 + 2**-11]))  # half of the last place: the most that can be lost
    assert rounding.steps == pytest.approx(2**7 * 2**-11, rel=1e-3) and not rounding.small
    rounding.half("w", 8, torch.tensor([3e-6]))
    assert (rounding.small, rounding.scales) == (1, 3) and not rounding.lost
    rounding.half("w", 4, torch.tensor([1e6]))
    assert rounding.lost == {"w"}


def test_codes_of_a_grid_with_zero_points_reach_twice_as_far() -> None:
    one, other = Rounding(), Rounding()
    for rounding, symmetric in ((one, True), (other, False)):
        rounding.half("w", 4, torch.tensor([1 + 2**-11]), symmetric)
    assert other.steps == pytest.approx(one.steps * 15 / 8)


def test_what_became_of_scales_is_said_in_a_line() -> None:
    assert Rounding().said() == []
    rounding = Rounding()
    rounding.half("w", 4, torch.tensor([1.5, -0.25]))
    assert rounding.said() == ["codes and scales are the program's own, bit for bit"]
    rounding.half("w", 4, torch.tensor([0.1, 1e-6]))
    (line,) = rounding.said()
    assert "of a step" in line and "1 of 4 are below 6.1e-5" in line
