"""A mixture that gets one more expert: another model's network, behind those that it has, which stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from moec.execution.lockstep import OperatorCalls, joined_parts, run_in_lockstep
from moec.experts.added_row import AddedRow, Read, fit_row
from moec.experts.cut import MoeBlock, find_block, grow, names_of, rename, router_matrix
from moec.experts.dense_network import in_float32
from moec.experts.merged_refit import Arriving, judges_of, refitted_expert
from moec.experts.stream import Stream, UntouchedStream, stream_of, without_network
from moec.experts.stream_step import Step
from moec.program.dialect_call import RouteCall
from moec.program.moe_call import MoeCall
from moec.program.program import Program
from moec.program.signature import Sample
from moec.recognition.ffn import Ffn
from moec.recognition.linear import find_linears
from moec.weights import lazy as weights
from moec.weights.lazy import Weight

_PARTS = ("w_in", "w_out", "b_in", "b_out")
Text = tuple[Sequence[Sample], Sequence[Sample]]  # to fit on, and what judges


def why_not(block: MoeBlock, ffn: Ffn | None = None) -> str:
    """Why a block cannot get an expert, or a network cannot be one of it; empty where it can."""
    rule = block.rule
    if block.projection is None:
        return "its routing is inside one operator already"
    call = RouteCall(block.route)
    plain = rule.score == "softmax" and rule.groups == 1 and call.capacity is None and call.bias is None
    if not plain or block.projection.bias is not None:
        return "its router is not a linear layer without a bias whose highest logits choose"
    if rule.combine != "renormalize":
        return "its weights are scores of all experts, which another one would change"
    experts = MoeCall(block.node)
    read = [*experts.expert_tensors().values(), router_matrix(block)]
    if block.projection.product.target != torch.ops.aten.linear.default or any(node.op != "get_attr" for node in read):
        return "its weights are not stored as it reads them"
    if ffn is None:
        return ""
    own = {name: list(a.meta["val"].shape[1:]) for name, a in experts.expert_tensors().items()}
    other = {name: list(part.shape) for name in _PARTS if (part := getattr(ffn, name)) is not None}
    if own != other:
        return f"experts have {_shown(own)}, and the network {_shown(other)}"
    return "" if experts.activation == ffn.activation else "experts have another activation than the network"


def _shown(forms: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in forms.items())


class AddedPlace:
    """A block that gets an expert.

    Args:
        program: is changed by `rewrite`. block: of it. ffn: what becomes an expert, see `why_not`.
    """

    def __init__(self, program: Program, block: MoeBlock, ffn: Ffn) -> None:
        self.program, self.ffn, self._block = program, ffn, block
        self.row: AddedRow | None = None
        self.step: Step | None = None
        self._streams: tuple[Stream, Stream] | None = None  # in the new expert's model, and here
        self._beside: Beside | None = None
        self._kept = ""  # why the last matrix stays

    @classmethod
    def like_its_own(cls, program: Program, block: MoeBlock) -> AddedPlace:
        """A place for an expert of the form of the block's first one, where nothing is known but that."""
        held = {n: weights.select(program.weights[w], 0) for n, w in names_of(block).items() if n in _PARTS}
        node, call = block.node, MoeCall(block.node)
        parts = held["w_in"], held.get("b_in"), held["w_out"], held.get("b_out")
        return cls(program, block, Ffn(node, node, *parts, call.activation, block.module, frozenset()))

    def rewrite(self, by: str) -> None:
        """Put the network behind the experts, and a row of zeros behind the router's, which `fit` fills in.

        Args:
            by: the pass's name.
        """
        program, node, names = self.program, self._block.node, names_of(self._block)
        self._old = {name: program.weights[entered] for name, entered in names.items() if name in ("router", "w_out")}
        added = {names[n]: _as_one(getattr(self.ffn, n), program.weights[names[n]]) for n in names if n in _PARTS}
        router = self._old["router"]
        added[names["router"]] = weights.zeros((1, *router.shape[1:]), router.dtype)
        rename(program, grow(program, self._block, added, by))
        block = find_block(node, find_linears(program))
        self.names, self.experts = names_of(block), node
        assert block.projection is not None
        self.first = block.projection.product

    def fit(self, text: Read, held_out: Read, ridge: float) -> Weight:
        """Fit the row to what arrives, and put it in its place."""
        old = self._old["router"]
        self.row = fit_row(in_float32(old), text, held_out, ridge)
        row = weights.from_tensor(self.row.weight[None].to(old.dtype), f"row of {self.ffn.w_in.origin}")
        return self._with("router", row)

    def follow(self, beside: Beside) -> None:
        """Let `refit` fit the new expert to these streams, where they can be told. Called in graph order, when all
        places are rewritten."""
        if self._block.rule.top_k > 1:
            self._kept = "outputs of several experts are mixed"
            return
        first = next(n for n in self.ffn.output.graph.nodes if n in self.ffn.nodes and self.ffn.x in n.all_input_nodes)
        there = beside.model.follow(stream_of(self.ffn.output, first))
        here = beside.mixture.follow(stream_of(self.experts, self.first))
        if isinstance(there, Stream) and isinstance(here, Stream):
            self._streams, self._beside = (there, here), beside
        else:
            self._kept = there if isinstance(there, str) else str(here)

    def refit(self, x: Tensor, judges: Tensor, calls: OperatorCalls) -> None:
        """Fit the new expert's last matrix to what the stream lacks, for the tokens that it gets, of whichever text.

        Args:
            x: `[T, H]`, what arrives. judges: bool `[T]`, whether a token is held out. calls: of the router.
        """
        if self._beside is None or self._streams is None:
            return
        assert self.row is not None
        there, here = self._streams
        streams = torch.cat([self._beside.model.at(there), self._beside.mixture.at(here)])
        arriving = Arriving(x, streams, streams - without_network(here, calls), judges)
        router = torch.cat([in_float32(self._old["router"]), self.row.weight[None]])
        own = arriving.of((arriving.x @ router.T).argmax(-1) == len(router) - 1)
        matrix, self.step = refitted_expert(self.ffn, own)
        made = weights.from_tensor(matrix[None], f"last matrix fitted anew of {self.ffn.w_out.origin}")
        self._with("w_out", weights.cast(made, self._old["w_out"].dtype))

    def _with(self, name: str, added: Weight) -> Weight:
        made = weights.concat([self._old[name], added], 0)
        self.program.weights[self.names[name]] = made
        return made

    def facts(self) -> dict[str, Any]:
        """What is reported of it, as plain data; shares are of held-out tokens."""
        assert self.row is not None
        found: dict[str, Any] = {"module": self._block.module, "right": self.row.right, "kept": self.row.kept}
        if self.step is None:
            return found | ({"step": self._kept} if self._kept else {})
        return found | {"step": self.step.taken, "stream": self.step.left, "without step": self.step.before}


def _as_one(part: Weight, beside: Weight) -> Weight:
    """A network's weight as one expert's, `[1, …]`."""
    return weights.cast(weights.stack([part]), beside.dtype)


class Beside:
    """The new expert's model and the mixture as it was, each on its own texts: what their streams are.

    Args:
        model, mixture: their programs. texts: of the new expert, then others.
    """

    def __init__(self, model: Program, mixture: Program, texts: Sequence[Text]) -> None:
        own, *others = [[*fitted_on, *held_out] for fitted_on, held_out in texts]
        self.model, self.mixture = UntouchedStream(model, own), UntouchedStream(mixture, [*chain(*others)])


def add_in_order(
    program: Program, places: Sequence[AddedPlace], texts: Sequence[Text], beside: Beside | None, ridge: float
) -> None:
    """Fit each row to what the texts bring to it when all before it are fitted.

    Args:
        texts: of the new expert, then others. beside: what the new last matrices are fitted to; None where they stay.
    """
    by_first = {place.first: place for place in places}
    last = next(node for node in reversed(program.graph.nodes) if node in by_first)
    parts = [part for text in texts for part in text]
    if beside is not None:
        for place in places:
            place.follow(beside)

    def visit(calls: OperatorCalls) -> None:
        place = by_first.get(calls.node)
        if place is None:
            return
        with torch.inference_mode(False):
            found = joined_parts(calls.values(0), parts)
            text, held_out = (Read(own[0], own[1:]) for own in (found[::2], found[1::2]))
            calls.replace(1, place.fit(text, held_out, ridge))
            place.refit(torch.cat(found).float(), judges_of(found), calls)

    run_in_lockstep(program, [sample for part in parts for sample in part], visit, until=last)
