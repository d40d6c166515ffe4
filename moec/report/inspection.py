"""What a model holds, found without loading a weight: MoE blocks, dense FFNs, parameters, FLOPs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx

from moec.pipeline.passes import Context, Miss
from moec.pipeline.pipeline import Pipeline
from moec.program.moe_call import MATRICES, MoeCall, moe_nodes
from moec.program.program import Program
from moec.program.provenance import module_path
from moec.recognition.ffn import Ffn, find_ffns
from moec.recognition.hand_written import HandWritten, find_hand_written
from moec.recognition.linear import value_of
from moec.recognition.looked_up_experts import LookedUp, find_looked_up
from moec.report.size import held, idle
from moec.weights.lazy import Weight

_UNFUSED = "a mixture in plain operators: its experts are not fused, and run as they are written"
_LOOKED_UP = "experts of one neuron each, rows of tables that a token looks up: they run as they are written"


@dataclass(frozen=True)
class FeedForwardBlock:
    """One feed-forward block.

    Attributes:
        module: dotted name of the module that it came from.
        kind: `moe` (fused), `experts` (its router stays apart), `unfused` (experts in plain operators, which run as
            they are written), `look-ups` (experts that are rows of tables) or `ffn` (dense).
        experts, top_k: 1 for a dense FFN. top_k is 0 where the graph does not say it.
        hidden, intermediate: widths H and I; 0 where the graph does not say them.
        activation, routing: the rules, as their dataclasses' fields; each is empty where it was not recognised.
        parameters, active_parameters: of the block; active ones are those that one token uses.
    """

    module: str
    kind: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    activation: dict[str, Any]
    routing: dict[str, Any]
    parameters: int
    active_parameters: int


@dataclass(frozen=True)
class Inspection:
    """What a model holds.

    Attributes:
        source: how the model was named.
        inputs, outputs: signature, as text.
        blocks: its feed-forward blocks in graph order.
        parameters: all, shared ones once, floating buffers (rotary frequencies) among them.
        active_parameters: those that one token uses, the whole input embedding counted.
        active_without_embedding: the same without the input embedding, which a token only looks a row up in.
        flops_per_token: 2 × the active parameters of matrix products; attention's own products, which grow with the
            context, are not in it.
        size_bytes: of the weights as captured.
        misses: what looked like a block and was not taken for one, with the reason.
    """

    source: str
    inputs: list[str]
    outputs: list[str]
    blocks: list[FeedForwardBlock]
    parameters: int
    active_parameters: int
    active_without_embedding: int
    flops_per_token: int
    size_bytes: int
    misses: list[Miss]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def inspect_program(program: Program) -> Inspection:
    """Inspect a captured program; routers are recognised on a copy."""
    context = Context()
    found, _ = Pipeline.parse("find-moe, fuse-moe").all_optional().run(program, context)
    blocks = [_moe_block(found, node) for node in moe_nodes(found)]
    ffns, left = find_ffns(found)
    by_hand = find_hand_written(found)
    experts = {place.name for block in by_hand for places in block.experts for place in places}
    inside = [ffn for ffn in ffns if any(name.startswith(f"{ffn.path}.") for name in experts)]
    blocks += [_unfused_block(found, block, inside) for block in by_hand]
    tables = find_looked_up(found)
    blocks += [_looked_up_block(block) for block in tables]
    blocks += [_dense_block(ffn) for ffn in ffns if ffn not in inside]
    context.misses += [Miss("fuse-moe", block.module or "the model", _LOOKED_UP) for block in tables]
    context.misses += [Miss("fuse-moe", block.module or "the model", _UNFUSED) for block in by_hand]
    tensors, lookups = held(program), frozenset(program.nodes(torch.ops.aten.embedding.default))
    total = sum(tensor.count for tensor in tensors)
    active = total - sum(b.parameters - b.active_parameters for b in blocks)
    looked_up = sum(block.parameters for block in tables)  # experts, though each is a row of a table
    embedding = sum(t.count for t in tensors if t.readers and t.readers <= lookups) - looked_up
    idle_parameters = sum(b.parameters - b.active_parameters for b in blocks)
    multiplied = sum(t.count for t in tensors if len(t.shape) >= 2 and t.readers - lookups)
    flops = 2 * (multiplied + looked_up - idle_parameters)
    signature = [f"{i.name}: {str(i.dtype)[6:]}[{', '.join(map(str, i.shape))}]" for i in program.inputs]
    return Inspection(
        program.source,
        signature,
        list(program.outputs),
        blocks,
        total,
        active,
        active - embedding,
        flops,
        program.size_bytes,
        context.misses + [Miss("dense FFN", n.name, why) for n, why in left],
    )


def _count(weight: Weight | torch.Tensor) -> int:
    return math.prod(weight.shape)


def _moe_block(program: Program, node: fx.Node) -> FeedForwardBlock:
    call = MoeCall(node)
    w_in, w_out = value_of(call.w_in), value_of(call.w_out)  # they may be expressions of packed weights
    experts, _, hidden = w_in.shape
    routing, top_k = call.routing, call.experts_a_token
    each = _count(w_in) // experts + _count(w_out) // experts
    others = [a for name, a in call.tensors().items() if name not in MATRICES]
    extra = sum(_count(w) for a in others if (w := program.weight_of(a)) is not None)
    rule, parameters = asdict(call.activation), experts * each + extra
    return FeedForwardBlock(
        module_path(node),
        "moe" if call.fused else "experts",
        experts,
        top_k,
        hidden,
        w_out.shape[-1],
        rule,
        asdict(routing) if routing else {},
        parameters,
        parameters - idle(call),
    )


def _unfused_block(program: Program, block: HandWritten, ffns: list[Ffn]) -> FeedForwardBlock:
    names = {place.name for expert in block.experts for place in expert}
    biases = {f"{name.rpartition('.')[0]}.bias" for name in names} & set(program.weights)
    places = [place for expert in block.experts for place in expert]
    count = sum(math.prod(value_of(p.matrix.node).shape) // (len(p.matrix.parts) or 1) for p in places)
    count += sum(_count(program.weights[name]) for name in biases)
    like = next((ffn for ffn in ffns if any(name.startswith(f"{ffn.path}.") for name in names)), None)
    widths = (like.hidden, like.intermediate) if like else (0, 0)
    rule = asdict(like.activation) if like else {}
    experts, active = len(block.experts), count * (block.top_k or len(block.experts)) // len(block.experts)
    return FeedForwardBlock(block.module, "unfused", experts, block.top_k, *widths, rule, {}, count, active)


def _looked_up_block(block: LookedUp) -> FeedForwardBlock:
    sizes = block.parameters, block.active_parameters
    return FeedForwardBlock(block.module, "look-ups", block.experts, block.top_k, block.hidden, 1, {}, {}, *sizes)


def _dense_block(ffn: Ffn) -> FeedForwardBlock:
    count = sum(_count(w) for w in (ffn.w_in, ffn.w_out, ffn.b_in, ffn.b_out) if w is not None)
    return FeedForwardBlock(
        ffn.path, "ffn", 1, 1, ffn.hidden, ffn.intermediate, asdict(ffn.activation), {}, count, count
    )
