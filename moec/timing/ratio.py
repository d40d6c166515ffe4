"""Is one engine faster than another, or is it noise?

Engines run in turns, so that each round gives a pair of times that the machine treated alike, and the ratio of such a
pair is free of what changes slowly (clock, heat, neighbours). The answer is the median of these ratios with the
interval that its order statistics give: no shape of the noise is assumed, nothing is drawn at random, and one slow run
moves nothing. See W. J. Conover, Practical Nonparametric Statistics (3rd ed., 1999), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Verdict = Literal["first", "faster", "slower", "the same", "no difference shown", "too few runs"]
SURE = 0.95  # that all intervals of a benchmark hold together
NEAR = 0.01  # closer than this two engines are the same to whoever uses them


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the first engine another one is.

    Attributes:
        median: over the rounds, of (first engine's time / this one's): above 1 this one is faster.
        low, high: the interval of that median; not a number (NaN) where there are too few rounds for one.
        confidence: of the interval, see `confidence_of`.
        rounds: how many pairs there were.
    """

    median: float
    low: float
    high: float
    confidence: float
    rounds: int
    first: bool = False

    @property
    def verdict(self) -> Verdict:
        """`faster` or `slower` where the interval does not hold 1; `the same` where all of it is within 1 % of 1; `no
        difference shown` where it says neither, and `too few runs` where there is none."""
        if self.first:
            return "first"
        if math.isnan(self.low) or math.isnan(self.high):
            return "too few runs"
        if self.low >= 1 - NEAR and self.high <= 1 + NEAR:
            return "the same"
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "no difference shown"

    def beside(self, first: str) -> str:
        """The answer in words; `first` is the name of the first engine."""
        times = f"{self.median:.2f} times the speed of {first} ({self.low:.2f} to {self.high:.2f})"
        said: dict[Verdict, str] = {
            "first": "the others are compared with it",
            "faster": f"faster, {times}",
            "slower": f"slower, {times}",
            "the same": f"as fast as {first}, within {NEAR:.0%}",
            "no difference shown": f"no difference shown, {times}",
            "too few runs": f"{self.rounds} runs are too few to tell: --runs {least_rounds(self.confidence)} or more",
        }
        return said[self.verdict]


def ratio_of(
    first: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray, confidence: float = SURE
) -> Ratio:
    """Compare two engines by their times in the same rounds, in seconds, above 0 each."""
    from scipy.stats import quantile_test

    ratios = np.asarray(first, dtype=float) / np.asarray(other, dtype=float)
    interval = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(confidence)
    return Ratio(float(np.median(ratios)), float(interval.low), float(interval.high), confidence, len(ratios))


def of_first(rounds: int) -> Ratio:
    """What stands beside the first engine."""
    return replace(Ratio(1.0, 1.0, 1.0, SURE, rounds), first=True)


def confidence_of(comparisons: int) -> float:
    """The confidence of each of several intervals, so that all of them hold together with `SURE` (Bonferroni): who asks
    often enough finds a difference in anything."""
    return 1 - (1 - SURE) / max(1, comparisons)


def least_rounds(confidence: float) -> int:
    """The fewest rounds that can give an interval: with fewer, even the smallest and the largest ratio do not hold the
    median surely enough."""
    return max(2, math.ceil(1 - math.log2(1 - confidence) - 1e-9))
