"""A dense feed-forward network cut into experts of which a token uses some: without training, from what a text sends
through it.

Neurons that are worth most stay with every token (the shared experts), the others are put into clusters of equal size,
and a linear router says which clusters matter to a token. What an expert adds on average to tokens that do not choose
it is kept as a constant. All is fitted on most of the tokens and judged on the others, beside what has to be beaten:
the same number of neurons, the same ones for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import Activation
from moec.experts.carved_router import ALWAYS, contributions, mean_rows, ridge
from moec.experts.neuron_groups import clusters, features, worth
from moec.experts.router_fit import best_experts

MOST_TOKENS = 16384  # that a layer is fitted to; more change little
_HELD_OUT = 8  # one token in so many judges what the others made
_PROFILED = 2048  # tokens by which co-activation is compared
_RIDGE = 0.01


@dataclass(frozen=True)
class Carving:
    """How a network is to be cut.

    Attributes:
        experts: E, equal parts. shared: how many of them every token uses. active: how many a token uses, shared ones
            among them.
        partition: one of `PARTITIONS`. router: one of `ROUTERS`. compensate: whether the means of experts that are not
            chosen are added.
        seed: for clusters, and for what is random.
    """

    experts: int
    shared: int
    active: int
    partition: str
    router: str
    compensate: bool
    seed: int


@dataclass(frozen=True)
class Dense:
    """A network's values: `w_out @ activation(w_in @ x + b_in)`; what it adds at the end is left out.

    Attributes:
        w_in: `[F * I, H]`. b_in: `[F * I]` or None. w_out: `[H, I]`.
    """

    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    activation: Activation

    def hidden(self, x: Tensor) -> Tensor:
        """`[T, I]` of `[T, H]`."""
        return self.activation(F.linear(x.to(self.w_in.dtype), self.w_in, self.b_in))


@dataclass(frozen=True)
class Errors:
    """What is lost on tokens that nothing was fitted to: mean squared, in units of the output's mean square.

    Attributes:
        carved: of the carved network. static: of as many neurons, the same for every token, with the others' means.
            oracle: of the same experts, chosen by what they really add.
        uneven: the busiest routed expert's tokens over the mean's.
    """

    carved: float
    static: float
    oracle: float
    uneven: float


@dataclass(frozen=True)
class Carved:
    """A network that was cut.

    Attributes:
        groups: the neurons of each expert, shared ones first.
        router: `[E, H]`. bias: `[E]`. absent: `[E, H]`, what an expert adds on average to tokens that do not choose it.
        errors: see there.
    """

    groups: tuple[Tensor, ...]
    router: Tensor
    bias: Tensor
    absent: Tensor
    errors: Errors


class NotFiniteError(ValueError):
    """A network cannot be cut by numbers that are not finite."""


class Cut:
    """A network on the way to be cut: which neurons go together and how experts are chosen, for any number of them.

    Args:
        dense: the network. x: `[T, H]`, what the text sends into it. how: the active number is left open.
    """

    def __init__(self, dense: Dense, x: Tensor, how: Carving) -> None:
        self.dense, self.how = dense, how
        x = x[:: -(-len(x) // MOST_TOKENS)].float()
        judging = torch.arange(len(x)) % _HELD_OUT == 0
        self._x, self._judged = x[~judging], x[judging]
        self.hidden = dense.hidden(self._x)
        self.worth = worth(self.hidden, dense.w_out)
        if not bool(self.worth.isfinite().all()) or not bool(self._x.isfinite().all()):
            raise NotFiniteError("what the text brings there, or what becomes of it, is not finite")
        self.groups = self._groups()
        self.router, self.bias = self._router()

    def _groups(self) -> list[Tensor]:
        how, size = self.how, len(self.worth) // self.how.experts
        generator = torch.Generator().manual_seed(how.seed)
        shared = self.worth.topk(how.shared * size).indices
        rest = torch.ones(len(self.worth), dtype=torch.bool)
        rest[shared] = False
        routed, count = rest.nonzero()[:, 0], how.experts - how.shared
        if how.partition == "random":
            assigned = torch.randperm(len(routed), generator=generator) % max(count, 1)
        else:
            seen = self.hidden[:: -(-len(self.hidden) // _PROFILED)]
            points = features(how.partition, self.dense.w_in, seen, self.dense.w_out)[routed]
            assigned = clusters(points, count, how.seed) if count else routed[:0]
        always = list(shared.sort().values.split(size)) if how.shared else []  # type: ignore[no-untyped-call]
        return [*always, *(routed[assigned == e] for e in range(count))]

    def _router(self) -> tuple[Tensor, Tensor]:
        how, width = self.how, self._x.shape[1]
        routed = self.groups[how.shared :]
        if how.router == "ridge":
            router, bias = ridge(self._x, contributions(self.hidden, self.dense.w_out, routed), _RIDGE)
        elif how.router == "mean-row":
            router, bias = mean_rows(self.dense.w_in, routed)
        else:
            generator = torch.Generator().manual_seed(how.seed)
            router, bias = torch.randn(len(routed), width, generator=generator), torch.zeros(len(routed))
        always = torch.full((how.shared,), ALWAYS)
        return torch.cat([torch.zeros(how.shared, width), router]), torch.cat([always, bias])

    # ------------------------------------------------------------------ what comes of it
    def at(self, active: int) -> Carved:
        """The network with so many experts a token."""
        chosen = best_experts(F.linear(self._x, self.router, self.bias), active)
        absent = self._absent(chosen) if self.how.compensate and active < self.how.experts else None
        absent = torch.zeros_like(self.router) if absent is None else absent
        errors = self._errors(active, absent)
        return Carved(tuple(self.groups), self.router, self.bias, absent, errors)

    def _absent(self, chosen: Tensor) -> Tensor:
        found = []
        for e, group in enumerate(self.groups):
            left = ~chosen[:, e]
            mean = self.hidden[left][:, group].float().mean(0) if bool(left.any()) else None
            zero = torch.zeros(self.router.shape[1])
            found.append(zero if mean is None else self.dense.w_out[:, group].float() @ mean)
        return torch.stack(found)

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the tokens that judge: hidden values `[T, I]`, logits and the experts' true norms `[T, E]`."""
        hidden = self.dense.hidden(self._judged)
        norms = contributions(hidden, self.dense.w_out, self.groups)
        norms[:, : self.how.shared] = float("inf")
        return hidden, F.linear(self._judged, self.router, self.bias), norms

    def _errors(self, active: int, absent: Tensor) -> Errors:
        hidden, logits, norms = self._held_out
        whole = float(self._outputs(hidden).square().sum()) or 1.0
        chosen, ideal = best_experts(logits, active), best_experts(norms, active)
        loads = chosen[:, self.how.shared :].sum(0).float()
        return Errors(
            float(self._missing(hidden, chosen, absent).square().sum()) / whole,
            float(self._outputs(self._without(hidden, active)).square().sum()) / whole,
            float(self._missing(hidden, ideal, absent).square().sum()) / whole,
            float(loads.max() / loads.mean().clamp(min=1e-9)) if len(loads) else 1.0,
        )

    def _missing(self, hidden: Tensor, chosen: Tensor, absent: Tensor) -> Tensor:
        """What the output is without: experts that are not chosen, less their means."""
        kept = torch.empty(hidden.shape[1], dtype=torch.int64)
        for e, group in enumerate(self.groups):
            kept[group] = e
        left = ~chosen
        return self._outputs(hidden * left[:, kept]) - left.float() @ absent

    def _without(self, hidden: Tensor, active: int) -> Tensor:
        """Hidden values of neurons that static pruning drops, less their means; 0 for those that it keeps."""
        size = len(self.worth) // self.how.experts
        lost = hidden.float() - self.hidden.float().mean(0)
        lost[:, self.worth.topk(active * size).indices] = 0
        return lost

    def _outputs(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self.dense.w_out.float().T

    def curve(self) -> Tensor:
        """The squared error summed over the tokens that judge, for 1, 2, … E experts a token, `[E]`, without means."""
        hidden, logits, _ = self._held_out
        ranks = logits.argsort(dim=1, descending=True)
        found, left = [], torch.ones_like(logits, dtype=torch.bool)
        nothing = torch.zeros_like(self.router)
        for k in range(self.how.experts):
            left.scatter_(1, ranks[:, k : k + 1], False)
            found.append(self._missing(hidden, ~left, nothing).square().sum())
        return torch.stack(found)


def allocate(curves: Sequence[Tensor], least: int, active: float) -> list[int]:
    """How many experts a token uses in each layer, so that all layers together use the share `active`: one expert after
    the other is given up where that costs least.

    Args:
        curves: of each layer, its error by the number of experts, `[E]`, in units that can be compared.
        least: experts that a layer keeps.
    """
    counts = [len(c) for c in curves]
    spare = sum(counts) - max(round(active * sum(counts)), least * len(counts))
    for _ in range(spare):
        costs = {
            k: float(c[n - 2] - c[n - 1]) for k, (c, n) in enumerate(zip(curves, counts, strict=True)) if n > least
        }
        counts[min(costs, key=lambda k: costs[k])] -= 1
    return counts
