"""How many experts a batch touches: what decides how many bytes a step of a mixture reads."""

from __future__ import annotations


def distinct(experts: int, top_k: int, tokens: int) -> float:
    """Expected number of distinct experts of a layer when each of `tokens` takes `top_k` of `experts` uniformly and
    independently: E (1 - (1 - k/E)^B). Real texts touch fewer."""
    return experts * (1 - (1 - top_k / experts) ** tokens)
