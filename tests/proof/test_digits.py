"""A verdict does not turn when a manifest rounds its figures."""

from __future__ import annotations

import math

from moec.proof.digits import at_most, four_digits


def test_figures_have_four_digits() -> None:
    assert [four_digits(x) for x in (1.23456, 0.00012346, 123456.0, 0.0)] == [1.235, 0.0001235, 123500.0, 0.0]
    assert math.isinf(four_digits(math.inf)) and math.isnan(four_digits(math.nan))


def test_what_is_accepted_is_accepted_when_it_is_read_back() -> None:
    for figure, bound in ((0.99996, 1.0), (1.00004, 1.0), (1.23449, 1.2345), (1.23455, 1.2346), (0.5, 0.5)):
        if at_most(figure, bound):
            assert at_most(four_digits(figure), bound)
    assert at_most(0.5, 0.5) and not at_most(1.00004, 1.0)
    assert not at_most(1.23456, 1.23457)  # it is, and the manifest's 1.235 is not
    assert not at_most(math.nan, math.inf)
