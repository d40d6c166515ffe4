"""Networks of several models in one graph: a mixture in the place of each, whose router is fitted, in graph order, to
what the mixtures before it bring there of each model's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import Routing
from moec.execution.lockstep import OperatorCalls, joined, run_in_lockstep
from moec.experts.dense_place import put_experts
from moec.experts.merged_router import MergedRouter, fit_router
from moec.experts.merged_sources import MergeSource
from moec.program.program import Program
from moec.recognition.ffn import Ffn
from moec.weights import lazy as weights
from moec.weights.lazy import Weight

_PARTS = ("w_in", "w_out", "b_in", "b_out")


class MergedPlace:
    """A network that becomes a mixture.

    Args:
        program: is changed by `rewrite`. ffn: the base's network. own: the same network of each model.
        rank: of what experts may add to the base's matrices; 0 for whatever they add.
    """

    def __init__(self, program: Program, ffn: Ffn, own: Sequence[Ffn], rank: int) -> None:
        self.program, self.ffn, self._own, self._rank = program, ffn, own, rank
        self.fitted: MergedRouter | None = None

    def rewrite(self, by: str, top_k: int, made: dict[fx.Node, fx.Node]) -> None:
        """Put a router of zeros and the experts in the network's place.

        Args:
            by: the pass's name. made: what stands in the place of other networks; this one's is entered.
        """
        ffn, add = self.ffn, self.program.add_weight
        stacks = {part: self._stack(part) for part in _PARTS}
        rows = torch.promote_types(ffn.w_in.dtype, torch.float32)
        router = weights.zeros((len(self._own), ffn.hidden), rows)
        self.router = add(f"{ffn.path}.router.weight", router)
        names = [add(f"{ffn.path}.experts.{p}", w) if w is not None else "" for p, w in stacks.items()]
        rule = Routing(top_k, combine="renormalize")
        x = made.get(ffn.x, ffn.x)  # a network may read another's output as it is
        self.logits, made[ffn.output] = put_experts(self.program, ffn, x, [self.router, *names], rule, by)

    def _stack(self, part: str) -> Weight | None:
        base, own = getattr(self.ffn, part), [getattr(ffn, part) for ffn in self._own]
        if base is None:
            return None
        near = [low_rank(w, base, self._rank) if self._rank and part.startswith("w") else w for w in own]
        return weights.stack(near)

    def fit(self, texts: Sequence[Tensor], held_out: Sequence[Tensor], ridge: float) -> Weight:
        """Fit the router to what arrives of each text, `[T, H]` each, and put it in its place."""
        self.fitted = fit_router(texts, held_out, ridge)
        origin = f"router of {', '.join(ffn.w_in.origin for ffn in self._own)}"
        made = weights.from_tensor(self.fitted.weight.to(self.program.weights[self.router].dtype), origin)
        self.program.weights[self.router] = made
        return made

    def facts(self) -> dict[str, Any]:
        """What is reported of it, as plain data; shares are of held-out tokens."""
        assert self.fitted is not None
        return {"module": self.ffn.path, "right": self.fitted.right, "confusion": self.fitted.confusion.tolist()}


def low_rank(own: Weight, base: Weight, rank: int) -> Weight:
    """A matrix whose difference from the base's is cut to the directions that count most."""

    def nearest(value: Tensor, origin: Tensor) -> Tensor:
        if value.device.type == "meta":
            return torch.empty_like(value)
        u, s, v = torch.linalg.svd(value.double() - origin.double(), full_matrices=False)
        return (origin.double() + (u[:, :rank] * s[:rank]) @ v[:rank]).to(value.dtype)

    return weights.whole(f"low-rank[{rank}]", nearest, own, base)


def fit_in_order(program: Program, places: Sequence[MergedPlace], sources: Sequence[MergeSource], ridge: float) -> None:
    """Fit each router to what the texts bring to it when all routers before it are fitted."""
    by_logits = {place.logits: place for place in places}
    last = next(node for node in reversed(program.graph.nodes) if node in by_logits)
    parts = [part for source in sources for part in (source.text, source.held_out)]

    def visit(calls: OperatorCalls) -> None:
        place = by_logits.get(calls.node)
        if place is not None:
            values, found = iter(calls.values(0)), []
            for part in parts:
                found.append(joined([next(values) for _ in part]))
            with torch.inference_mode(False):
                calls.replace(1, place.fit([x.clone() for x in found[::2]], [x.clone() for x in found[1::2]], ridge))

    run_in_lockstep(program, [sample for part in parts for sample in part], visit, until=last)
