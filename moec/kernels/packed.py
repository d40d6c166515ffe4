"""Weights of experts that lie packed in memory and are unpacked in registers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExpertCodes:
    """`[E, N, K]` weights as integers of 4 or 8 bits, or FP8 E4M3, with scales by group: tensors on a device, as the
    kernels read them. A lazy weight on the way there is a `moec.weights.weight.PackedWeight`.

    Attributes:
        values: uint8 `[E, N, K*bits/8]`, two 4-bit values a byte, the first in the low half, as `moec::dequantize` has
            it; or float8_e4m3fn `[E, N, K]`.
        scale: floats `[E, ceil(N/rows), ceil(K/group)]`.
        zero: uint8, one a scale; None: the grid is symmetric about 2**(bits-1), FP8's about 0.
        bits: 4 or 8.
        group: how many weights of a row share a scale. rows: how many rows do (DeepSeek-V3's FP8: 128 by 128).
    """

    values: Tensor
    scale: Tensor
    zero: Tensor | None = None
    bits: int = 4
    group: int = 0
    rows: int = 1

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.values.shape[-1] * self.per_byte // self.scale.shape[-1])

    @property
    def format(self) -> str:
        """`int4`, `int8` or `fp8`."""
        return "fp8" if self.values.dtype == torch.float8_e4m3fn else f"int{self.bits}"

    @property
    def per_byte(self) -> int:
        """Weights a byte."""
        return 1 if self.format == "fp8" else 8 // self.bits

    @property
    def shape(self) -> tuple[int, ...]:
        """`(E, N, K)` of the weights that it stands for."""
        return (*self.values.shape[:-1], self.values.shape[-1] * self.per_byte)

    def unpacked(self) -> Tensor:
        """The weights themselves `[E, N, K]`, in the scale's dtype."""
        _, rows, depth = self.shape
        scale = self.scale.repeat_interleave(self.rows, 1)[:, :rows].repeat_interleave(self.group, 2)[..., :depth]
        if self.format == "fp8":
            return (self.values.float() * scale.float()).to(self.scale.dtype)
        shifts = torch.arange(self.per_byte, device=self.values.device, dtype=torch.uint8) * self.bits
        q = ((self.values.unsqueeze(-1) >> shifts) & (2**self.bits - 1)).flatten(-2).to(scale.dtype)
        if self.zero is None:
            return (q - 2 ** (self.bits - 1)) * scale
        zero = self.zero.repeat_interleave(self.rows, 1)[:, :rows].repeat_interleave(self.group, 2)[..., :depth]
        return (q - zero.to(scale.dtype)) * scale
