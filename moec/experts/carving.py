"""A dense feed-forward network cut into experts of which a token uses some: without training, from what a text sends
through it.

Neurons that are worth most stay with every token (the shared experts), the others are put into clusters of equal size,
and a linear router says which clusters matter to a token. What an expert adds on average to tokens that do not choose
it is kept as a constant, and the last matrix is fitted anew: to the network's own output, and as far as that helps to
what brings the residual stream back to the untouched model's. All is fitted on most of the text and judged on the rest
of it, beside what has to be beaten: the same number of neurons, the same ones for every token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from moec.experts.carved_refit import Output, refitted
from moec.experts.carved_router import ALWAYS, Router, contributions, mean_rows, representatives, ridge
from moec.experts.dense_network import Dense
from moec.experts.neuron_groups import by_first_centers, clusters, features, indicators, rate, variation, worth
from moec.experts.router_fit import best_experts
from moec.experts.stream_step import Step, best_step

MOST_TOKENS = 16384  # that a layer is fitted to; more change little
_HELD_OUT = 8  # one part in so many, the last one, judges what the others made
_PROFILED = 2048  # tokens by which co-activation is compared
_RIDGE = 0.01


@dataclass(frozen=True)
class Carving:
    """How a network is to be cut.

    Attributes:
        experts: E, equal parts. shared: how many of them every token uses; None for the number that loses least.
        active: how many a token uses, shared ones among them.
        partition: one of `PARTITIONS`. router: one of `ROUTERS`. compensate: whether the means of experts that are not
            chosen are added. refit: whether the last matrix is fitted anew.
        seed: for clusters, and for what is random.
    """

    experts: int
    shared: int | None
    active: int
    partition: str
    router: str
    compensate: bool
    refit: bool
    seed: int

    def candidates(self) -> list[int]:
        """Numbers of shared experts to try: half of the active ones, which was measured to be little enough, and more.
        One is routed at least: experts that no token can choose would be dead weight, and no proof reaches them."""
        if self.shared is not None:
            return [self.shared]
        if self.active == self.experts:
            return [0]
        most = self.active - 1
        least = min(round(self.active * max(0.5, self.active / self.experts)), most)
        return sorted({least, min((least + self.active) // 2, most)})


@dataclass(frozen=True)
class Errors:
    """What is lost on text that nothing was fitted to: mean squared, in units of the output's mean square.

    Attributes:
        carved: of the carved network. static: of as many neurons, the same for every token, with the others' means
            (FLAP). oracle: of the same experts, chosen by what they really add.
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
        groups: the neurons of each expert, shared ones first. shared: how many these are.
        router: what says which experts a token needs.
        output: the last matrix, in the neurons' old order, and what is added. fitted: whether that matrix is another
            than the dense network's.
        errors: of the network by itself, before a step. step: None where no stream was given, or nothing was fitted.
    """

    groups: tuple[Tensor, ...]
    shared: int
    router: Router
    output: Output
    fitted: bool
    errors: Errors
    step: Step | None = None

    @property
    def lost(self) -> float:
        """What ways to cut a network are compared by: the stream's distance where it is known."""
        return self.errors.carved if self.step is None else self.step.left


class NotFiniteError(ValueError):
    """A network cannot be cut by numbers that are not finite."""


class Cut:
    """A network on the way to be cut: which neurons go together and how experts are chosen, for any number of them.

    Args:
        dense: the network. x: `[T, H]`, what the text sends into it, in the text's order.
        drift: `[T, H]`, what the stream behind the dense network lacks of the untouched model's; None where that is not
            known.
        how: None as the number of shared experts is none here. `at` and `curve` take any number of active ones, except
            where all that `how` has are shared.
    """

    def __init__(self, dense: Dense, x: Tensor, how: Carving, drift: Tensor | None = None) -> None:
        self.dense, self.how = dense, how
        self._x, self._judged = _divided(x)
        self._drift = None if drift is None else _divided(drift)
        self.hidden = dense.hidden(self._x)
        self.worth = worth(self.hidden, dense.w_out)
        if not bool(self.worth.isfinite().all()) or not bool(self._x.isfinite().all()):
            raise NotFiniteError("what the text brings there, or what becomes of it, is not finite")
        self.shared = how.shared or 0
        self.groups = self._groups()
        self.owner = torch.empty(len(self.worth), dtype=torch.int64)
        for e, group in enumerate(self.groups):
            self.owner[group] = e
        self.router = self._router()

    @property
    def _idle(self) -> bool:
        """Whether shared experts are all that a token uses, so that it does not matter how the others are cut."""
        return self.shared >= self.how.active

    @cached_property
    def _marks(self) -> Tensor:
        """`[I, T]`, see `indicators`."""
        return indicators(self.dense, self._x[:: -(-len(self._x) // _PROFILED)])

    def _groups(self) -> list[Tensor]:
        how, size = self.how, len(self.worth) // self.how.experts
        generator = torch.Generator().manual_seed(how.seed)
        score, points = self.worth, None
        if how.partition == "indicator":
            score, points = rate(self._marks), self._marks
        elif how.partition == "variation":
            score, points, most = variation(self.dense.gates(self._x))
            self.shared = min(self.shared, round(most * how.experts))
        elif how.partition != "random" and not self._idle:
            seen = self.hidden[:: -(-len(self.hidden) // _PROFILED)]
            points = features(how.partition, self.dense.w_in, seen, self.dense.w_out)
        shared = score.topk(self.shared * size).indices
        rest = torch.ones(len(score), dtype=torch.bool)
        rest[shared] = False
        routed, count = rest.nonzero()[:, 0], how.experts - self.shared
        if points is None or self._idle or not count:
            assigned = torch.randperm(len(routed), generator=generator) % max(count, 1)
        elif how.partition == "indicator":
            assigned = by_first_centers(points[routed], score[routed], count)
        else:
            assigned = clusters(points[routed], count, how.seed)
        always = list(shared.sort().values.split(size)) if self.shared else []  # type: ignore[no-untyped-call]
        return [*always, *(routed[assigned == e] for e in range(count))]

    def _router(self) -> Router:
        how, width = self.how, self._x.shape[1]
        routed = self.groups[self.shared :]
        up: Tensor | None = None
        if self._idle and how.router != "analytical":
            router, bias = torch.zeros(len(routed), width), torch.zeros(len(routed))
        elif how.router == "ridge":
            router, bias = ridge(self._x, contributions(self.hidden, self.dense.w_out, routed), _RIDGE)
        elif how.router == "mean-row":
            router, bias = mean_rows(self.dense.w_in, routed)
        elif how.router == "analytical":
            router, up, bias = representatives(self.dense, self._marks, routed)
        else:
            generator = torch.Generator().manual_seed(how.seed)
            router, bias = torch.randn(len(routed), width, generator=generator), torch.zeros(len(routed))
        none, always = torch.zeros(self.shared, width), torch.full((self.shared,), ALWAYS)
        activation = replace(self.dense.activation, gated=up is not None) if how.router == "analytical" else None
        second = None if up is None else torch.cat([none, up])
        return Router(torch.cat([none, router]), torch.cat([always, bias]), second, activation)

    # ------------------------------------------------------------------ what comes of it
    def at(self, active: int) -> Carved:
        """The network with so many experts a token."""
        chosen, whole = best_experts(self.router(self._x), active), active == self.how.experts
        absent = torch.zeros(self.how.experts, len(self.dense.w_out))
        if self.how.compensate and not whole:
            absent = self._absent(chosen)
        output = Output(self.dense.w_out, -absent, absent.sum(0))
        fitted, back = self.how.refit and not whole, None
        if fitted:
            drift = None if self._drift is None else self._drift[0]
            output, back = refitted(output, self.hidden, chosen, self.owner, self.dense.w_out, drift)
        errors, step = self._errors(active, output), None
        if back is not None:
            assert self._drift is not None
            hidden, wanted, logits = self._held_out
            best = best_experts(logits, active)
            apart = self._drift[1] + wanted - output(hidden, best, self.owner)
            step = best_step(apart, back(hidden, best, self.owner), wanted)
            output = output.moved(back, step.taken) if step.taken else output  # nothing times no number is none
        return Carved(tuple(self.groups), self.shared, self.router, output, fitted, errors, step)

    def _absent(self, chosen: Tensor) -> Tensor:
        found = []
        for e, group in enumerate(self.groups):
            left = ~chosen[:, e]
            mean = self.hidden[left][:, group].float().mean(0) if bool(left.any()) else None
            zero = torch.zeros(len(self.dense.w_out))
            found.append(zero if mean is None else self.dense.w_out[:, group].float() @ mean)
        return torch.stack(found)

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the text that judges: hidden values `[T, I]`, the dense outputs `[T, H]` and logits `[T, E]`."""
        hidden = self.dense.hidden(self._judged)
        return hidden, self._outputs(hidden), self.router(self._judged)

    @cached_property
    def _norms(self) -> Tensor:
        """Of the text that judges, what experts truly add, as norms `[T, E]`; infinite for shared ones."""
        norms = contributions(self._held_out[0], self.dense.w_out, self.groups)
        norms[:, : self.shared] = float("inf")
        return norms

    def _errors(self, active: int, output: Output) -> Errors:
        hidden, wanted, logits = self._held_out
        whole = float(wanted.square().sum()) or 1.0
        chosen, ideal = best_experts(logits, active), best_experts(self._norms, active)
        loads = chosen[:, self.shared :].sum(0).float()
        carved, oracle = (self._lost(wanted, hidden, c, output) / whole for c in (chosen, ideal))
        return Errors(
            carved,
            float(self._outputs(self._without(hidden, active)).square().sum()) / whole,
            min(carved, oracle),
            float(loads.max() / loads.mean().clamp(min=1e-9)) if len(loads) else 1.0,
        )

    def _lost(self, wanted: Tensor, hidden: Tensor, chosen: Tensor, output: Output) -> float:
        """The squared difference from the dense network's outputs, summed."""
        return float((wanted - output(hidden, chosen, self.owner)).square().sum())

    def _without(self, hidden: Tensor, active: int) -> Tensor:
        """Hidden values of neurons that static pruning drops, less their means; 0 for those that it keeps."""
        size = len(self.worth) // self.how.experts
        lost = hidden.float() - self.hidden.float().mean(0)
        lost[:, self.worth.topk(active * size).indices] = 0
        return lost

    def _outputs(self, hidden: Tensor) -> Tensor:
        return hidden.float() @ self.dense.w_out.float().T

    def slip(self, x: Tensor, active: int) -> Tensor:
        """What so many experts say less the dense network, `[T, H]` of `[T, H]`; the last matrix is the old one."""
        chosen, hidden = best_experts(self.router(x.float()), active), self.dense.hidden(x)
        return self._plain(hidden, chosen) - self._outputs(hidden)

    def _plain(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        return self._outputs(hidden * chosen[:, self.owner])

    def curve(self) -> Tensor:
        """The squared error summed over the text that judges, for 1, 2, … E experts a token, `[E]`, without means and
        with the old last matrix."""
        hidden, wanted, logits = self._held_out
        ranks = logits.argsort(dim=1, descending=True)
        found, left = [], torch.zeros_like(logits, dtype=torch.bool)
        for k in range(self.how.experts):
            left.scatter_(1, ranks[:, k : k + 1], True)
            found.append(float((wanted - self._plain(hidden, left)).square().sum()))
        return torch.tensor(found)


def _divided(values: Tensor) -> tuple[Tensor, Tensor]:
    """What is fitted to and what judges, of rows in the text's order."""
    values = values[:: -(-len(values) // MOST_TOKENS)].float()
    held_out = len(values) // _HELD_OUT
    return values[: len(values) - held_out], values[len(values) - held_out :]


def cut(dense: Dense, x: Tensor, how: Carving, drift: Tensor | None = None) -> Carved:
    """Cut a network by what a text sends into it, `[T, H]`, with the number of shared experts that loses least on what
    is held out where none is asked for. `drift`: see `Cut`. Raises `NotFiniteError`."""
    tried = [Cut(dense, x, replace(how, shared=n), drift).at(how.active) for n in how.candidates()]
    return min(tried, key=lambda carved: carved.lost)
