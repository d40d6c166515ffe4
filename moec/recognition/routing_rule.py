"""Which routing rule a router computes: the constants are read from its nodes, the rule is proven by running it.

Every rule that the constants allow is compared with the router's own nodes in float64, on logits of several sizes and
signs and on random correction biases. In float64 a rule is told from its neighbours by far more than rounding:
renormalising with 1e-20 added to the sum differs from renormalising without it where all scores are small, and such
logits are among the probes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from moec.dialect import Routing, route_reference
from moec.program.program import Program
from moec.recognition.interpret import run, sizes
from moec.recognition.linear import value_of
from moec.recognition.router_region import NotARouter, Region

aten = torch.ops.aten
# spread and shift of the logits, then of the bias: ordinary; sharp, with negative choices; all scores small; all scores
# tiny and the choice left to the bias. No logit is so large that its sigmoid would round to 1
PROBES = ((1.0, 0.0, 0.3, 0.0), (4.0, 0.0, 0.3, -0.7), (1.0, -25.0, 0.3, 0.0), (16.0, -100.0, 4.0, 0.0))
_TOLERANCE = 1e-6  # relative; rules that differ do so by 1e-3 and more on some probe


def identify(program: Program, region: Region) -> Routing:
    """The rule that a region computes. Raises NotARouter when it is none that `Routing` can say."""
    wanted = list(probes(program, region))
    for rule in candidates(region):
        if all(agrees(rule, *probe) for probe in wanted):
            return rule
    names = ", ".join(
        dict.fromkeys(
            str(n.target).split(".")[1] for n in region.nodes if n.op == "call_function" and "." in str(n.target)
        )
    )
    raise NotARouter(f"no routing rule computes what it computes ({names})")


# ---------------------------------------------------------------------- candidates
class Rule(Protocol):
    """What a routing rule's constants are read from; `Region` has it for a router in front of `moec::experts`."""

    @property
    def rule_nodes(self) -> tuple[fx.Node, ...]:
        """Nodes of the rule, in graph order."""

    @property
    def selection(self) -> fx.Node:
        """The node that chooses the experts."""

    @property
    def experts(self) -> int:
        """E, how many there are to choose from."""

    @property
    def top_k(self) -> int:
        """K, how many are chosen."""


def candidates(region: Rule) -> Iterator[Routing]:
    """Every rule that the operators and constants of a region allow, the likelier ones first."""
    scale = math.prod([1.0, *_numbers(region, aten.mul)]) / math.prod([1.0, *_numbers(region, aten.div)])
    epsilons = dict.fromkeys([*_numbers(region, aten.add), 0.0])
    floors = dict.fromkeys([*_numbers(region, aten.clamp, aten.clamp_min), 0.0])
    zeros = (False, True) if _groups(region) else (False,)
    for score, combine, epsilon, floor, zero in itertools.product(
        _scores(region), _combines(region), epsilons, floors, zeros
    ):
        # `moec::route` chooses by logits where it weighs by their softmax: scores that saturate would tie before
        by_logits = combine != "softmax" or score in ("softmax", "identity")
        if by_logits and (combine == "renormalize" or not (epsilon or floor)):
            yield Routing(
                region.top_k,
                score,
                combine,
                scale=scale,
                epsilon=epsilon,
                floor=floor,
                closed_as_zero=zero,
                **_groups(region),
            )


def _combines(region: Rule) -> tuple[str, ...]:
    """Ways to make weights. Where all experts are chosen, softmax has the sum 1 whether it is renormalised or not, and
    what would hold for fewer of them is read from the nodes."""
    usual = ("renormalize", "scores", "softmax", "ones")
    if region.top_k < region.experts:
        return usual
    nodes = list(region.rule_nodes)
    packets = [getattr(n.target, "overloadpacket", None) for n in nodes]
    divides = any(p is aten.div and isinstance(n.args[1], fx.Node) for n, p in zip(nodes, packets, strict=True))
    before = nodes[: nodes.index(region.selection)] if region.selection in nodes else nodes
    late = any(n.target in (aten.softmax.int, aten._softmax.default) for n in nodes if n not in before)
    first = "softmax" if late else "renormalize" if divides else "scores"
    return tuple(sorted(usual, key=lambda way: way != first))


def _numbers(region: Rule, *packets: Any) -> list[float]:
    """Number arguments of these operators."""
    nodes = [n for n in region.rule_nodes if getattr(n.target, "overloadpacket", None) in packets]
    return [float(a) for n in nodes for a in n.args[1:] if isinstance(a, int | float) and not isinstance(a, bool)]


def _scores(region: Rule) -> list[str]:
    """Score functions over all experts that occur in the region; the raw logits last."""
    names = {
        aten.softmax.int: "softmax",
        aten._softmax.default: "softmax",
        aten.sigmoid.default: "sigmoid",
        aten.softplus.default: "sqrt_softplus",
    }
    wide = [n.target for n in region.rule_nodes if n.target in names and value_of(n).shape[-1] == region.experts]
    return [*dict.fromkeys(names[t] for t in wide), "identity"]


def _groups(region: Rule) -> dict[str, Any]:
    """Options of group-limited routing; empty without it."""
    others = [n for n in region.rule_nodes if n.target is aten.topk.default and n is not region.selection]
    limits = [n for n in others if 1 < _width(n) < region.experts and region.experts % _width(n) == 0 and _used(n, 1)]
    if not limits:
        return {}
    top2 = any(n.args[1] == 2 and _used(n, 0) and n is not limits[-1] for n in others)
    return {"groups": _width(limits[-1]), "top_groups": limits[-1].args[1], "group_score": "top2" if top2 else "max"}


def _width(topk: fx.Node) -> int:
    return int(value_of(topk.args[0]).shape[-1])


def _used(topk: fx.Node, output: int) -> bool:
    """Whether the values (0) or the indices (1) of a top-k are read."""
    return any(user.args[1] == output and user.users for user in topk.users)


# ---------------------------------------------------------------------- proof
def probes(program: Program, region: Region) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Logits `[T, E]`, bias `[E]` and the weight `[T, E]` of every expert, 0 for those that were not chosen."""
    size = sizes()
    shape = [size(s) for s in value_of(region.logits).shape]
    generator = torch.Generator().manual_seed(0)
    for spread, shift, bias_spread, bias_shift in PROBES:
        logits, bias = _draw(shape, generator) * spread + shift, None
        given: dict[fx.Node, Any] = {region.logits: logits}
        if region.bias is not None:
            bias = _draw([region.experts], generator) * bias_spread + bias_shift
            given[region.bias] = bias.reshape(value_of(region.bias).shape)
        try:
            values = run(program, region.nodes, given, size)
        except Exception as error:  # an operator that cannot run in float64 is no router of ours
            raise NotARouter(
                f"it cannot be run on random logits: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
            ) from error
        chosen = by_expert(values[region.weights], values[region.ids], region.experts)
        if len(chosen) != logits.numel() // region.experts:
            raise NotARouter("the experts take other rows than the router has tokens")
        yield logits.reshape(-1, region.experts), bias, chosen


def _draw(shape: list[int], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def agrees(rule: Routing, logits: Tensor, bias: Tensor | None, expected: Tensor) -> bool:
    """Whether a rule gives every expert the expected weight `[T, E]`."""
    try:
        weights, ids = route_reference(logits, bias, rule)
    except RuntimeError:  # a candidate that does not fit the shapes
        return False
    return torch.allclose(by_expert(weights, ids, logits.shape[-1]), expected, rtol=_TOLERANCE, atol=1e-30)


def by_expert(weights: Tensor, ids: Tensor, experts: int) -> Tensor:
    """Weights of all experts `[T, E]`: what the mixture depends on, whatever the order in which they were chosen."""
    rows = weights.reshape(-1, weights.shape[-1]).double()
    return torch.zeros(len(rows), experts, dtype=torch.float64).scatter_add(1, ids.reshape(-1, ids.shape[-1]), rows)
