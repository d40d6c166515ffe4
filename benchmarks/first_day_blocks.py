"""First day, stage `kernels`: whole blocks, router and routing included, as four models have them, but narrower."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from first_day_errors import TYPICAL, allowed, typical
from moe_gpu_contestants import SHAPES, TOYS, Block, ours

HIDDEN, INNER = 256, 128


@dataclass(frozen=True)
class Whole:
    """One call of `launch.moe`. toy: of few experts, for the interpreter."""

    model: str
    tokens: int
    dtype: str = "bfloat16"
    toy: bool = False

    @property
    def name(self) -> str:
        return f"whole {self.model} {self.dtype} T={self.tokens}"

    def measure(self, device: str) -> list[tuple[str, float, str, float]]:
        """Against the block in float64; the median over tokens, since one whose experts nearly tie may take others."""
        shape = TOYS[self.model] if self.toy else replace(SHAPES[self.model], hidden=HIDDEN, inner=INNER)
        dtype = getattr(torch, self.dtype)
        with torch.inference_mode():
            block = Block(shape, 16, device, dtype)
            x = block.draw(self.tokens, shape.hidden)
            got, exact = ours(block)(x), block.reference(x, True)
            bound = allowed(typical(block.reference(x, False), exact), dtype, shape.hidden)
            return [("moec", typical(got, exact), TYPICAL, bound)]


def wholes(small: bool) -> list[Whole]:
    """All models, for few tokens and for many; `small`: one."""
    if small:
        return [Whole("gpt-oss", 5, toy=True)]
    return [Whole(model, tokens, dtype) for dtype in ("bfloat16", "float32") for model in SHAPES for tokens in (5, 300)]
