"""The experts as plain matrix products, each over exactly the rows that chose it.

Rows are sorted by expert once and cut by `Split`; every expert is a chain of ordinary `Gemm`s whose weights the runtime
packs at load; the outputs are joined, put back in the tokens' order and mixed by one batched product `weights [T,1,K] x
outputs [T,K,H]`. An expert that no token chose gets zero rows and returns at once. Where weights have been set to zero
on their way, what they belong to is no row of any expert.

More than `FLAT` experts go into branches, each behind an `If` that asks whether any of them was chosen: the runtime's
memory planner takes time with the square of a graph's nodes (512 experts in one graph: 20 s), and with few tokens whole
branches are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.moe_node import MoeNode
from moec.backends.onnxruntime.experts.activation import emit_gated, emit_plain
from moec.backends.onnxruntime.packed.quantized import emit_product, kernel_inputs
from moec.weights.lazy import Weight, rows, select
from moec.weights.weight import PackedWeight

FLAT = 16  # experts that stand in the main graph at most
# experts in one branch at most: entering a branch takes as long as passing some 16 experts that nobody chose, if each
# is two nodes
BRANCH = {True: 64, False: 16}  # joined, apart


@dataclass(frozen=True)
class _Plan:
    """How a block is cut.

    Attributes:
        x: rows `[T, H]`. flat: the expert of each routed row `[N]`.
        joined: one activation for all experts of a branch, else one for each.
        gathers: each expert gathers its own rows of x, else pieces are cut from rows that were gathered and scaled
            before.
        groups, size: branches (0: none, all experts in the main graph), and experts in each; the last may have fewer.
    """

    block: MoeNode
    x: ir.Value
    flat: ir.Value
    joined: bool
    gathers: bool
    groups: int
    size: int


def emit_grouped(
    emit: Emitter, block: MoeNode, ids: ir.Value, weights: ir.Value, weights_dtype: ir.DataType, joined: bool = True
) -> ir.Value:
    """Emit the experts for `ids` and `weights` `[..., K]`. Any number of tokens, also none.

    Args:
        joined: apply the activation once to the rows of all experts of a branch (fewest nodes: for few tokens) instead
            of to each expert's own (nothing is copied and data stays in the cache: for many).

    Returns:
        `[..., H]` in the block's dtype.
    """
    groups, left_out = branches(block.experts, joined), block.leaves_out(weights)
    x = emit("Reshape", block.x, emit.constant([-1, block.hidden]))
    weights, flat = emit.cast(weights, weights_dtype, block.wide), emit("Reshape", ids, emit.constant([-1]))
    if left_out:  # to an expert that there is not
        nothing = emit("Equal", emit("Reshape", weights, emit.constant([-1])), emit.number(0.0, block.wide))
        flat = emit("Where", nothing, emit.constant(-1), flat)
    flat.shape, flat.type = _routed(block), ir.TensorType(ids.dtype or ir.DataType.INT64)
    plan = _Plan(
        block, x, flat, joined, not joined and not block.score_before, groups, -(-block.experts // max(groups, 1))
    )
    order, counts = _sort(emit, plan, flat)
    outputs = _run(emit, plan, _source(emit, plan, order, weights), counts)
    if left_out:
        outputs = emit(
            "Concat", outputs, emit("Expand", emit.number(0.0, block.dtype), emit.constant([1, block.hidden])), axis=0
        )
    outputs = emit.cast(emit("Gather", outputs, _inverse(emit, flat, order, left_out)), block.dtype, block.wide)
    mixed = emit.cast(_mix(emit, block, outputs, weights), block.wide, block.dtype)
    return emit("Reshape", mixed, emit("Shape", block.x), allowzero=1)


def _routed(block: MoeNode) -> ir.Shape:
    """The shape `[N]` of the routed rows, by a name that layers with as many tokens share; they then share what follows
    from N alone."""
    sizes = None if block.x.shape is None else [str(d) for d in block.x.shape[:-1]]
    return ir.Shape([None if sizes is None or "None" in sizes else "*".join([*sizes, str(block.top_k)])])


def branches(experts: int, joined: bool) -> int:
    """How many branches the experts go into; 0 when they stand in the main graph."""
    return 0 if experts <= FLAT else -(-experts // BRANCH[joined])


# ---------------------------------------------------------------------- rows to experts and back
def _sort(emit: Emitter, plan: _Plan, flat: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The routed rows' order by expert `[N]`, and how many each expert has `[experts]`, or each of each group `[groups,
    size]`."""
    chosen = emit(
        "Equal", flat, emit.constant(np.arange(max(plan.groups, 1) * plan.size).reshape(-1, 1))
    )  # [experts, N]
    counts = emit("ReduceSum", emit("Cast", chosen, to=int(ir.DataType.INT64)), emit.constant([1]), keepdims=0)
    order = emit("Gather", emit("NonZero", chosen), emit.constant(1), axis=0)
    return order, counts if plan.groups < 2 else emit("Reshape", counts, emit.constant([plan.groups, plan.size]))


def _source(emit: Emitter, plan: _Plan, order: ir.Value, weights: ir.Value) -> ir.Value:
    """What is cut into pieces: the sorted tokens `[N]` if experts gather, else their rows `[N, H]`."""
    block = plan.block
    tokens = order if block.top_k == 1 else emit("Div", order, emit.constant(block.top_k))
    if plan.gathers:
        return tokens
    picked = emit("Gather", plan.x, tokens)
    if not block.score_before:
        return picked
    factors = emit("Gather", emit("Reshape", weights, emit.constant([-1, 1])), order)
    return emit.cast(emit("Mul", emit.cast(picked, block.dtype, block.wide), factors), block.wide, block.dtype)


def _inverse(emit: Emitter, flat: ir.Value, order: ir.Value, left_out: bool) -> ir.Value:
    """Where each routed row went: the inverse permutation of `order`; the place behind the last for those that are left
    out."""
    count = emit("Squeeze", emit("Shape", order if left_out else flat))
    places = emit("Range", emit.constant(0), count, emit.constant(1))
    return emit(
        "ScatterElements", emit("Expand", count, emit("Shape", flat)) if left_out else order, order, places, axis=0
    )


def _mix(emit: Emitter, block: MoeNode, outputs: ir.Value, weights: ir.Value) -> ir.Value:
    """Sum each token's K outputs `[N, H]` by weight; returns `[T, H]`, or `[T, 1, H]`."""
    if block.top_k == 1:
        return outputs if block.score_before else emit("Mul", outputs, emit("Reshape", weights, emit.constant([-1, 1])))
    stacked = emit("Reshape", outputs, emit.constant([-1, block.top_k, block.hidden]))
    if block.score_before:
        return emit("ReduceSum", stacked, emit.constant([1]), keepdims=0)
    return emit("MatMul", emit("Reshape", weights, emit.constant([-1, 1, block.top_k])), stacked)


# ---------------------------------------------------------------------- experts
def _run(emit: Emitter, plan: _Plan, source: ir.Value, counts: ir.Value) -> ir.Value:
    """The outputs of all experts, sorted as the source is."""
    if plan.groups == 0:
        return _group(emit, plan, 0, source, counts)
    if plan.groups == 1:
        return _branch(emit, plan, 0, emit("Greater", emit("Size", plan.flat), emit.constant(0)), source, counts)
    totals = emit("ReduceSum", counts, emit.constant([1]), keepdims=0)
    hits = emit.several(
        plan.groups, "Split", emit("Greater", totals, emit.constant(0)), axis=0, num_outputs=plan.groups
    )
    pieces = emit.several(plan.groups, "Split", source, totals, axis=0)
    return emit("Concat", *(_branch(emit, plan, g, hits[g], pieces[g], counts) for g in range(plan.groups)), axis=0)


def _branch(emit: Emitter, plan: _Plan, g: int, hit: ir.Value, source: ir.Value, counts: ir.Value) -> ir.Value:
    then, otherwise = emit.branch("then"), emit.branch("else")
    some = _group(
        then, plan, g, source, counts if plan.groups == 1 else then("Gather", counts, then.constant(g), axis=0)
    )
    none = otherwise("Gather", plan.x, source) if plan.gathers else otherwise("Identity", source)  # zero rows
    return emit.choose(hit, (then, some), (otherwise, none))


def _group(emit: Emitter, plan: _Plan, g: int, source: ir.Value, counts: ir.Value) -> ir.Value:
    """The outputs of one group's experts; the places after the last expert of all have no rows."""
    experts = range(g * plan.size, min((g + 1) * plan.size, plan.block.experts))
    pieces = emit.several(plan.size, "Split", source, counts, axis=0)[: len(experts)]
    outputs = (
        _joined(emit, plan, experts, pieces, counts)
        if plan.joined
        else [_apart(emit, plan, e, p) for e, p in zip(experts, pieces, strict=True)]
    )
    return emit("Concat", *outputs, axis=0)


def _joined(
    emit: Emitter, plan: _Plan, experts: range, pieces: tuple[ir.Value, ...], counts: ir.Value
) -> list[ir.Value]:
    block, inner = plan.block, plan.block.w_out.shape[2]
    hidden = emit("Concat", *(_linear(emit, p, block, "in", e) for e, p in zip(experts, pieces, strict=True)), axis=0)
    if block.activation.gated:
        gate, up = emit.several(2, "Split", hidden, emit.constant([inner, inner]), axis=-1)
        active = emit_gated(emit, block.activation, gate, up, block.dtype)
    else:
        active = emit_plain(emit, block.activation, hidden, block.dtype)
    pieces = emit.several(plan.size, "Split", active, counts, axis=0)[: len(experts)]
    return [_linear(emit, p, block, "out", e) for e, p in zip(experts, pieces, strict=True)]


def _apart(emit: Emitter, plan: _Plan, e: int, piece: ir.Value) -> ir.Value:
    block, inner = plan.block, plan.block.w_out.shape[2]
    x = emit("Gather", plan.x, piece) if plan.gathers else piece
    if block.activation.gated:  # two products: cutting one product's columns in halves would copy them
        gate = _linear(emit, x, block, "gate", e, (0, inner))
        up = _linear(emit, x, block, "up", e, (inner, 2 * inner))
        active = emit_gated(emit, block.activation, gate, up, block.dtype)
    else:
        active = emit_plain(emit, block.activation, _linear(emit, x, block, "in", e), block.dtype)
    return _linear(emit, active, block, "out", e)


def _linear(
    emit: Emitter, x: ir.Value, block: MoeNode, role: str, e: int, part: tuple[int, int] | None = None
) -> ir.Value:
    """A product with one of expert e's matrices `[out, in]` and its bias, or with rows `part` of them."""
    weight, bias = block.matrix("w_out" if role == "out" else "w_in", e), block.b_out if role == "out" else block.b_in
    name, cut = f"{e}.{role}", partial(_cut, part)
    biases = [] if bias is None else [emit.weight(cut(select(bias, e)), f"{name}.bias")]
    if isinstance(weight, PackedWeight):
        own = weight.each(cut)
        y = emit_product(emit, x, own, kernel_inputs(emit.graph, own, f"{emit.name}.{name}"))
        return emit("Add", y, *biases) if biases else y
    return emit("Gemm", x, emit.weight(cut(weight), f"{name}.weight"), *biases, transB=1)


def _cut(part: tuple[int, int] | None, weight: Weight) -> Weight:
    return weight if part is None else rows(weight, *part)
