"""A decoder's logits from a chosen token on: a text that is being written needs those of its last token alone.

All rows of a prompt are the widest thing that a model computes: 2,048 tokens of a vocabulary of 152 thousand are 622 MB
in half precision. So rows are cut before the product with the head. Which ones, says an initializer that is also an
input, which is ONNX's form of an input with a default: by default all, so that clients which know nothing of it find
the file as it was captured.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.tensors import add_initializer, is_constant
from moec.program.decoder_signature import LOGITS, is_past
from moec.weights.lazy import from_tensor

LOGITS_FROM = "logits_from"  # int64 [1]: the first token whose logits are computed; -1 for the last one alone
PRODUCTS = ("MatMul", "Gemm", "MatMulNBits")
ROW_BY_ROW = ("Cast", "Mul", "Div", "Add", "Sub", "Tanh")  # what may stand between the product and the logits
END = 2**63 - 1


def cut_logits(model: ir.Model) -> bool:
    """Let logits be computed from the row on that `LOGITS_FROM` says, in place. Returns whether the graph's end has a
    form in which rows can be cut; else nothing is changed."""
    graph = model.graph
    logits = next((v for v in graph.outputs if v.name == LOGITS), None)
    has_cache = any(is_past(str(v.name)) for v in graph.inputs)
    product = _product(logits) if logits is not None and has_cache else None
    rows = None if product is None else product.inputs[0]
    if product is None or rows is None or rows.shape is None or len(rows.shape) != 3:
        return False
    first = add_initializer(graph, from_tensor(torch.zeros(1, dtype=torch.int64), LOGITS_FROM), LOGITS_FROM)
    first.type, first.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    graph.inputs.append(first)
    emit = Emitter(graph, product)
    cut = emit("Slice", rows, first, emit.constant([END]), emit.constant([1]))
    cut.type, cut.shape = rows.type, ir.Shape([rows.shape[0], None, rows.shape[2]])
    product.replace_input_with(0, cut)
    return True


def _product(value: ir.Value) -> ir.Node | None:
    """The product with a weight that a value is, but for operations on single numbers which nobody else reads."""
    while (node := value.producer()) is not None:
        inner = [v for v in node.inputs if v is not None and not is_constant(v)]
        readers = len(list(value.uses())) + value.is_graph_output()
        if readers != 1 or len(inner) != 1:
            return None
        if node.op_type in PRODUCTS:
            return node if node.inputs[0] is inner[0] else None
        if node.op_type not in ROW_BY_ROW:
            return None
        value = inner[0]
    return None
