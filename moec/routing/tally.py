"""Choices of a router, counted as they come: sums from which its figures follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moec.routing.reuse import ReuseTally

TIE = 1e-3  # of the sum of all scores: nearer than this, rounding may choose the other expert


@dataclass(frozen=True)
class Choice:
    """What a router chose for some tokens, in the order of the text.

    Attributes:
        experts: E.
        ids, weights: `[T, K]`, the chosen experts and what each counts, best first; one that counts 0 is none.
        shares: `[T, E]`, scores of all experts, which sum to 1; None where they are not known.
    """

    experts: int
    ids: Tensor
    weights: Tensor
    shares: Tensor | None = None

    def only(self, kept: Tensor) -> Choice:
        """Of the tokens where `kept` `[T]` is True."""
        shares = None if self.shares is None else self.shares[kept]
        return Choice(self.experts, self.ids[kept], self.weights[kept], shares)


class RouterTally:
    """Sums over the tokens of one layer.

    Attributes:
        tokens, scored: tokens, and those of them whose scores are known.
        counts: int64 `[E]`, choices of each expert. mass: float64 `[E]`, sum of the weights.
        pairs: int64 `[E, E]`, tokens that chose both. shares: float64 `[E]`, sum of the scores' shares.
        entropy, confidence, margin: sums over tokens, see `moec.routing.figures.RouterFigures`. ties: tokens.
        windows: choices of each expert `[E]` in each window, with the window's domain.
        reuse: hits of a cache of experts.
    """

    def __init__(self, experts: int, top_k: int) -> None:
        self.experts, self.top_k, self.tokens, self.scored = experts, top_k, 0, 0
        self.counts = torch.zeros(experts, dtype=torch.int64)
        self.pairs = torch.zeros(experts, experts, dtype=torch.int64)
        self.mass, self.shares = (torch.zeros(experts, dtype=torch.float64) for _ in range(2))
        self.entropy = self.confidence = self.margin = 0.0
        self.ties = 0
        self.windows: list[tuple[int, Tensor]] = []
        self.reuse = ReuseTally(experts, top_k)

    def add(self, choice: Choice, domain: int | None = None) -> None:
        """Count some tokens: one window of a text of this domain, where there are domains."""
        if not len(choice.ids):
            return
        ids, weights = choice.ids.detach(), choice.weights.detach().abs()
        used = weights > 0
        chosen = torch.zeros(len(ids), self.experts, device=ids.device).scatter_reduce(1, ids, used.float(), "amax")
        mass = torch.zeros(self.experts, device=ids.device).index_add(0, ids.flatten(), weights.flatten().float())
        counts = chosen.sum(0).cpu().long()
        self.tokens += len(ids)
        self.counts += counts
        self.mass += mass.double().cpu()
        self.pairs += (chosen.T @ chosen).cpu().round().long()
        self.reuse.add(ids.cpu(), used.cpu())
        if domain is not None:
            self.windows.append((domain, counts))
        if choice.shares is not None:
            self._score(choice.shares.detach().float(), chosen.bool())

    def _score(self, shares: Tensor, chosen: Tensor) -> None:
        """What the scores `[T, E]` of all experts say."""
        self.scored += len(shares)
        self.shares += shares.sum(0).double().cpu()
        self.entropy += float(-torch.xlogy(shares, shares).sum())
        self.confidence += float(shares.amax(-1).sum())
        if bool(chosen.all()):  # nothing is left out, so there is no margin
            return
        worst = shares.masked_fill(~chosen, torch.inf).amin(-1)
        margin = worst - shares.masked_fill(chosen, -torch.inf).amax(-1)
        margin = margin[margin.isfinite()]
        self.margin += float(margin.sum())
        self.ties += int((margin.abs() < TIE).sum())
