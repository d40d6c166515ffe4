"""Packed weights: a `moec::Dequantize` node read back as the lazy tensors that it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch.nn import functional as F

from moec.backends.onnx.emit import DOMAIN
from moec.backends.onnx.tensors import weight_of
from moec.dialect import pack
from moec.weights.lazy import Weight, concat, rowwise
from moec.weights.weight import PackedWeight
from moec.weights.widths import order_of, taken


@dataclass(frozen=True)
class Share:
    """The experts of a stack that have one width, and their matrices in that order."""

    experts: tuple[int, ...]
    weight: PackedWeight


def read_shares(node: ir.Node | None) -> tuple[Share, ...]:
    """What a node stands for if it is a stack of several widths, `Gather(Concat(Dequantize, …), order)`, else
    nothing."""
    joined = (
        node.inputs[0].producer()
        if node is not None and node.op_type == "Gather" and node.inputs[0] is not None
        else None
    )
    if (
        node is None
        or joined is None
        or joined.op_type != "Concat"
        or {n.attributes.get_int("axis", 0) for n in (node, joined)} != {0}
    ):
        return ()
    parts = [read_quantized(v.producer()) for v in joined.inputs if v is not None]
    order = _indices(node.inputs[1])
    if order is None or any(p is None for p in parts):
        return ()
    expert_at = {int(place): e for e, place in enumerate(order.load())}
    found, start = list[Share](), 0
    for part in parts:
        assert part is not None
        stop = start + part.shape[0]
        found.append(Share(tuple(expert_at[at] for at in range(start, stop)), part))
        start = stop
    return tuple(found)


def _indices(value: ir.Value | None) -> Weight | None:
    """Constant indices, which torch.onnx casts and reshapes to what they are already."""
    while (
        value is not None and (node := value.producer()) is not None and node.op_type in ("Cast", "Reshape", "Identity")
    ):
        value = node.inputs[0]
    return weight_of(value)


def widened(weight: PackedWeight, bits: int) -> PackedWeight:
    """The same numbers in wider codes."""
    if weight.bits == bits:
        return weight
    middle = 0 if weight.zero is not None else 2 ** (bits - 1) - 2 ** (weight.bits - 1)
    places = torch.arange(0, 8, weight.bits, dtype=torch.uint8)

    def wider(packed: torch.Tensor) -> torch.Tensor:
        codes = (packed.unsqueeze(-1) >> places.to(packed.device)) & (2**weight.bits - 1)
        return pack(codes.flatten(-2) + middle, bits)

    return PackedWeight(rowwise(f"widened[{bits}]", wider, weight.packed), weight.scale, weight.zero, bits)


def joined(shares: Sequence[Share]) -> PackedWeight:
    """All experts of a stack of several widths in the widest of them."""
    order = order_of([share.experts for share in shares])
    parts = [widened(share.weight, max(s.weight.bits for s in shares)) for share in shares]
    whole = [taken(concat(same, 0), order) for same in zip(*(p.parts() for p in parts), strict=True)]
    return PackedWeight(whole[0], whole[1], whole[2] if len(whole) > 2 else None, parts[0].bits)


def remove_unread(graph: ir.Graph, values: Iterable[ir.Value | None]) -> None:
    """Drop the nodes that computed values which nobody reads any more, and what only these read."""
    for value in values:
        node = value.producer() if value is not None else None
        if value is None or value.uses() or value.is_graph_output():
            continue
        if value.is_initializer():
            graph.initializers.pop(str(value.name), None)
        elif (
            node is not None and node.graph is graph and not any(v.uses() or v.is_graph_output() for v in node.outputs)
        ):
            inputs = list(node.inputs)
            graph.remove(node, safe=True)
            remove_unread(graph, inputs)


def read_quantized(node: ir.Node | None) -> PackedWeight | None:
    """What a node stands for if it is a `moec::Dequantize` of weights, else None."""
    if node is None or node.domain != DOMAIN or node.op_type != "Dequantize":
        return None
    packed, scale, zero = (weight_of(v) for v in (*node.inputs, None)[:3])
    return (
        None if packed is None or scale is None else PackedWeight(packed, scale, zero, node.attributes.get_int("bits"))
    )


def packed_zeros(zero: Weight, bits: int) -> Weight:
    """Zero points `[..., out, blocks]` packed along the blocks, as the kernels read them; the last byte of a row is
    filled up."""
    return rowwise(f"pack[{bits}]", lambda t: pack(F.pad(t, (0, -t.shape[-1] % (8 // bits))), bits), zero)
