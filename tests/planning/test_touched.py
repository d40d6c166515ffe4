"""Distinct experts of a batch: the formula against drawn batches."""

from __future__ import annotations

import numpy as np
import pytest

from moec.planning.touched import distinct


def drawn(load: np.ndarray, top_k: int, tokens: int, rounds: int = 400) -> float:
    """The mean over drawn batches; experts of a token by Gumbel's trick, so without repetition."""
    generator = np.random.default_rng(0)
    logits = np.log(load) + generator.gumbel(size=(rounds, tokens, len(load)))
    taken = np.argpartition(-logits, top_k - 1, axis=-1)[..., :top_k]
    return float(np.mean([len(np.unique(batch)) for batch in taken]))


@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(8, 2, 1), (8, 2, 4), (128, 8, 16), (64, 8, 8), (256, 8, 64)])
def test_uniform_routing(experts: int, top_k: int, tokens: int) -> None:
    found = drawn(np.full(experts, 1 / experts), top_k, tokens)
    assert distinct(experts, top_k, tokens) == pytest.approx(found, rel=0.02)
    assert distinct(experts, top_k + 1, tokens) != pytest.approx(found, rel=0.02)  # the tolerance tells top_k apart
