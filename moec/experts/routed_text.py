"""What every router of a program chooses for a text, and how alike its experts are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor, fx

from moec.errors import MoecError
from moec.execution.choices import choice_of, logits_of
from moec.execution.lockstep import OperatorCalls, run_in_lockstep, with_block_cache
from moec.execution.streaming import lazy_expert
from moec.pipeline.pipeline import Pipeline
from moec.program.dialect_call import ROUTE
from moec.program.functional import drop_dead
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.observed import route_of
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.routing.scores import shares_by
from moec.routing.similarity import Similarity, of_outputs
from moec.routing.tally import Choice
from moec.weights.lazy import Weight

SAMPLE = 32  # tokens that every expert is run on


@dataclass(frozen=True)
class Mixture:
    """One mixture of a program: its name, its operator, its `moec::route` where there is one of its own."""

    name: str
    node: fx.Node
    route: fx.Node | None
    experts: int
    top_k: int


class RoutedText:
    """A program whose routers are listened to.

    Attributes:
        program: with its routers recognised, up to the last of its mixtures. mixtures: in graph order.
        similarity: of the experts, by the mixture's name, once a text has run with `alike`.
    """

    def __init__(self, program: Program) -> None:
        """Raises M201 for a program without a mixture."""
        self.program, _ = Pipeline.parse("find-moe").all_optional().run(program)
        self.mixtures = _distinct([_mixture(node) for node in moe_nodes(self.program)])
        self.similarity: dict[str, Similarity | None] = {}
        if not self.mixtures:
            fix = "routers are those of mixtures; `moec inspect MODEL` shows what the model holds"
            raise MoecError("M201", "the model has no mixture of experts", str(program.source), fix)
        self._forget_what_follows()

    def _forget_what_follows(self) -> None:
        """Let the last mixture be the only output, so that a run keeps no cache of keys and values for the end."""
        graph = self.program.graph
        next(n for n in graph.nodes if n.op == "output").args = ((self.mixtures[-1].node,),)
        drop_dead(graph)

    def run(self, samples: Sequence[Mapping[str, Tensor]], alike: bool = False) -> dict[str, list[Choice]]:
        """For each mixture by name, what is chosen for each sample. Each weight is read once.

        Args:
            samples: named inputs, see `moec.program.decoder_signature.text_inputs`.
            alike: run every expert on some of the tokens, too, and fill `similarity`.
        """
        wanted = {m.node: m for m in self.mixtures}
        routes = {m.route for m in self.mixtures}
        shares: dict[fx.Node, list[Tensor]] = {}
        found: dict[str, list[Choice]] = {}

        def visit(calls: OperatorCalls) -> None:
            mixture = wanted.get(calls.node)
            if calls.node in routes or (mixture is not None and mixture.route is None):
                shares[calls.node] = _shares(calls)
            if mixture is not None:
                known = shares.get(mixture.route or mixture.node, [])
                found[mixture.name] = [_choice(c, s) for c, s in zip_longest(calls.moe_calls(), known)]
                if alike:
                    self.similarity[mixture.name] = of_outputs(_outputs(calls))

        run_in_lockstep(self.program, samples, visit, until=self.mixtures[-1].node)
        return found


def _mixture(node: fx.Node) -> Mixture:
    call = MoeCall(node)
    route = None if call.fused else route_of(call.ids)
    known = route if route is not None and route.target is ROUTE else None
    return Mixture(module_path(node) or node.name, node, known, call.experts, call.top_k)


def _distinct(mixtures: list[Mixture]) -> list[Mixture]:
    """With names that differ, where one module is called several times."""
    names = Counter(m.name for m in mixtures)
    return [replace(m, name=f"{m.name} ({m.node.name})") if names[m.name] > 1 else m for m in mixtures]


def _shares(calls: OperatorCalls) -> list[Tensor]:
    """`[T, E]` for each input; nothing where the operator does not route."""
    found = []
    for args, named in zip(calls.inputs, calls.named, strict=True):
        routed = logits_of(calls.node, args, named)
        if routed is not None:
            found.append(shares_by(routed[0], routed[2]))
    return found


def _choice(call: MoeCall, shares: Tensor | None) -> Choice:
    weights, ids, experts = choice_of(call)
    return Choice(experts, ids, weights, shares)


def _outputs(calls: OperatorCalls) -> Tensor:
    """What each expert makes of some tokens of the text's beginning and of its other samples, `[E, T, H]`."""
    given = calls.moe_calls()
    each = max(1, SAMPLE // len(given))
    rows = torch.cat([call.x.reshape(-1, call.x.shape[-1])[:each] for call in given])[:SAMPLE]
    first = given[0]
    w_in, w_out, b_in, b_out = (
        with_block_cache(m) if isinstance(m, Weight) else m for m in (first.w_in, first.w_out, first.b_in, first.b_out)
    )
    expert = lazy_expert(w_in, w_out, b_in, b_out, first.activation)
    return torch.stack([expert(e, rows) for e in range(first.experts)])
