"""Numbers as small floats with shared scales, FP8 and NVFP4: lazy weights that hold some rows in memory.

What comes out is what `moec::dequantize_float` reads. Scales are the smallest that let no number exceed the format; rounding is to
nearest, with ties to even codes. No method of `moec.quantization` refines them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from moec.dialect.dequantize_float import FORMATS as FORMATS
from moec.dialect.dequantize_float import GRID, LARGEST
from moec.weights import Weight

BLOCK = 16  # of nvfp4; the format knows no other
_E4M3 = torch.float8_e4m3fn
_BITS = {"fp8": 8, "nvfp4": 4}


@dataclass(frozen=True)
class Floats:
    """The inputs of `moec::dequantize_float` as lazy weights."""

    codes: Weight
    scale: Weight
    overall: Weight | None

    def parts(self) -> list[Weight]:
        """Those that there are."""
        return [self.codes, self.scale] + ([] if self.overall is None else [self.overall])


def quantize_floats(weight: Weight, kind: str, group: int) -> Floats:
    """Round a floating-point weight `[out, in]` or `[E, out, in]` to small floats; nothing is read before the result is.

    Args:
        kind: `fp8` or `nvfp4`.
        group: neighbours along `in` that share a scale; `nvfp4` has 16. Divides `in`.

    Returns:
        For `fp8` scales in the weight's dtype. For `nvfp4` E4M3 scales as bytes, and one number a matrix in the weight's dtype, by which
        the largest of a matrix's scales becomes the largest that E4M3 has.
    """
    assert kind in FORMATS
    *leading, width = weight.shape
    text = f"{kind}, group {group}"
    if kind == "fp8":
        codes = Weight(weight.shape, torch.uint8, f"codes of [{text}]({weight.origin})", partial(_read_fp8, weight, group, 0), weight.atomic)
        scale = Weight((*leading, width // group), weight.dtype, f"scale of [{text}]({weight.origin})", partial(_read_fp8, weight, group, 1), weight.atomic)
        return Floats(codes, scale, None)
    overall = _overall(weight)
    half = Weight((*leading, width // 2), torch.uint8, f"codes of [{text}]({weight.origin})", partial(_read_nvfp4, weight, overall, 0), weight.atomic)
    steps = Weight((*leading, width // BLOCK), torch.uint8, f"scale of [{text}]({weight.origin})", partial(_read_nvfp4, weight, overall, 1), weight.atomic)
    return Floats(half, steps, overall)


def bits_of(kind: str) -> int:
    """The width of a format's codes."""
    return _BITS[kind]


def _steps(groups: Tensor, kind: str) -> Tensor:
    """The least scale `[…, 1]` of each group `[…, group]`, in float32."""
    return groups.abs().amax(-1, keepdim=True) / LARGEST[kind]


def _cut(values: Tensor, group: int) -> Tensor:
    return values.float().reshape(*values.shape[:-1], values.shape[-1] // group, group)


def _divided(groups: Tensor, steps: Tensor) -> Tensor:
    return groups / torch.where(steps == 0, 1, steps)


def _read_fp8(weight: Weight, group: int, index: int, start: int, stop: int) -> Tensor:
    values = weight.read(start, stop)
    groups = _cut(values, group)
    steps = _steps(groups, "fp8").to(values.dtype).float()
    if index == 1:
        return steps.squeeze(-1).to(values.dtype)
    limit = LARGEST["fp8"]
    return _divided(groups, steps).clamp(-limit, limit).to(_E4M3).view(torch.uint8).flatten(-2)


def _overall(weight: Weight) -> Weight:
    """One number a matrix: `[]` of a matrix, `[E]` of a stack."""
    origin = f"overall of ({weight.origin})"
    most = LARGEST["fp8"] * LARGEST["nvfp4"]

    @lru_cache(maxsize=64)
    def one(e: int | None) -> Tensor:
        blocks = weight.blocks() if e is None else iter([weight.read(e, e + 1)])
        largest = max(float(block.abs().max()) for block in blocks)
        small = torch.finfo(weight.dtype).smallest_normal
        return torch.tensor(max(largest / most, small) if largest else 1.0).to(weight.dtype)

    if len(weight.shape) == 2:
        return Weight((), weight.dtype, origin, lambda _a, _b: one(None))
    return Weight(weight.shape[:1], weight.dtype, origin, lambda a, b: torch.tensor([float(one(e)) for e in range(a, b)], dtype=weight.dtype))


def _read_nvfp4(weight: Weight, overall: Weight, index: int, start: int, stop: int) -> Tensor:
    values = weight.read(start, stop)
    groups = _cut(values, BLOCK)
    scale = (overall.read(start, stop) if overall.shape else overall.load()).float()
    scale = scale.reshape(*scale.shape, *[1] * (groups.dim() - scale.dim()))
    steps = (_steps(groups, "nvfp4") / scale).clamp(max=LARGEST["fp8"]).to(_E4M3)
    if index == 1:
        return steps.view(torch.uint8).squeeze(-1)
    nibbles = _nearest(_divided(groups, steps.float() * scale)).flatten(-2)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4


def _nearest(values: Tensor) -> Tensor:
    """E2M1 codes of numbers, as uint8; in the middle between two the even code."""
    grid = torch.tensor(GRID)
    middles = (grid[1:] + grid[:-1]) / 2
    size = values.abs()
    codes = torch.bucketize(size, middles)  # a middle itself belongs to the code below it
    codes = codes + ((codes % 2 == 1) & (size == torch.cat([middles, torch.tensor([math.inf])])[codes]))
    return (codes + 8 * (values < 0)).to(torch.uint8)
