"""How much each expert of a mixture is worth, by what a calibration text sends through it, and which ones to keep.

Scores:
    reap: the mean, over the tokens that are routed to an expert, of its gate times the norm of its output, the gates of
        a token's experts renormalised to 1 (REAP, arXiv 2510.13999): what would be missing where it is missing.
        activation: the sum of the norms of its outputs (expert activation norm). frequency: how many tokens are routed
        to it. random: drawn from a seed; what any other score has to beat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from moec.execution.choices import choice_of
from moec.execution.lockstep import OperatorCalls, run_in_lockstep, with_block_cache
from moec.execution.streaming import lazy_expert
from moec.program.moe_call import MoeCall
from moec.program.program import Program
from moec.weights.lazy import Weight

SCORES = ("reap", "activation", "frequency", "random")


@dataclass(frozen=True)
class Tally:
    """What a text showed of the experts of one block, or of several that share them. Each `[E]` in float64.

    Attributes:
        tokens: how many tokens were routed there with a weight other than 0.
        norms: sum of the norms of their outputs. gated: the same, each multiplied by its renormalised gate.
    """

    tokens: Tensor
    norms: Tensor
    gated: Tensor

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.tokens + other.tokens, self.norms + other.norms, self.gated + other.gated)

    def scores(self, how: str) -> Tensor:
        """The experts' scores by one of `reap`, `activation` and `frequency`; 0 for an expert that no token reached."""
        found = {"reap": self.gated / self.tokens.clamp(min=1), "activation": self.norms, "frequency": self.tokens}
        return found[how]


def tally(program: Program, batches: Iterable[Mapping[str, Tensor]], blocks: Sequence[fx.Node]) -> dict[fx.Node, Tally]:
    """Run a text through a program, and through every expert the tokens that are routed to it.

    Args:
        program: unpruned; each of its weights is read once, one at a time.
        batches: named inputs, see `moec.pipeline.calibration.Calibration.batches`.
        blocks: its `moec::experts` and `moec::moe` nodes that are wanted, in graph order.
    """
    found: dict[fx.Node, Tally] = {}

    def visit(calls: OperatorCalls) -> None:
        if calls.node in blocks:
            found[calls.node] = _look(calls)

    run_in_lockstep(program, batches, visit, until=blocks[-1])
    return found


def _look(calls: OperatorCalls) -> Tally:
    by_input = calls.moe_calls()
    routed, first, before = [_routed(call) for call in by_input], by_input[0], by_input[0].score_before
    w_in, w_out, b_in, b_out = (
        with_block_cache(m) if isinstance(m, Weight) else m for m in (first.w_in, first.w_out, first.b_in, first.b_out)
    )
    expert = lazy_expert(w_in, w_out, b_in, b_out, first.activation)
    sums = torch.zeros(3, routed[0][3], dtype=torch.float64)
    for e in range(sums.shape[1]):
        for x, ids, weights, _ in routed:
            tokens, places = ((ids == e) & (weights != 0)).nonzero(as_tuple=True)
            if len(tokens):
                sums[:, e] += _contribution(
                    expert(e, _scaled(x, tokens, weights[tokens, places], before)), weights[tokens], places, before
                )
    return Tally(*sums)


def _routed(call: MoeCall) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rows `[T, H]`, ids and weights `[T, K]` of one input, and the number of experts."""
    weights, ids, count = choice_of(call)
    return call.x.reshape(-1, call.x.shape[-1]), ids, weights, count


def _scaled(x: Tensor, tokens: Tensor, weights: Tensor, before: bool) -> Tensor:
    """What an expert reads: rows of x, or those times their weights where weights come before the experts."""
    return (x[tokens] * weights.unsqueeze(-1)).to(x.dtype) if before else x[tokens]


def _contribution(y: Tensor, weights: Tensor, places: Tensor, before: bool) -> Tensor:
    """How many rows of y `[N, H]` there are, the sum of their norms, and that times their gates among `weights [N,
    K]`."""
    norms, shares = y.double().norm(dim=-1), weights.double().abs()
    gates = shares.gather(-1, places.unsqueeze(-1)).squeeze(-1) / shares.sum(-1)
    gated = norms if before else norms * gates  # the gate is in y already
    return torch.stack([torch.tensor(float(len(y)), dtype=torch.float64), norms.sum(), gated.sum()])


# ---------------------------------------------------------------------- choice
def best(scores: Tensor, count: int, groups: int = 1) -> tuple[int, ...]:
    """The `count` experts with the highest scores `[E]`, in their old order; of each of `groups` equal groups as many.
    The first of equals is kept."""
    rows = scores.view(groups, -1)
    order = rows.argsort(dim=-1, descending=True, stable=True)[:, : count // groups]
    return tuple(sorted(int(e) for e in (order + torch.arange(groups).unsqueeze(-1) * rows.shape[1]).flatten()))


def shares(scores: Sequence[Tensor], total: int, least: Sequence[int]) -> list[int]:
    """How many experts each of several blocks keeps when `total` are kept of them all, those with the highest scores
    anywhere.

    Scores of different blocks are compared in units of their block's mean. Each block keeps at least its number in
    `least`.
    """
    counts = list(least)
    rest = [
        (float(v / s.mean().clamp(min=1e-30)), block)
        for block, s in enumerate(scores)
        for v in s.sort(descending=True).values[least[block] :]
    ]
    for _, block in sorted(rest, key=lambda pair: -pair[0])[: max(0, total - sum(least))]:
        counts[block] += 1
    return counts
