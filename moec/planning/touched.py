"""How many experts a batch touches: what decides how many bytes a step of a mixture reads."""

from __future__ import annotations

from collections.abc import Sequence


def distinct(experts: int, top_k: int, tokens: float) -> float:
    """Expected number of distinct experts of a layer when each of `tokens` takes `top_k` of `experts` uniformly and
    independently: E (1 - (1 - k/E)^B). Real texts touch fewer."""
    return experts * (1 - (1 - top_k / experts) ** tokens)


def chances(shares: Sequence[float], top_k: int) -> tuple[float, ...]:
    """The probability of each expert to be among the `top_k` of a token.

    A measured share is the part of all choices that fell on an expert, so k times the share is that probability. Where
    a share is above 1/k, as a steep power law has it, the expert is always taken, and the others share what is left in
    proportion, until none is above.

    Args:
        shares: of each expert, which sum to 1.
        top_k: how many a token takes, at most as many as have a share.
    """
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    found, places, left = [0.0] * len(shares), float(min(top_k, len(shares))), 1.0
    for i in order:
        found[i] = min(1.0, places * shares[i] / left) if left > 1e-12 else 0.0
        if found[i] < 1.0:
            break
        places, left = places - 1.0, left - shares[i]
    return tuple(p if p == 1.0 else min(1.0, places * s / max(left, 1e-12)) for p, s in zip(found, shares, strict=True))


def distinct_of(probabilities: Sequence[float], tokens: float) -> float:
    """The same where expert i is among a token's with its own probability: the sum of 1 - (1 - p_i)^B. Exact for
    tokens that choose independently; neighbours in a text agree more, and touch fewer."""
    return sum(1 - (1 - p) ** tokens for p in probabilities)
