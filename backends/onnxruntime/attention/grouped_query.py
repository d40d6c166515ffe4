"""GroupQueryAttention: when it is right, and its inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.backends.onnx.attention import BY_HEAD, FLOAT, Attention, size_of
from moec.backends.onnx.emit import MICROSOFT, Emitter


def why_not_grouped(block: Attention, provider: str, compact: bool = False) -> str:
    """Why GroupQueryAttention would be wrong or is not there; empty when it is right. Beside a bias it takes no sinks;
    `compact`: there is none."""
    if not block.causal or block.mask is None:
        return "a token may look at later ones"
    if block.sinks is not None and not compact:
        return "sinks"
    size = size_of(block.query, 3)
    if size != size_of(block.value, 3):
        return f"keys of {size} and values of {size_of(block.value, 3)}"
    if size % 8:
        return f"a head size of {size}, no multiple of 8"
    return "half precision only on CUDA" if provider == "cuda" and block.dtype == FLOAT else ""


def by_token(emit: Emitter, value: ir.Value) -> ir.Value:
    """`[B, N, S, D]` as `[B, S, N * D]`, in which the operator takes its inputs."""
    rows = emit("Reshape", emit("Transpose", value, perm=BY_HEAD), emit.constant([0, 0, -1]))
    if value.shape is not None:
        rows.shape, rows.type = (
            ir.Shape([value.shape[0], value.shape[2], size_of(value, 1) * size_of(value, 3)]),
            value.type,
        )
    return rows


def by_head(emit: Emitter, rows: ir.Value, like: ir.Value) -> ir.Value:
    """What `by_token` made of `like`, as it was."""
    value = emit("Transpose", emit("Reshape", rows, emit.constant([0, 0, -1, size_of(like, 3)])), perm=BY_HEAD)
    value.shape, value.type = like.shape, like.type
    return value


def lengths(emit: Emitter, total: ir.Value, batch: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The lengths that the operator reads, from `[1]` int64 each: the last place of every row `[B]`, and the longest
    row's tokens `[]`.

    Every row is as long as the longest; padding is the bias's business.
    """
    total = emit("Cast", total, to=int(ir.DataType.INT32))
    return emit("Expand", emit("Sub", total, emit.constant(np.array([1], np.int32))), batch), emit("Squeeze", total)


def emit_grouped_query(
    emit: Emitter,
    block: Attention,
    tokens: list[ir.Value],
    past: tuple[ir.Value | None, ir.Value | None],
    row_lengths: tuple[ir.Value, ir.Value],
    bias: ir.Value | None = None,
    window: int = 0,
) -> tuple[ir.Value, ...]:
    """Emit the operator for queries, keys and values `by_token`, after `past` keys and values `[B, G, P, D]` if there
    are any.

    Args:
        row_lengths: see `lengths`.
        bias: of the scores `[B, 1, S, T]`, in float32. window: tokens that a token sees, 0 for all before it.

    Returns:
        What it mixed `[B, S, N * D]`, and keys and values `[B, G, P + S, D]`.
    """
    sinks = None if block.sinks is None else emit.cast(block.sinks, block.sinks.dtype or FLOAT, block.dtype)
    extra = [None if bias is None else emit.cast(bias, FLOAT, block.dtype), sinks]
    inputs = [*tokens, *past, *row_lengths, None, None, None, *extra]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {
        "num_heads": block.heads,
        "kv_num_heads": block.groups,
        "scale": block.scale,
        "softcap": block.softcap,
        "local_window_size": window or -1,
    }
    return emit.several(3, "GroupQueryAttention", *inputs, domain=MICROSOFT, **attributes)
