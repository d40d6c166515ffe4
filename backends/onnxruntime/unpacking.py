"""Packed weights as plain ones: `(q - zero) * scale` in standard operators, which the runtime folds once, when it loads an engine.

The file stays small; memory and speed are those of a plain weight. This is what weights get that no kernel reads, and on the CPU those of 2
and 8 bits whose activations must not be rounded: there `MatMulNBits` unpacks the whole matrix in every call (measured for 1024 x 2048, one
token, two cores: 1.5 to 2.5 ms, against 0.06 for the plain product and 0.07 for 4 bits, which have an exact kernel).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.emit import Emitter, take_place

EXACT_BITS = 4  # the one width with an exact product on the CPU that reads packed bytes
UNPACKED = "MatMul, unpacked when loaded"


def emit_formula(emit: Emitter, numbers: ir.Value, scale: ir.Value, zeros: ir.Value, shape: list[int]) -> ir.Value:
    """The weight of unsigned `numbers [..., groups, block]`, `scale [..., groups]` and zero points like it (or one for all), in `shape`."""
    assert scale.dtype is not None
    last = emit.constant([-1])
    if zeros.shape is None or len(zeros.shape):
        zeros = emit("Unsqueeze", emit("Cast", zeros, to=int(scale.dtype)), last)
    product = emit("Mul", emit("Sub", emit("Cast", numbers, to=int(scale.dtype)), zeros), emit("Unsqueeze", scale, last))
    return emit("Reshape", product, emit.constant(shape))


def emit_numbers(emit: Emitter, packed: ir.Value, bits: int, shape: list[int]) -> ir.Value:
    """The unsigned numbers of bytes, lowest bits first, in `shape`."""
    if bits < 8:
        mask, places = emit.constant(2**bits - 1, np.uint8), [emit.constant(at, np.uint8) for at in range(0, 8, bits)]
        parts = [emit("BitwiseAnd", emit("BitShift", packed, place, direction="RIGHT"), mask) for place in places]
        packed = emit("Concat", *(emit("Unsqueeze", p, emit.constant([-1])) for p in parts), axis=-1)
    return emit("Reshape", packed, emit.constant(shape))


def unpack_products(model: ir.Model) -> int:
    """Replace every `MatMulNBits` of other than 4 bits by a plain product, in place, branches too; returns how many."""
    found = [n for n in model.graph.all_nodes() if n.op_type == "MatMulNBits" and n.attributes.get_int("bits") != EXACT_BITS]
    done: dict[ir.Value, ir.Value] = {}
    for node in found:
        held = node.inputs[1]
        assert held is not None and node.graph is not None
        if held not in done:
            done[held] = _matrix(model.graph, node)
        product = ir.node("MatMul", [node.inputs[0], done[held]], name=node.name)
        node.graph.insert_before(node, product)
        take_place(product.outputs[0], node.outputs[0])
        node.graph.remove(node, safe=True)
    return len(found)


def told(facts: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Facts about packed weights after `unpack_products`."""
    return [{**f, key: UNPACKED} if f.get(key) == "MatMulNBits" and str(f["bits"]) != str(EXACT_BITS) else f for f in facts]


def _matrix(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """A product's matrix `[in, out]`, made in front of everything else, where branches see it too."""
    packed, scale, zero = (*node.inputs, None)[1:4]
    assert packed is not None and scale is not None and scale.dtype is not None and packed.name is not None
    depth, rows, bits, block = (node.attributes.get_int(name) for name in ("K", "N", "bits", "block_size"))
    groups = depth // block
    emit = Emitter(graph, graph[0])
    emit.name = packed.name
    numbers = emit_numbers(emit, packed, bits, [rows, groups, block])
    if zero is None:
        zeros = emit.number(2.0 ** (bits - 1), scale.dtype)
    else:
        zeros = emit_numbers(emit, zero, bits, [rows, -1])
        zeros = emit("Slice", zeros, emit.constant([0]), emit.constant([groups]), emit.constant([1]))
        zeros.shape = ir.Shape([rows, groups])
    return emit("Transpose", emit_formula(emit, numbers, scale, zeros, [rows, depth]), perm=[1, 0])
