"""What a graph proves about routing weights and ids, by how they are computed: never negative; no expert twice for a
token."""

from __future__ import annotations

import onnx_ir as ir

ALWAYS = {"Softmax", "Sigmoid", "Exp", "Relu", "Abs", "Sqrt", "Softplus"}
# first input's signs survive
MOVES = {
    "Identity",
    "Cast",
    "CastLike",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Expand",
    "Gather",
    "GatherElements",
    "GatherND",
    "Slice",
    "Split",
    "TopK",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceMean",
    "Reciprocal",
}
COMBINES = {"Add", "Mul", "Div", "Max", "Min", "Concat", "Sum", "Where", "Pow"}
SMALL = 4096  # elements of a constant that is worth reading


def nonnegative(value: ir.Value | None, depth: int = 64) -> bool:
    """Whether no element can be negative, whatever the graph's inputs. False also means "not proven"."""
    if value is None or depth == 0:
        return False
    if value.const_value is not None:
        return value.const_value.size <= SMALL and bool((value.const_value.numpy() >= 0).all())
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type in ALWAYS:
        return True
    if node.op_type == "Constant":
        constant = ir.convenience.get_const_tensor(value)
        return constant is not None and bool((constant.numpy() >= 0).all())
    if node.op_type in MOVES:
        return nonnegative(node.inputs[0], depth - 1)
    if node.op_type == "Clip":
        _, lowest, highest, *_ = [*node.inputs, None, None]
        return (nonnegative(lowest, depth - 1) or nonnegative(node.inputs[0], depth - 1)) and (
            highest is None or nonnegative(highest, depth - 1)
        )
    parts = node.inputs[1:] if node.op_type == "Where" else node.inputs
    return node.op_type in COMBINES and all(nonnegative(v, depth - 1) for v in parts)


def masked(weights: ir.Value | None) -> bool:
    """Whether some weights are set to zero on their way, so that it is worth the while to leave out what they belong
    to."""
    while weights is not None and (node := weights.producer()) is not None and node.domain == "":
        if node.op_type == "Where":
            return any(_is_zero(v) for v in node.inputs[1:])
        if node.op_type not in ("Identity", "Cast", "Reshape", "Mul"):
            return False
        weights = node.inputs[0]
    return False


def _is_zero(value: ir.Value | None) -> bool:
    while (
        value is not None
        and (node := value.producer()) is not None
        and node.op_type in ("Cast", "CastLike", "Identity")
    ):
        value = node.inputs[0]
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    return constant is not None and constant.size <= SMALL and not constant.numpy().any()


def distinct(ids: ir.Value | None, top_k: int) -> bool:
    """Whether a row of `ids` never names an expert twice: its K columns are the indices of one `TopK`."""
    while ids is not None and (node := ids.producer()) is not None:
        if node.op_type == "TopK":
            axis = node.attributes.get_int("axis", -1)
            return ids is node.outputs[1] and (axis == -1 or (ids.shape is not None and axis == len(ids.shape) - 1))
        same_width = ids.shape is not None and len(ids.shape) > 0 and ids.shape[-1] == top_k
        if node.op_type not in ("Identity", "Cast") and not (
            node.op_type == "Reshape" and same_width and _width(node.inputs[0]) == top_k
        ):
            return False
        ids = node.inputs[0]
    return False


def _width(value: ir.Value | None) -> int | None:
    last = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None
