"""`moec::dequantize_float`: the weight that small floats with shared scales stand for, FP8 and NVFP4."""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = ("fp8", "nvfp4")
GRID = (
    0.0,
    0.5,
    1.0,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
)  # what E2M1 expresses, by the lower three bits of its codes; the fourth is the sign
LARGEST = {"fp8": 448.0, "nvfp4": 6.0}


@torch.library.custom_op("moec::dequantize_float", mutates_args=())
def dequantize_float(
    codes: Tensor, scale: Tensor, overall: Tensor | None = None, *, format: str, dtype: torch.dtype | None = None
) -> Tensor:
    """`value(code) * scale * overall`, blockwise along the last dimension. Codes and scales are handled as bytes.

    Args:
        codes: uint8. `fp8`: E4M3 `[..., K]`. `nvfp4`: two E2M1 a byte, the first in the low half, `[..., K/2]`.
        scale: `fp8`: one float `[]`, or floats `[..., K/block]`; the block size follows from the shapes. `nvfp4`: the
            bytes of E4M3 numbers, as uint8 `[..., K/16]`.
        overall: `nvfp4` only: one float for the whole weight, `[]`, or for each matrix of a stack, `[E]`.
        format: `fp8` (E4M3, OCP 8-bit floating point specification; also DeepSeek's, whose tiles repeat a scale in 128
            rows) or `nvfp4` (E2M1 in blocks of 16, as NVIDIA's Blackwell reads it).
        dtype: that the products are rounded to at the end; by default the one they are computed in, which is that of
            `scale`, or of `overall` for `nvfp4`.

    Returns:
        `[..., K]`. Not differentiable: these weights are constants.
    """
    if format == "nvfp4":
        assert overall is not None
        steps = scale.view(torch.float8_e4m3fn).to(overall.dtype)
        steps = steps * overall.reshape(*overall.shape, *[1] * (steps.dim() - overall.dim()))
        values = _nibbles(codes).to(overall.dtype)
    else:
        steps, values = scale, codes.view(torch.float8_e4m3fn).to(scale.dtype)
    if steps.dim():
        values = values.reshape(*steps.shape, values.shape[-1] // steps.shape[-1])
        steps = steps.unsqueeze(-1)
    products = values * steps
    return (products.flatten(-2) if steps.dim() else products).to(dtype or products.dtype)


def _nibbles(codes: Tensor) -> Tensor:
    """The numbers of E2M1 codes, in float32."""
    table = torch.tensor([*GRID, *(-n for n in GRID)], device=codes.device)
    return table[torch.stack([codes & 0xF, codes >> 4], -1).flatten(-2).long()]


@dequantize_float.register_fake
def _(
    codes: Tensor, scale: Tensor, overall: Tensor | None = None, *, format: str, dtype: torch.dtype | None = None
) -> Tensor:
    if format == "nvfp4":
        assert overall is not None
        return overall.new_empty((*codes.shape[:-1], 2 * codes.shape[-1]), dtype=dtype)
    return scale.new_empty(codes.shape, dtype=dtype)
