"""The signature of a decoder whose cache is a buffer of fixed size, beside that of its program, whose cache grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from moec.program.decoder_signature import PAST, TOTAL, is_present
from moec.program.signature import Input

VIEW, LENGTH = "view", "cache_length"  # how many places a call looks at; the input that says how many are filled


def buffers(inputs: Sequence[Input], capacity: int) -> tuple[Input, ...]:
    """The inputs of a graph with a fixed cache, from those of its program: buffers `[batch, heads, capacity, size]`, a
    mask of their first places `[batch, view]`, and `cache_length` int64 `[1]`, the number of tokens that they hold.
    What is new is written behind these, and `view` has room for it."""
    own: dict[str, int | str] = {PAST: capacity, TOTAL: VIEW}
    changed = (replace(i, shape=tuple(own.get(str(d), d) for d in i.shape)) for i in inputs)
    return (*changed, Input(LENGTH, torch.int64, (1,)))


def grown(outputs: Sequence[Input], capacity: int) -> tuple[Input, ...]:
    """Outputs as the program has them: of a buffer the places that hold tokens."""
    return tuple(
        replace(o, shape=(*o.shape[:-2], TOTAL, *o.shape[-1:])) if capacity and is_present(o.name) else o
        for o in outputs
    )
