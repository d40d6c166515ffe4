"""How much a choice of expert says of the domain of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PERMUTATIONS = 64


@dataclass(frozen=True)
class Specialisation:
    """Mutual information of a choice's expert and its text's domain, in bits.

    Attributes:
        bits: as counted: `sum p(d, e) log2(p(d, e) / (p(d) p(e)))`. Few choices make it too large.
        chance_bits: its mean where the domains of the windows are shuffled: what it would be without specialisation.
        corrected_bits: `bits - chance_bits`, 0 at least.
        most_bits: the entropy of the domains, which it cannot exceed.
    """

    bits: float
    chance_bits: float
    corrected_bits: float
    most_bits: float


def specialisation(counts: Tensor, domains: Sequence[int], seed: int = 0) -> Specialisation:
    """Of windows of several texts.

    Whole windows are shuffled, for tokens of one text resemble each other anyhow. With one window a domain chance
    explains everything, so nothing is left.

    Args:
        counts: `[W, E]`, choices of each expert in each window. domains: of each window, numbered from 0.
        seed: of the shuffles.
    """
    labels = torch.nn.functional.one_hot(torch.tensor(domains)).double()
    found = float(_information(labels.T @ counts.double()))
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(PERMUTATIONS)]
    chance = sum(float(_information(labels[order].T @ counts.double())) for order in orders) / PERMUTATIONS
    sizes = labels.T @ counts.double().sum(1)
    return Specialisation(found, chance, max(0.0, found - chance), float(_entropy(sizes / sizes.sum())))


def _information(joint: Tensor) -> Tensor:
    """In bits, of counts `[D, E]`."""
    shares = joint / joint.sum().clamp(min=1)
    return _entropy(shares.sum(0)) + _entropy(shares.sum(1)) - _entropy(shares.flatten())


def _entropy(shares: Tensor) -> Tensor:
    """In bits; 0 log 0 is 0."""
    return -torch.xlogy(shares, shares).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64))
