"""`skip-experts`: experts that few tokens of a prompt chose are left out for that prompt."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import fx

from moec.errors import MoecError
from moec.pipeline.passes import Context, Contract, Pass
from moec.program.decoder_signature import IDS, MASK
from moec.program.moe_call import MoeCall, moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.program.rewriting import call_like
from moec.recognition.linear import value_of

aten = torch.ops.aten


@dataclass(frozen=True)
class SkipExperts(Pass):
    """Leave out, for each sequence of a call, experts that few of its tokens chose.

    Those that fewer tokens chose than a share of the mean get the mixing weight 0 there (PESF, EAC-MoE, arXiv
    2508.01625 §4): of l tokens that go to K of N experts each, those with fewer than `alpha * l * K / N`. Kernels need
    not compute what weighs nothing. Padding counts for nothing. A call of one new token is left as it is, since one
    choice is more than any share of the mean; so this changes how prompts are read, never how texts are continued. What
    a prompt's first tokens become then depends on its last, and a prompt in chunks is not the same as in one go.

    Attributes:
        alpha: share of the mean, above 0 and at most 1. 0.3 is mild where routing is uneven; even routing loses much
            from 0.7 on.
        renormalize: scale the weights that remain so that they sum to what they did.
    """

    contract: ClassVar[Contract] = "approximate"
    prepared_by: ClassVar[tuple[str, ...]] = ("find-moe",)
    by_call: ClassVar[bool] = True

    alpha: float = 0.3
    renormalize: bool = False

    def milder(self) -> tuple[Pass, ...]:
        return tuple(replace(self, alpha=alpha) for alpha in (0.3, 0.1) if alpha < self.alpha)

    def apply(self, program: Program, context: Context) -> int:
        """Returns the number of blocks. Raises M203 when alpha means nothing, without sequences among the inputs, and
        naming the block where weights of 0 would not leave its experts out."""
        self.check_settings()
        blocks = moe_nodes(program)
        if not blocks:
            return 0
        for node in blocks:
            self._check_block(node)
        sequences = _Sequences(self, program, blocks[0])
        for node in blocks:
            sequences.check(node)
            with program.graph.inserting_before(node):
                MoeCall(node).replace(weights=self._weights(sequences, program, node))
        context.facts["alpha"] = self.alpha
        return len(blocks)

    def check_settings(self) -> None:
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, int | float) or not 0 <= self.alpha <= 1:
            raise MoecError(
                "M203",
                f"alpha={self.alpha} is no share of the mean",
                str(self),
                "write for example alpha=0.3: above 0 and at most 1",
            )
        if self.alpha == 0:
            raise MoecError(
                "M203",
                "alpha=0 does nothing: no expert is chosen by fewer than no token",
                str(self),
                "leave the pass out, or take alpha=0.3",
            )

    def _check_block(self, node: fx.Node) -> None:
        where = module_path(node) or node.name
        call = MoeCall(node)
        if call.fused:
            raise MoecError(
                "M203", "its routing is inside one operator already", where, "put skip-experts before fuse-moe"
            )
        if call.score_before and (call.b_in is not None or call.b_out is not None):
            raise MoecError(
                "M203",
                "its weights come before experts with biases, so that one of 0 leaves a bias",
                where,
                "leave skip-experts out",
            )

    def _weights(self, sequences: _Sequences, program: Program, node: fx.Node) -> fx.Node:
        """The block's weights, 0 for experts that are left out."""
        block, call = MoeCall(node), partial(call_like, program, node, self.name)
        ids, weights, count, top_k = block.node_of("ids"), block.node_of("weights"), block.experts, block.top_k
        batch, length = sequences.sizes
        given = call(aten.reshape.default, weights, [batch, length, top_k])
        chosen = call(aten.reshape.default, ids, [batch, length, top_k])
        none = call(aten.zeros.default, [batch, length, count], dtype=torch.float32, device=value_of(ids).device)
        ones = call(aten.expand.default, sequences.real, [-1, -1, top_k])
        counts = call(aten.sum.dim_IntList, call(aten.scatter.src, none, 2, chosen, ones), [1])
        flat = call(aten.reshape.default, chosen, [batch, call(operator.mul, length, top_k)])
        own = call(aten.reshape.default, call(aten.gather.default, counts, 1, flat), [batch, length, top_k])
        limit = call(aten.mul.Tensor, sequences.tokens, self.alpha * top_k / count)
        masked = call(aten.masked_fill.Scalar, given, call(aten.lt.Tensor, own, limit), 0.0)
        if self.renormalize:
            before, after = (call(aten.sum.dim_IntList, w, [-1], True) for w in (given, masked))
            smallest = max(
                torch.finfo(value_of(weights).dtype).tiny, 1e-20
            )  # where all are left out, nothing divided by it remains nothing
            masked = call(
                aten.mul.Tensor, masked, call(aten.div.Tensor, before, call(aten.clamp.default, after, smallest))
            )
        return masked if value_of(weights).dim() == 3 else call(aten.reshape.default, masked, [-1, top_k])


class _Sequences:
    """Which rows of a call belong to which sequence, and which are padding.

    Attributes:
        sizes: nodes or numbers: sequences B, and tokens of each S, padding among them.
        real: `[B, S, 1]`, 1 for a token and 0 for padding. tokens: `[B, 1, 1]`, how many of a sequence are tokens.
    """

    def __init__(self, item: SkipExperts, program: Program, like: fx.Node) -> None:
        found = [i for i in program.inputs if i.name == IDS] + [
            i for i in program.inputs if all(isinstance(d, str) for d in i.shape[:2]) and len(i.shape) > 1
        ]
        if not found:
            fix = "it is for inputs [batch, sequence, …] with both dynamic"
            raise MoecError("M203", "no input tells which tokens belong to one sequence", str(item), fix)
        places = {str(n.target): n for n in program.graph.nodes if n.op == "placeholder"}
        source, mask = places[found[0].identifier], places.get(MASK)
        first = next(n for n in program.graph.nodes if n.op == "call_function")
        call = partial(call_like, program, like, item.name)
        with program.graph.inserting_before(first):
            self.sizes = [call(aten.sym_size.int, source, i) for i in range(2)]
            if mask is None:
                options = {"dtype": torch.float32, "device": value_of(like).device}
                self.real = call(aten.ones.default, [*self.sizes, 1], **options)
            else:
                new = call(
                    aten.slice.Tensor, mask, 1, call(operator.neg, self.sizes[1])
                )  # a decoder's mask has the cache before it
                self.real = call(aten.unsqueeze.default, call(aten.to.dtype, new, torch.float32), -1)
            self.tokens = call(aten.sum.dim_IntList, self.real, [1], True)

    def check(self, node: fx.Node) -> None:
        """Raise M203 unless a block's rows are all tokens of all sequences."""
        shape = value_of(MoeCall(node).ids).shape[:-1]
        wanted = [value_of(n) for n in self.sizes]
        if _product(shape) != _product(wanted):
            what = f"its rows {list(map(str, shape))} are not the tokens {list(map(str, wanted))} of all sequences"
            raise MoecError("M203", what, module_path(node) or node.name, "leave skip-experts out for this model")


def _product(sizes: Any) -> Any:
    """The product of sizes as an expression: comparing symbolic sizes themselves would add guards to the capture's."""
    import sympy

    return sympy.expand(sympy.Mul(*(s.node.expr if isinstance(s, torch.SymInt) else s for s in sizes)))
