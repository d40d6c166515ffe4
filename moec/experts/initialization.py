"""Random weights that are drawn when they are read, and drawn alike every time: a text names each, and seeds it."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from moec.weights.lazy import Weight


def generator(text: str) -> torch.Generator:
    """A CPU generator seeded by a text."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))


def normal_rows(count: int, width: int, repeat: int, std: float, seed: str, dtype: torch.dtype) -> Weight:
    """`[count * repeat, width]`: `count` rows of N(0, std), each `repeat` times in succession."""

    def read(start: int, stop: int) -> Tensor:
        rows = torch.randn(count, width, generator=generator(seed)) * std
        return rows.repeat_interleave(repeat, 0)[start:stop].to(dtype)

    return Weight(
        (count * repeat, width), dtype, f"normal[{count} x {repeat}, {width}, std {std:g}, seed {seed}]", read
    )


def redraw(w_in: Weight, w_out: Weight, parts: int, share: float, seed: str) -> tuple[Weight, Weight]:
    """One expert with part of its neurons drawn anew (Drop-Upcycling, Nakamura et al. 2025, arXiv 2502.19261).

    The same neurons in gate, up and down, as the paper says (its released code draws three different sets). New entries
    are normal with mean and standard deviation of the entries that they replace.

    Args:
        w_in: `[parts * I, H]`, gate rows before up rows (parts 2) or one matrix (parts 1). w_out: `[H, I]`.
        share: of the I neurons, rounded down.
        seed: text that names layer and expert.
    """
    width = w_out.shape[1]
    chosen = torch.randperm(width, generator=generator(f"{seed}/neurons"))[: int(share * width)]

    def fresh(old: Tensor, name: str) -> Tensor:
        noise = torch.randn(old.shape, generator=generator(f"{seed}/{name}"))
        return (noise * old.float().std(correction=0) + old.float().mean()).to(old.dtype)

    def read_in(start: int, stop: int) -> Tensor:
        value = w_in.load().clone()
        for part in range(parts):
            value[chosen + part * width] = fresh(value[chosen + part * width], f"in{part}")
        return value[start:stop]

    def read_out(start: int, stop: int) -> Tensor:
        value = w_out.load().clone()
        value[:, chosen] = fresh(value[:, chosen], "out")
        return value[start:stop]

    if not len(chosen):
        return w_in, w_out
    text = f"redraw[{share:g}, seed {seed}]"
    return (
        Weight(w_in.shape, w_in.dtype, f"{text}({w_in.origin})", read_in, inputs=(w_in,)),
        Weight(w_out.shape, w_out.dtype, f"{text}({w_out.origin})", read_out, inputs=(w_out,)),
    )
