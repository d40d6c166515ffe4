"""The router's product."""

from __future__ import annotations

import triton
import triton.language as tl

from moec.kernels.device.arithmetic import product


@triton.jit(do_not_specialize=["tokens"])
def logits_kernel(
    x, w, tokens, stride_x, parts, EXPERTS: tl.constexpr, DEPTH: tl.constexpr, STEPS: tl.constexpr, EXACT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """`parts[s] = x[:, part s] @ w[:, part s].T` in float32, a part being STEPS blocks of the inner dimension.

    Grid: (ceil(tokens / ROWS), ceil(EXPERTS / BLOCK_N), S). x `[tokens, DEPTH]`; w `[EXPERTS, DEPTH]`; parts `[S,
    tokens, EXPERTS]`. EXACT: multiply in float32, else x and w have one 16-bit dtype, whose products are exact.
    """
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    rows = x + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * stride_x
    columns = w + tl.minimum(expert, EXPERTS - 1)[:, None] * DEPTH
    acc = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for step in range(STEPS):
        k = (split * STEPS + step) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        a, b = tl.load(rows + k, mask=k < DEPTH, other=0.0), tl.load(columns + k, mask=k < DEPTH, other=0.0)
        if EXACT:
            acc = product(a.to(tl.float32), b.to(tl.float32), acc, "ieee")
        else:
            acc = product(a, b, acc, "tf32")
    out = parts + (split.to(tl.int64) * tokens + token)[:, None] * EXPERTS + expert[None, :]
    tl.store(out, acc, mask=(token < tokens)[:, None] & (expert < EXPERTS)[None, :])
