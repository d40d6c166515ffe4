"""What stands between an expert's two matrices, on tiles of float32; the same functions as
`moec.dialect.activation`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Hyperbolic tangent with a small relative error near zero too, from operations that every target and the
    interpreter have."""
    square = x * x
    # an odd polynomial below 0.625, fitted to tanh at Chebyshev nodes: relative error below 1e-7
    p = -0.006104946 * square + 0.021003639
    p = p * square - 0.053852499
    p = p * square + 0.133327827
    p = p * square - 0.333333284
    near = x + x * square * p
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, near, tl.where(x < 0, -far, far))


@triton.jit
def activate(x, NAME: tl.constexpr, ALPHA: tl.constexpr):
    """The function `NAME` of `moec.dialect.ACTIVATIONS`; NaN stays NaN."""
    if NAME == "silu":
        y = x / (1.0 + tl.exp(-ALPHA * x))
    elif NAME == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        y = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NAME == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif NAME == "relu2":
        y = tl.where(x < 0, 0.0, x * x)
    elif NAME == "tanh":
        y = tanh(x)
    elif NAME == "sigmoid":
        y = 1.0 / (1.0 + tl.exp(-x))
    else:
        tl.static_assert(NAME == "identity")
        y = x
    return y


@triton.jit
def gate_times_up(
    gate,
    up,
    NAME: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    LIMIT: tl.constexpr,
    CLAMP_AFTER: tl.constexpr,
):
    """`f(gate) * (up + beta)` with the clamps of `moec.dialect.Activation`."""
    if LIMIT > 0:
        up = tl.where(up > LIMIT, LIMIT, tl.where(up < -LIMIT, -LIMIT, up))
        if not CLAMP_AFTER:
            gate = tl.where(gate > LIMIT, LIMIT, gate)
    gate = activate(gate, NAME, ALPHA)
    if LIMIT > 0 and CLAMP_AFTER:
        gate = tl.where(gate > LIMIT, LIMIT, gate)
    return gate * (up + BETA)
