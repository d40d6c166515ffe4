"""GPTQ: a matrix on a small integer grid whose rounding errors are made up for by the columns that are still to be
rounded.

Frantar et al. 2022 (arXiv 2210.17323). What counts is not the error of the weights but that of the outputs on inputs
like those that were seen; these enter as their second moments, the Hessian of the squared output error.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moec.quantization.grid import Grid
from moec.quantization.rounding import as_stored, fit, nearest

DAMPING = 0.01  # what is added to the Hessian's diagonal, of its mean
_LARGEST_DAMPING = 10.0
_BLOCK = 128  # columns whose errors reach the columns behind them in one product; a multiple of every group


def encode_with(values: Tensor, hessian: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """What `moec.quantization.rounding.encode` gives, with the output error of inputs like those behind a Hessian made
    small.

    Column by column: a number is rounded, and its error, divided by what the Hessian's inverse says of it, is taken
    from the columns that follow. A group's scale (and zero point) is that of rounding, taken when its first column
    comes up from what the errors have made of it by then. (Scales refined as by `hqq` have the smaller error of
    weights, and nearly twice the KL divergence on a small trained model at 2 bits.) Inputs that were never other than
    zero have nothing to make up for: their columns are rounded to nearest.

    Args:
        values: `[out, in]`.
        hessian: `[in, in]`, the mean of `x xᵀ` over inputs x, up to a factor.
        grid: its method is not looked at.

    Returns:
        uint8 codes `[out, in]`, scales and zero points; None when the Hessian cannot be factored whatever the damping.
    """
    factor = inverse_factor(hessian)
    return None if factor is None else descend(values, factor, grid)


def inverse_factor(hessian: Tensor, damping: float = DAMPING) -> Tensor | None:
    """Upper triangular U with `UᵀU` the inverse of the damped Hessian: in float32, then in float64, then with ten times
    the damping, and so on; None when nothing helps, as when it is not finite."""
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    if not 0 < mean < float("inf") or not bool(hessian.isfinite().all()):
        return None
    while damping <= _LARGEST_DAMPING:
        for dtype in (torch.float32, torch.float64):
            damped = hessian.to(dtype, copy=True)
            damped.diagonal().add_(torch.where(diagonal == 0, mean, damping * mean).to(dtype))
            found = _upper(damped)
            if found is not None:
                return found.float().contiguous()
        damping *= 10
    return None


def _upper(matrix: Tensor) -> Tensor | None:
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        return None
    found, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if failed or not bool(found.isfinite().all()) else found


def descend(values: Tensor, factor: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `encode_with` gives, with the factor of the Hessian's inverse. No row hangs on another, but a product of
    fewer rows may add in another order. Columns are kept as rows, so that each is one piece of memory."""
    work = values.t().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    codes, fits = torch.empty_like(work), []
    for start in range(0, len(work), _BLOCK):
        stop = min(start + _BLOCK, len(work))
        errors = torch.empty_like(work[start:stop])
        for at in range(start, stop):
            if at % grid.group == 0:
                scale, zero = fit(
                    work[at : at + grid.group].t().contiguous(), replace(grid, method="gptq"), values.dtype
                )
                fits.append((scale, zero))
                s, z = scale[:, 0], zero[:, 0]
            codes[at] = nearest(work[at], s, z, grid.bits)
            errors[at - start] = (work[at] - (codes[at] - z) * s) / factor[at, at]
            work[at + 1 : stop].addr_(factor[at, at + 1 : stop], errors[at - start], alpha=-1)
        work[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    scales, zeros = (torch.stack(parts, dim=1) for parts in zip(*fits, strict=True))
    return as_stored(codes.t(), scales, zeros, values.dtype, grid)
