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
from moec.huggingface.checkpoint_format import CheckpointFormat
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
    if scale is None or len(weight.shape) != 2 or scale.shape != wanted:
        found = "none" if scale is None else list(scale.shape)
        raise MoecError(
            "M205",
            f"{name!r} of shape {list(weight.shape)} needs scales {list(wanted)}, found {found}",
            weight.origin,
            "download the files again",
        )

    def read(start: int, stop: int) -> Tensor:
        first = start // height
        tiles = scale.read(first, -(-stop // height)).float()
        rows = tiles.repeat_interleave(height, 0)[start - first * height : stop - first * height]
        return weight.read(start, stop).float() * rows.repeat_interleave(width, 1)[:, : weight.shape[1]]

    origin = f"tiles[{height}x{width}]({weight.origin}, {scale.origin})"
    return Weight(weight.shape, torch.float32, origin, read, inputs=(weight, scale))
