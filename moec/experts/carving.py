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
from moec.experts.dense_network import token_blocks
from moec.experts.network_text import NetworkText, TextPart
from moec.experts.neuron_groups import (
    by_first_centers,
    clusters,
    features,
    in_texts,
    indicators,
    rate,
    variation,
    worth,
)
from moec.experts.router_fit import best_experts
from moec.experts.stream_step import Step, best_step

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
    """What is lost on text that nothing was fitted to: mean squared, in units of the mean square of what the dense
    network says. It is the distance of the stream behind the network from the untouched model's; where that is not
    known, that of the network's output from the dense one's.

    Attributes:
        carved: of the carved network as it is written. static: of as many neurons, the same for every token, with the
            others' means (FLAP). oracle: of the same experts, chosen by what they really add.
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
        errors: of what these make. step: None where no stream was given, or nothing was fitted.
    """

    groups: tuple[Tensor, ...]
    shared: int
    router: Router
    output: Output
    fitted: bool
    errors: Errors
    step: Step | None = None


class NotFiniteError(ValueError):
    """A network cannot be cut by numbers that are not finite."""


class Cut:
    """A network on the way to be cut: which neurons go together and how experts are chosen, for any number of them.

    Args:
        text: what is sent into the network.
        how: None as the number of shared experts is none here. `at` and `curve` take any number of active ones, except
            where all that `how` has are shared.
    """

    def __init__(self, text: NetworkText, how: Carving) -> None:
        self.text, self.dense, self.how = text, text.dense, how
        self.worth = worth(text.variance, self.dense.w_out)
        if not bool(self.worth.isfinite().all()) or not bool(text.fitted.x.isfinite().all()):
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
        return indicators(self.dense, self.text.profile)

    def _groups(self) -> list[Tensor]:
        how, size = self.how, len(self.worth) // self.how.experts
        generator = torch.Generator().manual_seed(how.seed)
        score, points = self.worth, None
        if how.partition == "indicator":
            score, points = rate(self._marks), self._marks
        elif how.partition == "variation":
            score, points, most = variation(map(self.dense.gates, in_texts(self.text.fitted.x)))
            self.shared = min(self.shared, round(most * how.experts))
        elif how.partition != "random" and not self._idle:
            points = features(how.partition, self.dense.w_in, self.text.profiled, self.dense.w_out)
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
        how, width = self.how, self.text.fitted.x.shape[1]
        routed = self.groups[self.shared :]
        up: Tensor | None = None
        if self._idle and how.router != "analytical":
            router, bias = torch.zeros(len(routed), width), torch.zeros(len(routed))
        elif how.router == "ridge":
            norms = contributions(self.text.fitted.hidden(), self.dense.w_out, routed)
            router, bias = ridge(self.text.fitted.x, norms, _RIDGE)
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
        fitted, whole = self.text.fitted, active == self.how.experts
        chosen = best_experts(self.router(fitted.x), active)
        absent = torch.zeros(self.how.experts, len(self.dense.w_out))
        if self.how.compensate and not whole:
            absent = self._absent(chosen)
        output = Output(self.dense.w_out, -absent, absent.sum(0))
        fits, back = self.how.refit and not whole, None
        if fits:
            output, back = refitted(output, fitted.hidden(), chosen, self.owner, self.dense.w_out, fitted.drift)
        step = None
        if back is not None:
            judged = self.text.judged
            best = best_experts(self.router(judged.x), active)
            apart = judged.wanted - self._said(judged, output, best)
            step = best_step(apart, self._said(judged, back, best), judged.says)
            output = output.moved(back, step.taken) if step.taken else output  # nothing times no number is none
        errors = self._errors(active, output)
        return Carved(tuple(self.groups), self.shared, self.router, output, fits, errors, step)

    def _absent(self, chosen: Tensor) -> Tensor:
        """What each expert adds on average to the tokens that do not choose it, `[E, H]`."""
        left = torch.zeros(len(self.worth))
        for part, hidden in self.text.fitted.blocks():
            left += (hidden * ~chosen[part][:, self.owner]).sum(0)
        mean = left / (~chosen).sum(0).clamp(min=1)[self.owner]
        return torch.stack([self.dense.w_out[:, group].float() @ mean[group] for group in self.groups])

    def _said(self, text: TextPart, output: Output, chosen: Tensor) -> Tensor:
        """What the cut network says with this output, `[T, H]`."""
        return torch.cat([output(hidden, chosen[part], self.owner) for part, hidden in text.blocks()])

    @cached_property
    def _norms(self) -> Tensor:
        """Of the text that judges, what experts truly add, as norms `[T, E]`; infinite for shared ones."""
        norms = contributions(self.text.judged.hidden(), self.dense.w_out, self.groups)
        norms[:, : self.shared] = float("inf")
        return norms

    def _errors(self, active: int, output: Output) -> Errors:
        judged = self.text.judged
        whole, wanted = float(judged.says.square().sum()) or 1.0, judged.wanted
        chosen, ideal = best_experts(self.router(judged.x), active), best_experts(self._norms, active)
        loads = chosen[:, self.shared :].sum(0).float()
        carved, oracle = (
            float((wanted - self._said(judged, output, best)).square().sum()) / whole for best in (chosen, ideal)
        )
        return Errors(
            carved,
            float((wanted - self._pruned(active)).square().sum()) / whole,
            min(carved, oracle),
            float(loads.max() / loads.mean().clamp(min=1e-9)) if len(loads) else 1.0,
        )

    def _pruned(self, active: int) -> Tensor:
        """What static pruning to as many neurons says of the text that judges, `[T, H]`."""
        size, mean = len(self.worth) // self.how.experts, self.text.mean
        kept = torch.zeros(len(self.worth), dtype=torch.bool)
        kept[self.worth.topk(active * size).indices] = True
        rows = (torch.where(kept, hidden, mean) for hidden in self.text.judged.hidden())
        return torch.cat([hidden @ self.dense.w_out.float().T for hidden in rows])

    # ------------------------------------------------------------------ before anything is fitted anew
    def slip(self, x: Tensor, active: int) -> Tensor:
        """What so many experts say less the dense network, `[T, H]` of `[T, H]`; the last matrix is the old one."""
        left = ~best_experts(self.router(x.float()), active)
        parts = [-self._plain(self.dense.hidden(x[part]), left[part]) for part in token_blocks(len(x))]
        return torch.cat(parts)

    def _plain(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        return (hidden.float() * chosen[:, self.owner]) @ self.dense.w_out.float().T

    def curve(self) -> Tensor:
        """The squared error summed over the text that judges, for 1, 2, … E experts a token, `[E]`, without means and
        with the old last matrix."""
        ranks = self.router(self.text.judged.x).argsort(dim=1, descending=True)
        found = torch.zeros(self.how.experts, dtype=torch.float64)
        for part, hidden in self.text.judged.blocks():
            left = torch.ones(len(hidden), self.how.experts, dtype=torch.bool)
            for k in range(self.how.experts):
                left.scatter_(1, ranks[part, k : k + 1], False)
                found[k] += float(self._plain(hidden, left).square().sum())
        return found.float()


def cut(text: NetworkText, how: Carving) -> Carved:
    """Cut a network by what a text sends into it, with the number of shared experts that loses least on what is held
    out where none is asked for. Raises `NotFiniteError`."""
    tried = [Cut(text, replace(how, shared=n)).at(how.active) for n in how.candidates()]
    return min(tried, key=lambda carved: carved.errors.carved)
