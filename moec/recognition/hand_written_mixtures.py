"""Mixtures in plain operators that `moec::route` and `moec::experts` can say: where each stands, its experts, its
rule."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from moec.dialect import Routing
from moec.program.program import Program
from moec.recognition.ffn import Ffn, find_ffns
from moec.recognition.hand_written import HandWritten, find_hand_written
from moec.recognition.hand_written_experts import Experts, read_experts
from moec.recognition.hand_written_region import MixtureRegion, NotAMixture, find_regions
from moec.recognition.hand_written_rule import Rule, identify, is_drawn, with_drawn_weights
from moec.recognition.linear import value_of
from moec.weights.digest import add_tensor
from moec.weights.lazy import Weight

_Rules = dict[Hashable, Rule | NotAMixture]


@dataclass(frozen=True)
class Mixture:
    """A mixture that the dialect can say.

    Attributes:
        region: its nodes. experts: with the program's own weights. rule: how it weighs them.
    """

    region: MixtureRegion
    experts: Experts
    rule: Rule

    @property
    def routing(self) -> Routing:
        """The routing rule."""
        return self.rule.routing

    @property
    def score_before(self) -> bool:
        """Whether weights multiply what goes into the experts, not what comes out."""
        return self.rule.score_before


def find_mixtures(program: Program) -> Iterator[tuple[HandWritten, Mixture | NotAMixture]]:
    """Each mixture in plain operators, in graph order, as the dialect says it, or why it cannot.

    Of mixtures that are alike, layer by layer, one is run. The program may be rewritten between one and the next.
    """
    found = find_hand_written(program)
    if not found:
        return
    drawn, rules = with_drawn_weights(program), _Rules()
    tried, own = _by_node(drawn), _by_node(program)
    for written in found:
        try:
            region, rule = _identified(drawn, written, tried, rules)
            yield written, Mixture(region, read_experts(program, region, own), rule)
        except NotAMixture as reason:
            yield written, reason


def _by_node(program: Program) -> dict[fx.Node, Ffn]:
    return {node: ffn for ffn in find_ffns(program)[0] for node in ffn.nodes}


def _identified(
    drawn: Program, written: HandWritten, ffns: Mapping[fx.Node, Ffn], rules: _Rules
) -> tuple[MixtureRegion, Rule]:
    """The first of its regions that a rule fits. Raises NotAMixture."""
    reasons = []
    for region in find_regions(drawn, written):
        kind = _kind(drawn, region)
        if kind not in rules:
            rules[kind] = _rule(drawn, region, ffns)
        rule = rules[kind]
        if not isinstance(rule, NotAMixture):
            return region, rule
        reasons.append(rule)
    raise reasons[0]


def _hash(weight: Weight) -> str:
    found = hashlib.sha256()
    add_tensor(found, weight.load())
    return found.hexdigest()


def _rule(drawn: Program, region: MixtureRegion, ffns: Mapping[fx.Node, Ffn]) -> Rule | NotAMixture:
    try:
        return identify(drawn, region, read_experts(drawn, region, ffns))
    except NotAMixture as reason:
        return reason


def _kind(drawn: Program, region: MixtureRegion) -> Hashable:
    """What two regions have in common that compute the same but for their weights: operators, their arguments, the
    shapes of weights and which of them are one, and the numbers of those that were not drawn."""
    number = {node: k for k, node in enumerate([region.start, *region.nodes])}
    weights: dict[Hashable, int] = {}
    place = {p.matrix.node: f"{e}.{k}" for e, each in enumerate(region.found.experts) for k, p in enumerate(each)}

    def seen(node: fx.Node) -> str:
        if node.op == "get_attr":
            weight = drawn.weights[str(node.target)]
            same = weights.setdefault(id(weight), len(weights))
            own = "" if is_drawn(weight) else _hash(weight)
            return f"weight {place.get(node, '')} {same} {weight.shape} {weight.dtype} {own}"
        return f"%{number[node]}" if node in number else f"size {value_of(node)}"

    calls = [(str(n.target), str(fx.map_arg((n.args, n.kwargs), seen))) for n in region.nodes if n.op != "get_attr"]
    return (number[region.output], number.get(region.x), number[region.logits.node], *calls)
