"""Drawn samples: equal engines are not called different, shifted ones are, and too few runs say nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moec.timing.ratio import SURE, Ratio, confidence_of, least_rounds, of_first, ratio_of


def drawn(seed: int, rounds: int, shift: float = 1.0, drift: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Times of two engines in the same rounds: a machine that changes its speed, noise with a long tail on both."""
    random = np.random.default_rng(seed)
    machine = np.exp(np.cumsum(random.normal(0, 0.1, rounds))) if drift else np.ones(rounds)
    first, other = (machine * (1 + 0.02 * random.lognormal(0, 1, rounds)) for _ in range(2))
    return first, other / shift


@pytest.mark.parametrize("rounds", [6, 10, 30])
def test_equal_engines_are_rarely_called_different(rounds: int) -> None:
    verdicts = [ratio_of(*drawn(seed, rounds)).verdict for seed in range(400)]
    wrong = sum(v in ("faster", "slower") for v in verdicts)
    assert wrong <= 400 * (1 - SURE) * 1.5  # 20 are due; 30 or more come once in a hundred such lots
    assert "too few runs" not in verdicts


@pytest.mark.parametrize(("shift", "verdict"), [(1.1, "faster"), (1 / 1.1, "slower")])
def test_shifted_engines_are_called_different(shift: float, verdict: str) -> None:
    found = [ratio_of(*drawn(seed, 10, shift)) for seed in range(200)]
    assert sum(r.verdict == verdict for r in found) >= 180
    assert sum(r.low <= shift <= r.high for r in found) >= 180  # 190 are due


def test_pairs_see_what_two_samples_by_themselves_do_not() -> None:
    """The machine changes by far more than the engines differ."""
    from scipy.stats import mannwhitneyu

    lots = [drawn(seed, 20, shift=1.1) for seed in range(20)]
    assert sum(ratio_of(*lot).verdict == "faster" for lot in lots) >= 19
    assert sum(mannwhitneyu(*lot).pvalue < 0.05 for lot in lots) <= 10


def test_one_slow_run_moves_nothing() -> None:
    first, other = drawn(0, 30, 1.1)
    before = ratio_of(first, other)
    other[7] *= 1000
    after = ratio_of(first, other)
    assert after.verdict == before.verdict == "faster" and abs(after.median - before.median) < 0.02


def test_the_same_needs_enough_runs() -> None:
    ones = np.ones(20)
    assert ratio_of(ones, ones * 1.002).verdict == "the same" and ratio_of(ones, ones).verdict == "the same"
    assert ratio_of(*drawn(1, 10)).verdict == "no difference shown"  # nothing shows that they are equal, either


@pytest.mark.parametrize("comparisons", [1, 2, 4, 9])
def test_the_fewest_rounds_are_as_said(comparisons: int) -> None:
    sure = confidence_of(comparisons)
    least = least_rounds(sure)
    few, enough = (ratio_of(*drawn(0, n, 1.1, drift=False), sure) for n in (least - 1, least))
    assert few.verdict == "too few runs" and math.isnan(few.low) and f"--runs {least}" in few.beside("a")
    assert not math.isnan(enough.low)


def test_many_comparisons_are_held_to_more() -> None:
    assert confidence_of(1) == SURE < confidence_of(4)
    one, four = (ratio_of(*drawn(2, 30), confidence_of(n)) for n in (1, 4))
    assert four.low <= one.low and one.high <= four.high


def test_a_ratio_in_words() -> None:
    assert Ratio(1.2, 1.1, 1.3, SURE, 9).beside("a") == "faster, 1.20 times the speed of a (1.10 to 1.30)"
    assert Ratio(1.0, 0.9, 1.3, SURE, 9).beside("a").startswith("no difference shown")
    assert Ratio(1.0, 0.995, 1.002, SURE, 9).beside("a") == "as fast as a, within 1%"
    assert of_first(3).verdict == "first" and of_first(3).median == 1.0
