"""Would a cache of few experts serve a text? The hit rate of a least-recently-used cache, against uniform routing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 256  # tokens at a time: [tokens, K, E] comparisons lie in memory


@dataclass(frozen=True)
class Reuse:
    """How well a cache of some experts of a layer serves.

    Attributes:
        cached: experts that it holds.
        hit_rate: share of a text's choices that it held when the token came; None where the text never filled it.
        uniform: the share under uniform independent routing: cached / E.
    """

    cached: int
    hit_rate: float | None
    uniform: float


class ReuseTally:
    """Counts hits of caches of E/8, E/4 and E/2 experts, those that hold a token's K at least.

    Tokens come in the order of the text. A token's experts are looked up together, then fetched together, the one with
    the highest weight last. Only tokens that find a full cache count, so that uniform routing gives exactly `cached/E`.
    """

    def __init__(self, experts: int, top_k: int) -> None:
        self.experts = experts
        self.sizes = sorted({n for n in (experts // 8, experts // 4, experts // 2) if n >= top_k})
        self._last = torch.full((experts,), -1, dtype=torch.int64)  # when each expert was used last
        self._now = 0
        self._hits, self._seen = dict.fromkeys(self.sizes, 0), dict.fromkeys(self.sizes, 0)

    def add(self, ids: Tensor, used: Tensor) -> None:
        """Let the cache see tokens `[T, K]`, best expert first; `used` is False where a choice weighs nothing."""
        if self.sizes:
            for k in range(0, len(ids), _CHUNK):
                self._add(ids[k : k + _CHUNK], used[k : k + _CHUNK])

    def _add(self, ids: Tensor, used: Tensor) -> None:
        count, top_k = ids.shape
        ranks = torch.arange(count)[:, None] * top_k + torch.arange(top_k).flip(0)
        stamps = torch.where(used, self._now + ranks, -1)
        times = torch.full((count, self.experts), -1, dtype=torch.int64).scatter_reduce(1, ids, stamps, "amax")
        times = torch.cat([self._last[None], times]).cummax(0).values
        before, self._last, self._now = times[:-1], times[-1], self._now + count * top_k
        own = before.gather(1, ids)
        newer = (before[:, None, :] > own[:, :, None]).sum(-1)  # distinct experts used since
        filled = (before >= 0).sum(-1, keepdim=True)
        for n in self.sizes:
            counted = used & (filled >= n)
            self._seen[n] += int(counted.sum())
            self._hits[n] += int((counted & (own >= 0) & (newer < n)).sum())

    def found(self) -> tuple[Reuse, ...]:
        """The caches, smallest first."""
        return tuple(
            Reuse(n, self._hits[n] / self._seen[n] if self._seen[n] else None, n / self.experts) for n in self.sizes
        )
