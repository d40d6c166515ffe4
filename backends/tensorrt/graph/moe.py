"""From opaque `moec::Experts` nodes to standard operators, in the form that the policy chose, and the facts about
them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import onnx_ir as ir

from moec.backends.onnx.emit import DOMAIN, Emitter
from moec.backends.onnx.floats import SmallFloats
from moec.backends.onnx.moe_node import MoeNode, read
from moec.backends.onnx.packed import remove_unread
from moec.backends.onnx.routing_proofs import distinct
from moec.backends.tensorrt.graph.expert_layer import FLOAT, ExpertLayer
from moec.backends.tensorrt.graph.pieces import mixed
from moec.backends.tensorrt.plugins.chain import ChainSizes
from moec.backends.tensorrt.policy import BuildPlan, FormChoice, Shape, choose
from moec.errors import MoecError
from moec.targets.backend import Refusal
from moec.weights.weight import PackedWeight


def lower_experts(model: ir.Model, plan: BuildPlan) -> list[dict[str, Any]]:
    """Replace every `moec::Experts` node of the main graph, in place; weights stay lazy.

    Returns:
        One record a node: `node`, `op`, `formulation` (the lowering), `form`, `why`, `memory_bytes`, for packed weights
            `kind`, `bits`,
        `block`, `bytes` and `unfolded`, and for a native block `native`, for one with kernels `kernels`: the tensors
            between which these
        belong, and their sizes.

    Raises:
        MoecError: M208 when the policy refuses a block.
    """
    nodes = [node for node in model.graph if node.domain == DOMAIN and node.op_type == "Experts"]
    return [_lower_node(model.graph, node, plan) for node in nodes]


def shape_of(block: MoeNode) -> Shape:
    """What the policy wants to know of a block."""
    packed = [w for w in (block.w_in, block.w_out) if isinstance(w, PackedWeight)]
    biases = {(False, False): "", (True, True): "all"}.get((block.b_in is not None, block.b_out is not None), "some")
    return Shape(
        block.experts,
        block.top_k,
        block.hidden,
        block.w_out.shape[2],
        block.activation,
        block.score_before,
        block.w_in.dtype.itemsize,
        min((w.bits for w in packed), default=0),
        biases,
        any(isinstance(w, SmallFloats) for w in packed),
    )


def _lower_node(graph: ir.Graph, node: ir.Node, plan: BuildPlan) -> dict[str, Any]:
    block, emit, inputs = read(node), Emitter(graph, node), list(node.inputs)
    choice = choose(shape_of(block), plan, emit.name)
    if isinstance(choice, Refusal):
        raise MoecError("M208", choice.reason, choice.where, choice.fix)
    if choice.lowering == "kernels" and block.score_before and not distinct(block.ids, block.top_k):
        choice = replace(choice, form="gathered")  # the other would be wrong, and nothing but the proof runs it
    name = str(node.outputs[0].name)
    layer = ExpertLayer.of(emit, block, distinct(block.ids, block.top_k), whole=choice.lowering == "kernels")
    y = mixed(layer, choice, plan.tokens)
    emit.replace(emit("Reshape", emit.cast(y, FLOAT, block.dtype), emit("Shape", block.x)))
    remove_unread(graph, inputs)
    return {
        "node": emit.name,
        "op": node.op_type,
        **choice.facts(),
        **_packed_facts(layer, choice),
        **_other_facts(layer, choice, name, plan),
    }


GATHERED = "it is unpacked as a whole before experts are gathered from it"


def _packed_facts(layer: ExpertLayer, choice: FormChoice) -> dict[str, Any]:
    packed = [w for w in (layer.block.w_in, layer.block.w_out) if isinstance(w, PackedWeight)]
    if not packed:
        return {}
    kinds, widths, sizes = (
        ", ".join(dict.fromkeys(str(getattr(w, name)) for w in packed)) for name in ("kind", "bits", "group")
    )
    why = GATHERED if choice.form == "gathered" else "; ".join(dict.fromkeys(filter(None, layer.unfolded)))
    return {"kind": kinds, "bits": widths, "block": sizes, "bytes": sum(w.size_bytes for w in packed), "unfolded": why}


def _other_facts(layer: ExpertLayer, choice: FormChoice, y: str, plan: BuildPlan) -> dict[str, Any]:
    """What takes the place of the standard operators in the network: between which tensors, by name, and of which
    sizes; packed weights lazy."""
    block = layer.block
    if choice.lowering not in ("native", "kernels"):
        return {}
    assert block.ids is not None and block.weights is not None
    ends = {
        "x": block.x.name,
        "ids": block.ids.name,
        "weights": block.weights.name,
        "y": y,
        "weights_of": dict(layer.initializers),
    }
    widths = {"top_k": block.top_k, "hidden": block.hidden}
    if choice.lowering == "native":
        return {"native": {**ends, **widths, "experts": block.experts, "inner": block.w_out.shape[2]}}
    sizes = asdict(_sizes(layer, choice, plan.tokens))
    return {"kernels": {**ends, **widths, "sizes": sizes, "packed": layer.packed, "sm": plan.architectures[0]}}


def _sizes(layer: ExpertLayer, choice: FormChoice, tokens: int) -> ChainSizes:
    block = layer.block
    grids = [(w.bits, w.group) if (w := layer.packed.get(role)) else () for role in ("w_in", "w_out")]
    biases = ["" if b is None else str(b.dtype).removeprefix("torch.") for b in (block.b_in, block.b_out)]
    return ChainSizes(
        block.experts,
        block.top_k,
        block.hidden,
        block.w_out.shape[2],
        tokens,
        str(block.w_in.dtype).removeprefix("torch."),
        block.activation,
        block.score_before,
        *biases,
        *grids,
        turned=choice.form == "dense" and "w_out" not in layer.packed,
    )
