"""One opaque `moec::Experts` or `moec::Moe` node, read: its tensors in the graph, its lazy weights, its rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from moec.backends.onnx.floats import read_floats
from moec.backends.onnx.packed import joined, read_quantized, read_shares
from moec.backends.onnx.routing_proofs import masked
from moec.backends.onnx.tensors import DTYPES, weight_of
from moec.dialect import Activation, Routing
from moec.errors import MoecError
from moec.program.dialect_call import positional_names
from moec.program.moe_call import EXPERTS, MOE
from moec.weights.lazy import Weight, select
from moec.weights.weight import PackedWeight

# the tensors of each operator in order: those of the dialect's own
INPUTS = {"Experts": positional_names(EXPERTS), "Moe": positional_names(MOE)}


@dataclass(frozen=True)
class Part:
    """The experts of a block that have one width."""

    experts: tuple[int, ...]
    w_in: PackedWeight
    w_out: PackedWeight


@dataclass(frozen=True)
class MoeNode:
    """The experts of one layer, and how tokens reach them.

    Attributes:
        x: tokens `[..., H]`.
        ids, weights: `[..., K]` of a `moec::Experts` node, else None.
        router_weight, router_bias: `[E, H]`, `[E]` of a `moec::Moe` node, else None.
        w_in, w_out, b_in, b_out: as in `moec::experts`; the two matrices may be packed.
        activation: between the two products.
        routing: the rule of a `moec::Moe` node, else None.
        score_before: weights multiply the experts' input.
        top_k: experts a token, K.
        dtype: of x and of the experts' weights.
        parts: where experts have several widths, those of each; w_in and w_out then have all in the widest, which is
            the same numbers.
        selection_bias: `[E]` of a `moec::Moe` node, added to the scores for the choice only, else None.
    """

    x: ir.Value
    ids: ir.Value | None
    weights: ir.Value | None
    router_weight: ir.Value | None
    router_bias: ir.Value | None
    w_in: Weight | PackedWeight
    w_out: Weight | PackedWeight
    b_in: Weight | None
    b_out: Weight | None
    activation: Activation
    routing: Routing | None
    score_before: bool
    top_k: int
    dtype: ir.DataType
    parts: tuple[Part, ...] = ()
    selection_bias: ir.Value | None = None

    def matrix(self, role: str, e: int) -> Weight | PackedWeight:
        """Expert e's own `w_in` or `w_out`, in its own width."""
        holder, at = next(((p, p.experts.index(e)) for p in self.parts if e in p.experts), (self, e))
        stack: Weight | PackedWeight = getattr(holder, role)
        return stack.each(lambda t: select(t, at)) if isinstance(stack, PackedWeight) else select(stack, at)

    def leaves_out(self, weights: ir.Value) -> bool:
        """Whether what belongs to a weight of zero is not to be computed: where some were set to zero on their way, and
        an expert makes zero of what weighs nothing."""
        return masked(weights) and not (
            self.score_before and (self.b_in or self.b_out or self.activation.name == "sigmoid")
        )

    @property
    def experts(self) -> int:
        """E."""
        return self.w_in.shape[0]

    @property
    def hidden(self) -> int:
        """H."""
        return self.w_in.shape[2]

    @property
    def wide(self) -> ir.DataType:
        """The dtype in which weights multiply and outputs add up: float32, or float64 for a float64 block."""
        return ir.DataType.DOUBLE if self.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT


def read(node: ir.Node) -> MoeNode:
    """Read a node of domain `moec`. Raises M208 when the experts' weights are not initializers or K is not static."""
    at = dict(zip(INPUTS[node.op_type], node.inputs, strict=False))
    rule = {name: attribute.value for name, attribute in node.attributes.items()}
    for flag in ("gated", "clamp_after", "score_before", "closed_as_zero"):
        rule[flag] = bool(rule.get(flag, flag == "gated"))
    w_in, w_out = (_matrices(node, at.get(name)) for name in ("w_in", "w_out"))
    b_in, b_out = (_weight(node, at.get(name)) for name in ("b_in", "b_out"))
    assert at["x"] is not None
    if w_in is None or w_out is None:
        raise _refusal(node, "w_in and w_out must be there")
    routing = Routing.of(rule) if node.op_type == "Moe" else None
    return MoeNode(
        at["x"],
        at.get("ids"),
        at.get("weights"),
        at.get("router_weight"),
        at.get("router_bias"),
        w_in,
        w_out,
        b_in,
        b_out,
        Activation.of(rule),
        routing,
        rule["score_before"],
        routing.top_k if routing else _top_k(node),
        DTYPES[w_in.dtype],
        _parts(at),
        at.get("selection_bias"),
    )


def _matrices(node: ir.Node, value: ir.Value | None) -> Weight | PackedWeight | None:
    producer = value.producer() if value is not None else None
    shares = read_shares(producer)
    return joined(shares) if shares else read_quantized(producer) or read_floats(producer) or _weight(node, value)


def _parts(at: Mapping[str, ir.Value | None]) -> tuple[Part, ...]:
    """The widths of experts whose two matrices have the same."""
    first, second = (read_shares(v.producer() if v is not None else None) for v in (at.get("w_in"), at.get("w_out")))
    if not first or [s.experts for s in first] != [s.experts for s in second]:
        return ()
    same = all(
        (a.weight.bits, a.weight.group) == (b.weight.bits, b.weight.group) for a, b in zip(first, second, strict=True)
    )
    return tuple(Part(a.experts, a.weight, b.weight) for a, b in zip(first, second, strict=True)) if same else ()


def _weight(node: ir.Node, value: ir.Value | None) -> Weight | None:
    found = weight_of(value)
    if value is not None and found is None:
        raise _refusal(node, f"{value.name} is computed, not a weight")
    return found


def _top_k(node: ir.Node) -> int:
    for value in node.inputs[1:3]:
        if value is not None and value.shape is not None and isinstance(value.shape[-1], int):
            return value.shape[-1]
    raise _refusal(node, "the number of experts a token is not static")


def _refusal(node: ir.Node, what: str) -> MoecError:
    return MoecError(
        "M208",
        f"moec::{node.op_type} cannot be lowered: {what}",
        str(node.name),
        "report this with `moec compile --dump DIR`",
    )
