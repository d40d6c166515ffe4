"""Dense feed-forward networks into mixtures of experts that compute the same function: sparse upcycling."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import fx

from moec.dialect import Routing
from moec.errors import MoecError
from moec.experts import initialization as init
from moec.experts.dense_place import put_experts
from moec.pipeline.passes import Context, Contract, Pass
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from moec.recognition.ffn import Ffn, find_ffns
from moec.recognition.hand_written import find_hand_written
from moec.recognition.linear import without_views
from moec.weights import lazy as weights
from moec.weights.lazy import Weight


@dataclass(frozen=True)
class Upcycle(Pass):
    """Replace dense FFNs by experts that are copies of them, chosen by a new router.

    With `granularity` 1 each expert is a whole copy (sparse upcycling, Komatsuzaki et al. 2022, arXiv 2212.05055) and
    the chosen weights sum to 1, so any router gives the dense function. With granularity G ("virtual groups", He et al.
    2024, arXiv 2410.07524) each copy is cut into G experts of I/G neurons, which share one router row; whole groups are
    chosen, each of its shards weighs p/G, and the factor G that this lacks is put into `w_out` as a shift of the
    exponent, which no rounding touches. The output's bias needs no factor: the weights of all chosen experts sum to 1.

    Attributes:
        experts: number of copies E; the layer gets E*G experts.
        top_k: experts a token T, a multiple of G. T = G keeps the dense model's FLOPs.
        granularity: G, a power of two that divides I.
        layers: `"all"`, `"every:n"` (each n-th, the n-th first, as Qwen3-MoE's `decoder_sparse_step`) or indices of the
            dense FFNs in graph order, from 0.
        router_std: standard deviation of the router's normal weights.
        reinit: share r of each expert's neurons that are drawn anew (Drop-Upcycling, arXiv 2502.19261); the pass is
            then approximate.
        seed: for router and reinit, beside the pipeline's own.
    """

    experts: int = 8
    top_k: int = 2
    granularity: int = 1
    layers: str | Sequence[int] = "all"
    router_std: float = 0.02
    reinit: float = 0.0
    seed: int = 0

    def contract_of(self) -> Contract:
        return "approximate" if self.reinit > 0 else "exact"

    def milder(self) -> tuple[Pass, ...]:
        return tuple(replace(self, reinit=self.reinit * share) for share in (0.5, 0.0) if self.reinit > 0)

    def apply(self, program: Program, context: Context) -> int:
        """Rewrite the chosen FFNs; raises M203 on a configuration that is not exact for this model."""
        self.check_settings()
        ffns, misses = find_ffns(program)
        for miss in misses:
            context.miss(miss.node, miss.reason)
        experts = {product for mixture in find_hand_written(program) for product in mixture.products}
        ffns = [f for f in ffns if not _is_taken(program, f, experts, context)]
        chosen = [ffns[i] for i in self._choose(len(ffns))]
        for ffn in chosen:
            self._check_width(ffn)
        entered: dict[tuple[str, ...], list[str]] = {}
        replaced: dict[fx.Node, fx.Node] = {}
        for ffn in chosen:
            names = self._enter_weights(program, ffn, f"{context.seed}/{self.seed}/{ffn.path}", entered)
            replaced[ffn.output] = self._rewrite(program, ffn, replaced.get(ffn.x, ffn.x), names)
        return len(chosen)

    # ------------------------------------------------------------------ configuration
    def _refuse(self, what: str, fix: str) -> MoecError:
        return MoecError("M203", what, str(self), fix)

    def check_settings(self) -> None:
        e, g, t = self.experts, self.granularity, self.top_k
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in (e, g, t)):
            raise self._refuse(
                "experts, top_k and granularity count things: they are integers of at least 1",
                "write for example upcycle(experts=8, top_k=2)",
            )
        if g & (g - 1):
            raise self._refuse(
                f"granularity {g} is not a power of two, so scaling by it would round the weights", "use 2, 4, 8, …"
            )
        if t > e * g:
            raise self._refuse(
                f"top_k {t} is more than the {e * g} experts of a layer",
                f"set top_k to at most {e * g}, or raise experts",
            )
        if t % g:
            near = max(g, t - t % g)
            raise self._refuse(
                f"top_k {t} is not a multiple of granularity {g}: a copy of which only some shards are chosen "
                "is not the dense function",
                f"set top_k to {near} or another multiple of {g}",
            )
        if not self.router_std > 0:
            raise self._refuse(
                "router_std must be positive: with equal logits every token takes the same experts",
                "leave router_std at 0.02",
            )
        if not 0 <= self.reinit <= 1:
            raise self._refuse(f"reinit is a share of the neurons, {self.reinit} is none", "set reinit between 0 and 1")

    def _check_width(self, ffn: Ffn) -> None:
        if ffn.intermediate % self.granularity:
            near = next(g for g in (8, 4, 2, 1) if ffn.intermediate % g == 0)
            raise self._refuse(
                f"granularity {self.granularity} does not divide the {ffn.intermediate} neurons of {ffn.path}",
                f"use granularity {near}",
            )

    def _choose(self, count: int) -> list[int]:
        if self.layers == "all":
            return list(range(count))
        if not isinstance(self.layers, list | tuple):
            kind, _, step = str(self.layers).partition(":")
            if kind != "every" or not step.isdecimal() or int(step) < 1:
                raise self._refuse(
                    f"layers={self.layers!r} is not a choice of layers", 'write "all", "every:2" or a list of indices'
                )
            return list(range(int(step) - 1, count, int(step)))
        wrong = [i for i in self.layers if not isinstance(i, int) or not 0 <= i < count]
        if wrong or len(set(self.layers)) != len(self.layers):
            raise self._refuse(
                f"layers {wrong or list(self.layers)} do not name FFNs of this model, or one twice",
                f"there are {count}, counted from 0",
            )
        return sorted(self.layers)

    # ------------------------------------------------------------------ weights
    def _enter_weights(
        self, program: Program, ffn: Ffn, seed: str, entered: dict[tuple[str, ...], list[str]]
    ) -> list[str]:
        """Names of router, w_in, w_out, b_in and b_out (empty: none); an FFN that is applied several times keeps one
        set."""
        key = (ffn.path, ffn.w_in.origin, ffn.w_out.origin)
        if key not in entered:
            parts = {"router.weight": self._router(ffn, seed), **self._experts(ffn, seed)}
            entered[key] = [
                program.add_weight(f"{ffn.path}.{name}", w) if w is not None else "" for name, w in parts.items()
            ]
        return entered[key]

    def _router(self, ffn: Ffn, seed: str) -> Weight:
        # drawn in the model's dtype, computed with in float32: in 16 bits two groups' logits tie often enough to be
        # seen
        drawn = init.normal_rows(
            self.experts, ffn.hidden, self.granularity, self.router_std, f"{seed}/router", ffn.w_in.dtype
        )
        return weights.cast(drawn, torch.promote_types(drawn.dtype, torch.float32))

    def _experts(self, ffn: Ffn, seed: str) -> dict[str, Weight | None]:
        shards = [_shard(ffn, g, self.granularity) for g in range(self.granularity)] * self.experts
        rows = ffn.activation.rows_per_neuron
        drawn = [
            init.redraw(w_in, w_out, rows, self.reinit, f"{seed}/{e}") for e, (w_in, _, w_out) in enumerate(shards)
        ]
        w_outs = [weights.scale(w, float(self.granularity)) for _, w in drawn]
        return {
            "experts.w_in": weights.stack([w for w, _ in drawn]),
            "experts.w_out": weights.stack(w_outs),
            "experts.b_in": None if ffn.b_in is None else weights.stack([b for _, b, _ in shards if b is not None]),
            "experts.b_out": None if ffn.b_out is None else weights.stack([ffn.b_out] * len(shards)),
        }

    # ------------------------------------------------------------------ graph
    def _rewrite(self, program: Program, ffn: Ffn, x: fx.Node, names: Sequence[str]) -> fx.Node:
        # whole groups are chosen first, so that not even a tie between two groups' logits mixes their shards
        groups, top_groups = (self.experts, self.top_k // self.granularity) if self.granularity > 1 else (1, 1)
        routing = Routing(self.top_k, combine="renormalize", groups=groups, top_groups=top_groups)
        return put_experts(program, ffn, x, names, routing, self.name)[1]


def _shard(ffn: Ffn, index: int, count: int) -> tuple[Weight, Weight | None, Weight]:
    """`w_in`, `b_in` and `w_out` of neurons `index * I/count` and following; everything when count is 1."""
    if count == 1:
        return ffn.w_in, ffn.b_in, ffn.w_out
    size = ffn.intermediate // count
    start, stop = index * size, (index + 1) * size
    parts = ffn.parts()
    w_in = weights.concat([weights.rows(w, start, stop) for w, _ in parts], 0)
    b_in = (
        None
        if ffn.b_in is None
        else weights.concat([weights.rows(b, start, stop) for _, b in parts if b is not None], 0)
    )
    return w_in, b_in, weights.columns(ffn.w_out, start, stop)


def _is_taken(program: Program, ffn: Ffn, experts: Set[fx.Node], context: Context) -> bool:
    """Whether the FFN belongs to a mixture already: it is one of its experts, or its shared one, which reads what the
    mixture reads."""
    read = [MoeCall(node).node_of("x") for node in moe_nodes(program)]
    shared = any(without_views(x) is without_views(ffn.x) for x in read)
    if ffn.nodes & experts:
        context.miss(ffn.output, "it is an expert of a mixture that is there already")
    elif shared:
        context.miss(ffn.output, "it is the shared expert of a mixture that is there already")
    return shared or bool(ffn.nodes & experts)
