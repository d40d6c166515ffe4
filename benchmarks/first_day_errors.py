"""How far the first day's numbers may be from the truth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MARGIN = 2.0  # times the error of the same computation by eager PyTorch
TYPICAL = "median relative error"


def distance(got: Tensor, exact: Tensor) -> float:
    """Relative error in the 2-norm; infinite where a NaN is, and beside nothing but zeros, which prove nothing."""
    value = float((got.double() - exact).norm() / exact.norm())
    return value if value == value else float("inf")


def typical(got: Tensor, exact: Tensor) -> float:
    """The median over tokens `[..., size]` of a token's relative error; infinite where anything is not finite, and
    beside zeros."""
    return ranked(got.flatten(0, -2), exact.flatten(0, -2), 0.5)


def ranked(got: Tensor, exact: Tensor, share: float) -> float:
    """The relative error that this share of tokens `[tokens, ...]` stay within; infinite as above."""
    apart = (got.double() - exact).flatten(1).norm(dim=1) / exact.double().flatten(1).norm(dim=1)
    value = float(apart.sort().values[max(math.ceil(share * len(apart)) - 1, 0)])
    return value if value == value and got.isfinite().all() else math.inf


def allowed(plain: float, dtype: torch.dtype, longest: int) -> float:
    """The bound, from eager PyTorch's error and the longest sum."""
    least = 2.0**-24 * longest**0.5 if dtype == torch.float32 else torch.finfo(dtype).eps / 8
    return MARGIN * max(plain, least)
