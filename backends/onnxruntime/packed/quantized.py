"""Weights that stay packed: what reads a `moec::Dequantize` node becomes the kernel that reads its bytes.

A linear layer is a `MatMulNBits`, an embedding a `GatherBlockQuantized`; both compute in the activations' dtype from
exactly the numbers that `moec::dequantize` defines. Any other reader gets the formula itself in standard operators.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from moec.backends.onnx.emit import DOMAIN, MICROSOFT, Emitter
from moec.backends.onnx.floats import refuse_floats
from moec.backends.onnx.packed import packed_zeros, read_quantized
from moec.backends.onnx.tensors import add_initializer
from moec.backends.onnxruntime.packed.unpacking import emit_formula, emit_numbers
from moec.program.dialect_call import DEQUANTIZE, DequantizeCall
from moec.program.moe_call import EXPERTS, MOE
from moec.program.program import Program
from moec.targets.backend import Refusal
from moec.weights.lazy import rowwise
from moec.weights.weight import PackedWeight

BITS = (2, 4, 8)
BLOCKS = (16, 32, 64, 128, 256)  # elements with one scale: what the runtime's kernels are made for
READERS = (
    torch.ops.aten.linear.default,
    torch.ops.aten.embedding.default,
    EXPERTS,
    MOE,
)
KERNEL_DTYPES = (torch.float32, torch.float16)


def why_not_packed(weight: PackedWeight) -> str:
    """Why the runtime's kernels cannot read a packed weight, in a few words; empty when they can."""
    if weight.group not in BLOCKS:
        return f"no kernel reads blocks of {weight.group}, only of {', '.join(map(str, BLOCKS))}"
    return "" if weight.dtype in KERNEL_DTYPES else f"no kernel scales in {str(weight.dtype)[6:]}"


def unreadable(program: Program) -> list[Refusal]:
    """The quantized matrices, embeddings and experts of a program whose grid no kernel reads."""
    found = refuse_floats(
        program, "onnxruntime", f"format=int, bits={'|'.join(map(str, BITS))}, group={'|'.join(map(str, BLOCKS))}"
    )
    for node in program.nodes(DEQUANTIZE):
        call = DequantizeCall(node)
        packed, scale, zero = (program.weight_of(a) for a in (call.packed, call.scale, call.zero))
        if packed is None or scale is None or not any(user.target in READERS for user in node.users):
            continue
        reason = why_not_packed(PackedWeight(packed, scale, zero, call.bits))
        if reason:
            fix = f"quantize to bits={'|'.join(map(str, BITS))}, group={'|'.join(map(str, BLOCKS))}"
            found.append(Refusal(f"onnxruntime cannot read this quantized weight: {reason}", str(call.packed), fix))
    return found


def kernel_inputs(graph: ir.Graph, weight: PackedWeight, name: str) -> list[ir.Value]:
    """A weight `[out, in]` as the initializers that `MatMulNBits` reads: `[out, blocks, bytes]`, scales, and zero
    points if it has any."""
    cut = rowwise("blocks", lambda t: t.reshape(len(t), weight.scale.shape[1], -1), weight.packed)
    zeros = (
        [] if weight.zero is None else [add_initializer(graph, packed_zeros(weight.zero, weight.bits), f"{name}.zeros")]
    )
    return [
        add_initializer(graph, cut, f"{name}.blocks"),
        add_initializer(graph, weight.scale, f"{name}.scales"),
        *zeros,
    ]


def emit_product(emit: Emitter, x: ir.Value, weight: PackedWeight, inputs: list[ir.Value]) -> ir.Value:
    """`x [..., in]` times the transpose of a weight `[out, in]`, given as its `kernel_inputs`."""
    rule = {
        "K": weight.shape[1],
        "N": weight.shape[0],
        "bits": weight.bits,
        "block_size": weight.group,
        "accuracy_level": 0,
    }
    return emit("MatMulNBits", x, *inputs, domain=MICROSOFT, **rule)


def lower_quantized(model: ir.Model) -> list[dict[str, Any]]:
    """Replace every `moec::Dequantize` node of the main graph and what reads it, in place; weights stay lazy.

    Returns:
        One record a reader: `node`, `op`, `weight`, `bits`, `block` and `bytes` (packed weight, scales and zero points
            together).
    """
    facts = []
    for node in [n for n in model.graph if n.domain == DOMAIN and n.op_type == "Dequantize"]:
        facts += _lower_node(model.graph, node)
        inputs = [v for v in node.inputs if v is not None]
        if node.graph is not None:
            model.graph.remove(node, safe=True)
        for value in inputs:
            if value.is_initializer() and not value.uses() and not value.is_graph_output():
                model.graph.initializers.pop(str(value.name), None)
    if facts:
        model.opset_imports[MICROSOFT] = 1
    return facts


def set_accuracy(model: ir.Model, level: int) -> None:
    """Let every kernel with packed weights round activations to 8 bits (level 4) or not at all (0)."""
    for node in model.graph.all_nodes():
        if node.op_type in ("MatMulNBits", "QMoE") and node.domain == MICROSOFT:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)


# ---------------------------------------------------------------------- readers
def _lower_node(graph: ir.Graph, node: ir.Node) -> list[dict[str, Any]]:
    weight, output = read_quantized(node), node.outputs[0]
    source = node.inputs[0]
    name = str(source.name if source is not None else node.name).removesuffix("packed").rstrip("._")
    found: list[tuple[str, str]] = []
    if weight is not None and len(weight.shape) == 2 and not why_not_packed(weight):
        products, gathers = _products(output), _gathers(output)
        inputs = kernel_inputs(graph, weight, name) if products or gathers else []
        found += [(str(n.name), "MatMulNBits") for n in products] + [
            (str(n.name), "GatherBlockQuantized") for n in gathers
        ]
        for product in products:
            _replace_product(Emitter(graph, product), weight, inputs)
        for gather in gathers:
            _replace_gather(Emitter(graph, gather), weight, inputs)
    _drop_transposes(graph, output)
    if output.uses() or output.is_graph_output():
        found += [(str(n.name), "computed from the packed weight") for n, _ in output.uses()]
        _compute(Emitter(graph, node), node)
    said = {} if weight is None else {"bits": weight.bits, "block": weight.group, "bytes": weight.size_bytes}
    return [{"node": reader, "op": op, "weight": name, **said} for reader, op in found]


def _products(weight: ir.Value) -> list[ir.Node]:
    """`MatMul(x, Transpose(weight))` and `Gemm(x, weight, bias?, transB=1)`, as torch.onnx writes linear layers."""
    turned = [
        n.outputs[0]
        for n, i in weight.uses()
        if i == 0 and n.op_type == "Transpose" and list(n.attributes.get_ints("perm", [1, 0])) == [1, 0]
    ]
    found = [
        n for value in turned for n, i in value.uses() if i == 1 and n.op_type == "MatMul" and _rank(n.inputs[0]) != 1
    ]
    return found + [n for n, i in weight.uses() if i == 1 and n.op_type == "Gemm" and _is_linear(n)]


def _is_linear(gemm: ir.Node) -> bool:
    at = gemm.attributes
    return (
        at.get_int("transB", 0) == 1
        and at.get_int("transA", 0) == 0
        and at.get_float("alpha", 1.0) == 1.0 == at.get_float("beta", 1.0)
    )


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _gathers(weight: ir.Value) -> list[ir.Node]:
    """`Gather(weight, ids)`, as torch.onnx writes embeddings."""
    return [n for n, i in weight.uses() if i == 0 and n.op_type == "Gather" and n.attributes.get_int("axis", 0) == 0]


def _replace_product(emit: Emitter, weight: PackedWeight, inputs: list[ir.Value]) -> None:
    x, bias = emit.node.inputs[0], (*emit.node.inputs, None)[2]
    assert x is not None
    y = emit_product(emit, x, weight, inputs)
    emit.replace(y if bias is None else emit("Add", y, bias))


def _replace_gather(emit: Emitter, weight: PackedWeight, inputs: list[ir.Value]) -> None:
    """The bytes are those of the product, so a head tied to its embedding is stored once; the runtime folds the reshape
    when it loads."""
    table = emit("Reshape", inputs[0], emit.constant([weight.shape[0], -1]))
    rule = {"gather_axis": 0, "quantize_axis": 1, "bits": weight.bits, "block_size": weight.group}
    emit.replace(emit("GatherBlockQuantized", table, emit.node.inputs[1], *inputs[1:], domain=MICROSOFT, **rule))


def _drop_transposes(graph: ir.Graph, weight: ir.Value) -> None:
    for reader in [
        n
        for n, _ in weight.uses()
        if n.op_type == "Transpose" and not n.outputs[0].uses() and not n.outputs[0].is_graph_output()
    ]:
        graph.remove(reader, safe=True)


def _compute(emit: Emitter, node: ir.Node) -> None:
    packed, scale, zero = (*node.inputs, None)[:3]
    assert packed is not None and packed.shape is not None and scale is not None and scale.shape is not None
    bits, groups = node.attributes.get_int("bits"), [int(d) for d in scale.shape if isinstance(d, int)]
    depth = int(packed.shape[-1]) * 8 // bits  # type: ignore[arg-type]
    numbers = emit_numbers(emit, packed, bits, [*groups, depth // groups[-1]])
    emit.replace(emit_formula(emit, numbers, scale, zero, bits, [*groups[:-1], depth]))
