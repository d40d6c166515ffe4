"""A mixture whose experts are cut into parts of which a token uses some: the router chooses experts as before, then a
router of each chosen expert its parts."""

from __future__ import annotations

import operator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from moec.dialect import Routing
from moec.execution.lockstep import OperatorCalls, joined
from moec.experts.carved_place import TOKENS_AN_EXPERT, drawn, finite, require_tokens
from moec.experts.carved_weights import carved_weights, placeholders
from moec.experts.carving import Carved, Carving, Errors, cut
from moec.experts.dense_network import dense_of
from moec.experts.network_text import NetworkText
from moec.experts.stream import UntouchedStream
from moec.program.moe_call import MoeCall
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.rewriting import call_like
from moec.recognition.ffn import Ffn
from moec.recognition.linear import constant, value_of
from moec.weights import lazy as weights
from moec.weights.lazy import Weight

aten, ops = torch.ops.aten, torch.ops.moec


class FinerPlace:
    """A mixture whose experts are cut.

    Args:
        program: is changed by `rewrite`. node: its `moec::experts`, whose weights are the program's own. how: of each
            expert; its parts are called experts there. by: what cuts it, for the origins of weights.
    """

    def __init__(self, program: Program, node: fx.Node, how: Carving, by: str) -> None:
        self.program, self.node, self.how, self._by = program, node, how, by
        self.path, self._parts = module_path(node) or node.name, list[tuple[int, Errors]]()
        call = MoeCall(node)
        held = {name: constant(program, a) for name, a in call.expert_tensors().items()}
        self.experts = [_expert(node, call, held, f"{self.path}.{e}", e) for e in range(call.experts)]

    @property
    def end(self) -> fx.Node:
        """The node that is replaced."""
        return self.node

    @staticmethod
    def why_not(program: Program, node: fx.Node, parts: int) -> str:
        """Why a mixture's experts stay whole; empty where they can be cut."""
        call = MoeCall(node)
        if call.fused:
            return "its routing is inside one operator already; put carve before fuse-moe"
        if call.score_before:
            return "its weights count before the experts, not behind them"
        if any(constant(program, a) is None for a in call.expert_tensors().values()):
            return "its experts' weights are computed"
        inner = value_of(call.w_out).shape[2]
        return f"{parts} parts do not divide its experts' {inner} neurons" if inner % parts else ""

    def rewrite(self, name: str, made: dict[fx.Node, fx.Node]) -> None:
        """Put the second choice behind the first, with weights that `fit` fills in. `made`: what stands in the place of
        other nodes; this one's is entered."""
        program, call, how = self.program, MoeCall(self.node), self.how
        put = partial(call_like, program, self.node, name)
        forms = [placeholders(e, how) for e in self.experts]
        self.names = {
            form: program.add_weight(f"{self.path}.{name}.{form}", weights.concat([f[form] for f in forms], 0))
            for form in forms[0]
            if form != "experts.constant"
        }
        x, top_k = made.get(call.x, call.x), call.top_k
        rule = Routing(how.active, score="identity", combine="ones")
        with program.graph.inserting_before(self.node):
            self._ids = ids = put(aten.reshape.default, call.ids, [-1, top_k])
            rows = put(aten.reshape.default, x, [-1, value_of(x).shape[-1]])
            rows = rows if value_of(rows).dtype == torch.float32 else put(aten.to.dtype, rows, torch.float32)
            self.first = put(aten.linear.default, rows, self._read("router.weight"), self._read("router.bias"))
            logits = put(aten.reshape.default, self.first, [-1, len(self.experts), how.experts])
            places = put(aten.expand.default, put(aten.unsqueeze.default, ids, -1), [-1, -1, how.experts])
            chosen = put(ops.route.default, put(aten.gather.default, logits, 1, places), None, **rule.arguments())
            parts = put(operator.getitem, chosen, 1)
            first = put(aten.mul.Tensor, put(aten.unsqueeze.default, ids, -1), how.experts)
            parts = put(aten.reshape.default, put(aten.add.Tensor, first, parts), [-1, top_k * how.active])
            count = put(aten.unsqueeze.default, put(aten.reshape.default, call.weights, [-1, top_k]), -1)
            count = put(aten.expand.default, count, [-1, -1, how.active])
            count = put(aten.reshape.default, count, [-1, top_k * how.active])
            own = {n.removeprefix("experts."): self._read(n) for n in self.names if n.startswith("experts.")}
            tensors = (own["w_in"], own["w_out"], own.get("b_in"), own["b_out"])
            y = put(ops.experts.default, x, parts, count, *tensors, **call.activation.arguments())
        self.node.replace_all_uses_with(y)
        made[self.node] = y

    def _read(self, name: str) -> fx.Node:
        return self.program.read_weight(self.names[name])

    # ------------------------------------------------------------------ weights
    def look(self, calls: OperatorCalls) -> None:
        """See which experts tokens go to, and then, at the router of the parts, what the tokens are; cut all experts by
        that. Called for every operator before it is computed. Raises M203 for a text of which no expert gets enough."""
        if calls.node is self._ids:
            self._seen = joined(calls.values(0))
        elif calls.node is self.first:
            most = int(self._seen.flatten().bincount().max())
            require_tokens(most, self.how.experts, f"the busiest expert of {self.path}")
            with torch.inference_mode(False):
                self.fit(joined(calls.values(0)).clone(), self._seen.clone())
            for at, name in ((1, "router.weight"), (2, "router.bias")):
                calls.replace(at, self.program.weights[self.names[name]])

    def bring_back(self, untouched: UntouchedStream) -> None:
        """Its experts are fitted to their own outputs: a token's drift would have to be divided among them."""

    def fit_to_chance(self) -> None:
        """Cut all experts where there is no text."""
        self.fit(None, None)

    def fit(self, x: Tensor | None, ids: Tensor | None) -> None:
        """Cut each expert by the tokens `[T, H]` that go to it, ids `[T, K]`; one that too few reach, or all without a
        text, as chance has it."""
        made, counts = list[dict[str, Weight]](), list[int]()
        for e, expert in enumerate(self.experts):
            own = None if x is None or ids is None else x[(ids == e).any(1)]
            few = own is None or len(own) < TOKENS_AN_EXPERT * self.how.experts
            counts.append(0 if few or own is None else len(own))
            carved = self._cut(expert, None if few else own)
            self._parts.append((carved.shared, carved.errors))
            new = carved_weights(expert, carved, f"{self._by}, seed {self.how.seed}")
            share = new.pop("experts.constant").load().float() / self.how.active  # as many parts as that are chosen
            b_out = new["experts.b_out"]
            value = (b_out.load().float() + share).to(b_out.dtype)
            made.append({**new, "experts.b_out": weights.from_tensor(value, f"parts of {b_out.origin}")})
        self._counts = counts
        for name, entered in self.names.items():
            self.program.weights[entered] = weights.concat([m[name] for m in made], 0)

    def _cut(self, expert: Ffn, x: Tensor | None) -> Carved:
        how = self.how
        if x is None:
            x = drawn(expert.hidden, how.seed)
            how = replace(how, shared=how.shared or 0, partition="random", router="random")
            how = replace(how, compensate=False, refit=False)
        with finite(expert):
            return cut(NetworkText(dense_of(expert), x), how)

    def facts(self, measured: bool) -> dict[str, Any]:
        """What is reported of it; errors are the mean of its experts, by the tokens that reach them."""
        found: dict[str, Any] = {"module": self.path, "active": self.how.active, "experts cut": len(self.experts)}
        total = sum(self._counts)
        if not measured or not total:
            return found
        parts = list(zip(self._parts, self._counts, strict=True))
        mean = {n: sum(c * getattr(e, n) for (_, e), c in parts) / total for n in ("carved", "static", "oracle")}
        shared = min(own for (own, _), c in parts if c)
        return {**found, "shared": shared, **mean, "experts without text": self._counts.count(0)}


def _expert(node: fx.Node, call: MoeCall, held: dict[str, Weight | None], path: str, e: int) -> Ffn:
    """One expert as the network that it is."""
    own = {name: None if w is None else weights.select(w, e) for name, w in held.items()}
    w_in, w_out = own["w_in"], own["w_out"]
    assert w_in is not None and w_out is not None
    return Ffn(node, node, w_in, own.get("b_in"), w_out, own.get("b_out"), call.activation, path, frozenset())
