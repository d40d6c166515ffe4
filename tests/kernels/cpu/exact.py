"""What a block gives in float64, and how far float32 may be from it."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kernels.cpu.calls import Mixture

STEP = 1e-6  # what rounding in float32 may do to a number before the second product, of its magnitude

LEAST = 2.0**-126  # what is smaller counts as zero in products of bfloat16


def expected(block: Mixture, x: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result in float64, with the roundings to bfloat16 that the kernels do, and two measures of its rounding.

    Returns:
        The result `[T, H]`; for each token the magnitude that its rounding is measured by (no bound, but what the norms
        of rows and matrices make of it) `[T]`; and `[T, H]` what numbers between the products may add that lie so near
        the middle of two of bfloat16 that they may become either, and what is flushed to zero.
    """
    w_in, w_out, b_in, b_out = block.wide
    assert w_in is not None and w_out is not None
    half = block.first.bits == 16
    x = x.bfloat16().float() if half else x
    y, size = torch.zeros_like(x, dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    slack = torch.zeros_like(y)
    for e, k in ((e, k) for e in ids.unique().tolist() for k in range(ids.shape[1])):
        at = (ids[:, k] == e) & ~((weights[:, k] == 0) & block.left_out)
        factor = weights[at, k].unsqueeze(1)
        rows = x[at].double()
        if block.score_before:
            rows = halved(x[at] * factor) if half else rows * factor.double()
        outside = torch.ones_like(rows[:, :1]) if block.score_before else factor.double()
        before = rows @ w_in[e].T + (0 if b_in is None else b_in[e])
        largest = before.abs().amax(1)
        inside = rows.norm(dim=1) * w_in[e].norm(dim=1).max() + largest  # of a first product, and a bias
        slope = 1 + largest  # gate times up, relu squared
        between = block.activation(before)
        if half:
            near = STEP * (inside * slope).unsqueeze(1)
            slack[at] += (outside * (halved(between + near) - halved(between - near))).abs() @ w_out[e].abs().T
            between = halved(between)
            lost = x.shape[1] * slope.unsqueeze(1) * w_out[e].abs().sum(1) + w_out.shape[2]  # steps that are flushed
            slack[at] += LEAST * outside.abs() * lost
        found = between @ w_out[e].T + (0 if b_out is None else b_out[e])
        y[at] += outside * found
        through = w_out[e].norm(dim=1).max() * inside * slope * w_out.shape[2] ** 0.5
        size[at] += outside.abs().squeeze(1) * (through + found.abs().amax(1))
    return y, size, slack


def halved(numbers: Tensor) -> Tensor:
    """Rounded to bfloat16, in float64."""
    return numbers.bfloat16().double()
