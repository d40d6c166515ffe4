"""How many experts a batch touches: what decides how many bytes a step of a mixture reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq


def distinct(experts: int, top_k: int, tokens: int) -> float:
    """Expected number of distinct experts of a layer when each of `tokens` takes `top_k` of `experts` uniformly and
    independently: E (1 - (1 - k/E)^B). Real texts touch fewer, see `distinct_by_load`."""
    return experts * (1 - (1 - top_k / experts) ** tokens)


def distinct_by_load(load: Sequence[float], top_k: int, tokens: int) -> float:
    """The same when expert i is taken with a measured share.

    Args:
        load: share of all assignments that each expert gets; sums to 1.
        top_k: experts a token.
        tokens: in the batch.
    """
    taken = chosen(load, top_k)
    return float(np.sum(1 - (1 - taken) ** tokens))


def power_law(experts: int, exponent: float = 1.2) -> list[float]:
    """A skewed load: the share of the i-th expert falls with i^-exponent. NVIDIA's published tables of kernels were
    measured with 1.2, beside the balanced load."""
    share = np.arange(1, experts + 1, dtype=np.float64) ** -exponent
    return list(share / share.sum())


def chosen(load: Sequence[float], top_k: int) -> np.ndarray:
    """Chance that a token takes each expert, `[E]`, summing to top_k; no expert is taken twice by one token, so chances
    saturate: 1 - (1 - share)^c, with the c that makes them sum to top_k."""
    share = np.asarray(load, dtype=np.float64)
    reached = int(np.count_nonzero(share))
    if top_k >= reached:
        return (share > 0).astype(np.float64)

    def excess(log_draws: float) -> float:
        return float(np.sum(-np.expm1(np.exp(log_draws) * np.log1p(-np.minimum(share, 1 - 1e-12))))) - top_k

    draws = np.exp(brentq(excess, -20.0, 60.0))
    found: np.ndarray = -np.expm1(draws * np.log1p(-np.minimum(share, 1 - 1e-12)))
    return found
