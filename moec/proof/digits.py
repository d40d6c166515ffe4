"""Figures as a manifest keeps them, and verdicts that survive it."""

from __future__ import annotations


def four_digits(figure: float) -> float:
    """A figure with four significant digits: more would differ with the number of threads, and say nothing."""
    return float(f"{figure:.4g}")


def at_most(figure: float, bound: float) -> bool:
    """Whether a figure keeps a bound, as it was measured and as a manifest has it: what was accepted once is accepted
    when it is read back. NaN keeps none."""
    return figure <= bound and four_digits(figure) <= bound
