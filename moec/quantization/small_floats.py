"""Numbers as small floats with shared scales, FP8 and NVFP4: lazy weights that hold some rows in memory.

What comes out is what `moec::dequantize_float` reads, on the grids that TensorRT folds into its products: for `fp8` one
scale a weight, for `nvfp4` an E4M3 scale for every 16 numbers and one float32 a weight, stacks of experts included.
Small floats have exponents of their own, so scales of rows would gain nothing: on a trained model their error is 2.61 %
of the weights, with one scale 2.65 %. No scale is 0. Rounding is to nearest, with ties to even codes. No method of
`moec.quantization.rounding` refines them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from moec.dialect.dequantize_float import FORMATS as FORMATS
from moec.dialect.dequantize_float import GRID, LARGEST
from moec.weights.lazy import whole
from moec.weights.weight import FloatCodes, Weight

BLOCK = 16  # of nvfp4; the format knows no other
WHOLE = 0  # in the place of a group: of fp8, where one scale serves the whole weight
_E4M3 = torch.float8_e4m3fn
_BITS = {"fp8": 8, "nvfp4": 4}
_LEAST = 2.0**-9  # of E4M3's numbers above 0


def quantize_floats(weight: Weight, kind: str, overall: Weight | None = None) -> FloatCodes:
    """Round a floating-point weight `[..., out, in]` to small floats; nothing is read before the result is.

    Args:
        kind: `fp8` or `nvfp4`, whose groups of 16 divide `in`.
        overall: of `nvfp4`, the number for the whole weight, where it has one in common with others, see
            `overall_of`.

    Returns:
        For `fp8` one scale in the weight's dtype, by which its largest number becomes 448. For `nvfp4` E4M3 scales as
            bytes, and one
        number in float32 (or wider), by which the largest of them becomes 448.
    """
    assert kind in FORMATS
    *leading, width = weight.shape

    def part(columns: int, name: str, read: Callable[[int, int], Tensor]) -> Weight:
        origin = f"{name} of [{kind}]({weight.origin})"
        return Weight((*leading, columns), torch.uint8, origin, read, weight.atomic, inputs=(weight,))

    if kind == "fp8":
        scale = _common([weight], LARGEST["fp8"], weight.dtype, "scale")
        codes = part(width, "codes", partial(_read_fp8, weight, scale))
        return FloatCodes(codes, scale, None, weight.dtype, kind)
    overall = overall_of([weight]) if overall is None else overall
    numbers, steps = (partial(_read_nvfp4, weight, overall, index) for index in (0, 1))
    scale = part(width // BLOCK, "scale", steps)
    return FloatCodes(part(width // 2, "codes", numbers), scale, overall, weight.dtype, kind)


def overall_of(weights: Sequence[Weight]) -> Weight:
    """The number `[]` of `nvfp4` that serves all of these weights. Files of other engines hold its inverse: of the
    numbers nearby it is one that the inverse of the inverse is."""
    dtype = torch.promote_types(weights[0].dtype, torch.float32)
    largest = _common(weights, LARGEST["fp8"] * LARGEST["nvfp4"], dtype, "largest")
    return whole("overall", _returning, largest)


def _returning(number: Tensor) -> Tensor:
    for _ in range(8):  # two are enough for all that were tried
        back = 1 / (1 / number)
        if number.device.type == "meta" or torch.equal(back, number):
            break
        number = back
    return number


def bits_of(kind: str) -> int:
    """The width of a format's codes."""
    return _BITS[kind]


def _common(weights: Sequence[Weight], largest: float, dtype: torch.dtype, name: str) -> Weight:
    """One number `[]` for all: divided by it, none exceeds `largest`. It is a normal number of its dtype, 1 for
    zeros."""

    @lru_cache(maxsize=1)
    def one() -> Tensor:
        blocks = (block for weight in weights for block in weight.blocks() if block.numel())
        found = max((float(block.abs().max()) for block in blocks), default=0.0)
        return torch.tensor(max(found / largest, torch.finfo(dtype).smallest_normal) if found else 1.0).to(dtype)

    origin = ", ".join(weight.origin for weight in weights)
    return Weight((), dtype, f"{name} of ({origin})", lambda _a, _b: one(), inputs=tuple(weights))


def _read_fp8(weight: Weight, scale: Weight, start: int, stop: int) -> Tensor:
    limit = LARGEST["fp8"]
    return (weight.read(start, stop).float() / scale.load().float()).clamp(-limit, limit).to(_E4M3).view(torch.uint8)


def _read_nvfp4(weight: Weight, overall: Weight, index: int, start: int, stop: int) -> Tensor:
    values, scale = weight.read(start, stop).float(), overall.load().float()
    groups = values.reshape(*values.shape[:-1], values.shape[-1] // BLOCK, BLOCK)
    steps = groups.abs().amax(-1, keepdim=True) / LARGEST["nvfp4"] / scale
    steps = steps.clamp(_LEAST, LARGEST["fp8"]).to(_E4M3)
    if index == 1:
        return steps.view(torch.uint8).squeeze(-1)
    nibbles = _nearest(groups / (steps.float() * scale)).flatten(-2)
    return nibbles[..., 0::2] | nibbles[..., 1::2] << 4


def _nearest(values: Tensor) -> Tensor:
    """E2M1 codes of numbers, as uint8; in the middle between two the even code."""
    grid = torch.tensor(GRID)
    middles = (grid[1:] + grid[:-1]) / 2
    size = values.abs()
    codes = torch.bucketize(size, middles)  # a middle itself belongs to the code below it
    codes = codes + ((codes % 2 == 1) & (size == torch.cat([middles, torch.tensor([math.inf])])[codes]))
    return (codes + 8 * (values < 0)).to(torch.uint8)
