"""Packed weights as plain ones: `(q - zero) * scale` in standard operators, which the runtime folds once, when it loads
an engine.

The file stays small; memory and speed are those of a plain weight. This is what weights get that no kernel reads, and
on the CPU those of 2 and 8 bits whose activations must not be rounded: there `MatMulNBits` unpacks the whole matrix in
every call (measured for 1024 x 2048, one token, two cores: 1.5 to 2.5 ms, against 0.06 for the plain product and 0.07
for 4 bits, which have an exact kernel).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.emit import DOMAIN, MICROSOFT, Emitter, take_place

EXACT_BITS = 4  # the one width with an exact product on the CPU that reads packed bytes
UNPACKED = "MatMul, unpacked when loaded"
Emit: TypeAlias = "Emitter | _Body"


def emit_formula(
    emit: Emit, numbers: ir.Value, scale: ir.Value, zeros: ir.Value | None, bits: int, shape: list[int]
) -> ir.Value:
    """The weight of unsigned `numbers [..., groups, block]`, `scale [..., groups]` and zero points like it (None: the
    middle), in `shape`."""
    last = emit.constant([-1])
    zeros = emit.constant(2 ** (bits - 1)) if zeros is None else emit("Unsqueeze", zeros, last)
    steps = emit("Sub", emit("CastLike", numbers, scale), emit("CastLike", zeros, scale))
    return emit("Reshape", emit("Mul", steps, emit("Unsqueeze", scale, last)), emit.constant(shape))


def emit_numbers(emit: Emit, packed: ir.Value, bits: int, shape: list[int]) -> ir.Value:
    """The unsigned numbers of bytes, lowest bits first, in `shape`."""
    if bits < 8:
        mask, places = emit.constant(2**bits - 1, np.uint8), [emit.constant(at, np.uint8) for at in range(0, 8, bits)]
        parts = [emit("BitwiseAnd", emit("BitShift", packed, place, direction="RIGHT"), mask) for place in places]
        packed = emit("Concat", *(emit("Unsqueeze", p, emit.constant([-1])) for p in parts), axis=-1)
    return emit("Reshape", packed, emit.constant(shape))


def unpack_products(model: ir.Model) -> int:
    """Replace every `MatMulNBits` of other than 4 bits by a plain product, in place, branches too; returns how many.

    How a matrix is unpacked is written once for each kind, in a function of the model that the runtime inlines when it
    loads it.
    """
    found = [
        n for n in model.graph.all_nodes() if n.op_type == "MatMulNBits" and n.attributes.get_int("bits") != EXACT_BITS
    ]
    done: dict[ir.Value, ir.Value] = {}
    for node in found:
        codes = node.inputs[1]
        assert codes is not None and node.graph is not None
        if codes not in done:
            done[codes] = _matrix(model, node, node if node.graph is model.graph else model.graph[0])
        # not MatMul of a transposed one: while folding, the runtime holds every step of the way
        product = ir.node("FusedMatMul", [node.inputs[0], done[codes]], {"transB": 1}, domain=MICROSOFT, name=node.name)
        node.graph.insert_before(node, product)
        take_place(product.outputs[0], node.outputs[0])
        node.graph.remove(node, safe=True)
    return len(found)


def unpacked(facts: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Facts about packed weights after `unpack_products`."""
    return [
        {**f, key: UNPACKED} if f.get(key) == "MatMulNBits" and str(f["bits"]) != str(EXACT_BITS) else f for f in facts
    ]


# ---------------------------------------------------------------------- the functions of a model
def _matrix(model: ir.Model, product: ir.Node, place: ir.Node) -> ir.Value:
    """A product's matrix `[out, in]`, made in front of a node of the main graph, where branches see it too."""
    parts = [v for v in product.inputs[1:4] if v is not None]
    bits, zero_points = product.attributes.get_int("bits"), len(parts) > 2
    name = f"Unpack{bits}{'WithZeros' if zero_points else ''}"
    if (DOMAIN, name, "") not in model.functions:
        function = _function(name, bits, zero_points, model.opset_imports[""])
        model.functions[function.identifier()], model.opset_imports[DOMAIN] = function, 1
    call = ir.node(name, parts, domain=DOMAIN, name=f"{parts[0].name}/unpacked")
    call.outputs[0].name = call.name
    model.graph.insert_before(place, call)
    return call.outputs[0]


def _function(name: str, bits: int, zero_points: bool, opset: int) -> ir.Function:
    """`(blocks [out, groups, bytes], scales [out, groups], zeros [out, bytes]?) -> [out, in]` for any sizes and dtype
    of the scales."""
    blocks, scale, zero = inputs = [ir.Value(name=name) for name in ("blocks", "scales", "zeros")]
    emit, zeros = _Body(opset), None
    if zero_points:  # the last byte of a row may hold more than there are groups
        groups = emit("Shape", scale, start=1, end=2)
        zeros = emit("Slice", emit_numbers(emit, zero, bits, [0, -1]), emit.constant([0]), groups, emit.constant([1]))
    matrix = emit_formula(emit, emit_numbers(emit, blocks, bits, [0, 0, -1]), scale, zeros, bits, [0, -1])
    emit.graph.inputs.extend(inputs if zero_points else inputs[:2])
    emit.graph.outputs.append(matrix)
    return ir.Function(DOMAIN, name, graph=emit.graph, attributes=())


class _Body:
    """Emits the nodes of a function; its constants are nodes too, as functions have no initializers."""

    def __init__(self, opset: int) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": opset})

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes)
        node.outputs[0].name = f"{op}_{len(self.graph)}"
        self.graph.append(node)
        return node.outputs[0]

    def constant(self, value: int | Sequence[int], dtype: Any = np.int64) -> ir.Value:
        return self("Constant", value=ir.tensor(np.asarray(value, dtype)))
