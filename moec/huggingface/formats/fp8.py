"""Checkpoints with weights in 8-bit floats and a scale for every tile, as DeepSeek publishes its own: read as the
numbers that they stand for.

A linear layer's `weight` is float8 `[out, in]`, and `weight_scale_inv` `[out/128, in/128]` holds what each tile of 128
x 128 is multiplied by. The weights become plain ones, exactly; let moec quantize them if they are to be small. Servers
round activations to 8 bits as well; moec does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.checkpoint_format import CheckpointFormat, are_scales
from moec.weights.lazy import Weight

SCALE = "_scale_inv"


class Fp8(CheckpointFormat):
    """Tiles of E4M3 with a scale each; see this module."""

    methods = ("fp8",)

    def why_not(self, config: Mapping[str, Any]) -> str:
        tile = config.get("weight_block_size")
        if not (isinstance(tile, list | tuple) and len(tile) == 2 and all(isinstance(n, int) and n > 0 for n in tile)):
            return f"its weight_block_size is {tile!r}; moec reads tiles like [128, 128]"
        return "" if config.get("fmt", "e4m3") == "e4m3" else f"its numbers are {config['fmt']!r}; moec reads 'e4m3'"

    def decode(self, stored: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
        height, width = config["weight_block_size"]
        return decode(stored, (height, width))


def decode(stored: Mapping[str, Weight], tile: tuple[int, int] = (128, 128)) -> dict[str, Weight]:
    """The checkpoint's tensors with every weight in 8 bits decoded to float32 when it is read, by rows.

    Raises:
        MoecError: M205 when a weight in 8 bits has no scales, or they do not fit it.
    """
    scaled = {n for n, w in stored.items() if w.dtype == torch.float8_e4m3fn}
    spent = {n + SCALE for n in scaled}
    return {
        n: _decoded(n, w, stored.get(n + SCALE), tile) if n in scaled else w
        for n, w in stored.items()
        if n not in spent
    }


def _decoded(name: str, weight: Weight, scale: Weight | None, tile: tuple[int, int]) -> Weight:
    height, width = tile
    wanted = tuple(-(-size // step) for size, step in zip(weight.shape, tile, strict=False))
    if scale is None or not are_scales(scale) or len(weight.shape) != 2 or scale.shape != wanted:
        found = "none" if scale is None else f"{str(scale.dtype)[6:]} {list(scale.shape)}"
        raise MoecError(
            "M205",
            f"{name!r} of shape {list(weight.shape)} needs scales {list(wanted)}, found {found}",
            weight.origin,
            "download the files again",
        )

    def read(start: int, stop: int) -> Tensor:
        first, codes = start // height, weight.read(start, stop)
        factors = scale.read(first, -(-stop // height)).float()
        numbers = _halves(codes, factors)
        if numbers is None:
            numbers = codes.float()
        else:
            numbers, factors = numbers.float(), factors * _SMALLER
        for k, row in enumerate(factors.repeat_interleave(width, 1)[:, : codes.shape[1]], first):
            numbers[max(k * height - start, 0) : (k + 1) * height - start].mul_(row)
        return numbers

    origin = f"tiles[{height}x{width}]({weight.origin}, {scale.origin})"
    by_rows = weight.by_rows and scale.by_rows
    return Weight(weight.shape, torch.float32, origin, read, inputs=(weight, scale), by_rows=by_rows)


_SMALLER = 256.0  # the bias of an exponent is 7 in E4M3 and 15 in float16
_HUGE = 2.0**100


def _halves(codes: Tensor, factors: Tensor) -> Tensor | None:
    """E4M3 as float16, 256 times too small: its bits moved to their places, some ten times as fast as PyTorch converts
    them. What is multiplied by them later is multiplied by 256, so that the products are the same, rounded once. None
    for what has no such form: NaN, and factors that would overflow.

    Spec: https://arxiv.org/abs/2209.05433, table 1.
    """
    bits, signed = codes.view(torch.uint8), codes.view(torch.int8)
    if bits.numel() == 0 or int(bits.amax()) == 255 or int(signed.amax()) == 127:  # NaN, with a sign and without
        return None
    if not bool((factors.abs() < _HUGE).all()):
        return None
    return signed.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000 & ~0x7F).view(torch.float16)
