"""The figures of one router, from its tally."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moec.routing.reuse import Reuse
from moec.routing.similarity import Similarity
from moec.routing.specialisation import Specialisation, specialisation
from moec.routing.tally import RouterTally

PAIRS = 5  # how many are told
STARVED = 0.1  # of the mean load
EXPECTED = 10  # choices an expert, below which none at all may be chance: e^-10 is 1 in 20,000


@dataclass(frozen=True)
class Pair:
    """Two experts that tokens choose together.

    Attributes:
        experts: the two. share: of the tokens that choose both. lift: that divided by what independent choices of
            these loads would give.
    """

    experts: tuple[int, int]
    share: float
    lift: float


@dataclass(frozen=True)
class RouterFigures:
    """How one router divides tokens. E is the number of experts, K how many a token goes to.

    Attributes:
        layer: the block's name. experts, top_k, tokens: E, K, and how many tokens were seen.
        load: `[E]`, share of all choices, which sum to 1: hard, each choice counts the same.
        gate_mass: `[E]`, share of all mixing weights. probability: `[E]`, mean share of the scores of all experts.
        max_vio: max(load) * E - 1 (Wang et al. 2024): 0 is even, E/K - 1 is the worst.
        effective_experts: exp of the load's entropy, from K to E.
        dead, starved: experts without a choice, and others with less than 0.1 of the mean load; where fewer than 10
            choices an expert were seen, the text is too short and none is called so.
        entropy: mean over tokens of the entropy of its scores, divided by ln E: 1 where the router does not care.
        confidence: mean of the largest share of a token's scores.
        margin: mean of the smallest chosen share less the largest that was not; below 0 where a bias or groups decide.
        near_ties: share of tokens whose margin is less than 0.001 either way.
        pairs: experts that are chosen together most.
        reuse: what a cache of few experts would bring.
        similarity, specialisation: of the experts, where they were asked for.
        domains: load for the text of each domain, by name.

    What rests on the scores of all experts is None where moec does not know the router's rule.
    """

    layer: str
    experts: int
    top_k: int
    tokens: int
    load: tuple[float, ...]
    gate_mass: tuple[float, ...]
    probability: tuple[float, ...] | None
    max_vio: float
    effective_experts: float
    dead: tuple[int, ...]
    starved: tuple[int, ...]
    entropy: float | None
    confidence: float | None
    margin: float | None
    near_ties: float | None
    pairs: tuple[Pair, ...] = ()
    reuse: tuple[Reuse, ...] = ()
    similarity: Similarity | None = None
    specialisation: Specialisation | None = None
    domains: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def figures_of(
    layer: str, tally: RouterTally, domains: Sequence[str] = (), similarity: Similarity | None = None, seed: int = 0
) -> RouterFigures:
    """The figures of a tally. `domains`: the names behind the windows' numbers."""
    load, mass = _shares(tally.counts.double()), _shares(tally.mass)
    mean = tally.counts.sum().item() / tally.experts
    told = mean >= EXPECTED
    low = [e for e in range(tally.experts) if told and load[e] * tally.experts < STARVED]
    dead = tuple(e for e in low if tally.counts[e] == 0)
    scored, bounded = max(tally.scored, 1), tally.scored and tally.top_k < tally.experts
    log_experts = torch.tensor(float(max(tally.experts, 2))).log().item()
    return RouterFigures(
        layer,
        tally.experts,
        tally.top_k,
        tally.tokens,
        _plain(load),
        _plain(mass),
        _plain(_shares(tally.shares)) if tally.scored else None,
        float(load.max()) * tally.experts - 1,
        float((-torch.xlogy(load, load).sum()).exp()),
        dead,
        tuple(e for e in low if e not in dead),
        tally.entropy / scored / log_experts if tally.scored else None,
        tally.confidence / scored if tally.scored else None,
        tally.margin / scored if bounded else None,
        tally.ties / scored if bounded else None,
        _pairs(tally),
        tally.reuse.found(),
        similarity,
        _specialisation(tally, seed) if len(domains) > 1 else None,
        _by_domain(tally, domains),
    )


def _shares(sums: Tensor) -> Tensor:
    return sums / sums.sum().clamp(min=1e-300)


def _plain(shares: Tensor) -> tuple[float, ...]:
    return tuple(shares.tolist())


def _pairs(tally: RouterTally) -> tuple[Pair, ...]:
    """The pairs with most tokens."""
    if tally.experts < 2 or tally.top_k < 2 or not tally.tokens:
        return ()
    rows, columns = torch.triu_indices(tally.experts, tally.experts, 1)
    counts = tally.pairs[rows, columns]
    often = tally.counts.double() / tally.tokens
    found = []
    for at in counts.argsort(descending=True, stable=True)[:PAIRS].tolist():
        a, b, share = int(rows[at]), int(columns[at]), int(counts[at]) / tally.tokens
        if share:
            found.append(Pair((a, b), share, share / float(often[a] * often[b])))
    return tuple(found)


def _specialisation(tally: RouterTally, seed: int) -> Specialisation | None:
    if len({domain for domain, _ in tally.windows}) < 2:
        return None
    return specialisation(torch.stack([c for _, c in tally.windows]), [d for d, _ in tally.windows], seed)


def _by_domain(tally: RouterTally, domains: Sequence[str]) -> dict[str, tuple[float, ...]]:
    found = {}
    for number, name in enumerate(domains):
        counts = [c for domain, c in tally.windows if domain == number]
        if counts:
            found[name] = _plain(_shares(torch.stack(counts).sum(0).double()))
    return found


def summary_of(figures: Sequence[RouterFigures]) -> dict[str, float]:
    """`router/max_vio`, `router/effective_share` (effective experts over E), `router/entropy` and `router/confidence`
    where scores are known, each a mean over layers; `router/dead` and `router/starved`, sums."""
    found: dict[str, float] = {
        "router/max_vio": _mean([f.max_vio for f in figures]),
        "router/effective_share": _mean([f.effective_experts / f.experts for f in figures]),
        "router/dead": float(sum(len(f.dead) for f in figures)),
        "router/starved": float(sum(len(f.starved) for f in figures)),
    }
    for name in ("entropy", "confidence"):
        values: list[Any] = [v for f in figures if (v := getattr(f, name)) is not None]
        if values:
            found[f"router/{name}"] = _mean(values)
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
