"""The values of a dense feed-forward network: what carving looks at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from moec.dialect import Activation
from moec.recognition.ffn import Ffn
from moec.weights.lazy import Weight

BLOCK = 1024  # tokens whose neurons are held at a time: of a wide network those of a whole text are gigabytes


@dataclass(frozen=True)
class Dense:
    """A network's values: `w_out @ activation(w_in @ x + b_in)`; what it adds at the end is left out.

    Attributes:
        w_in: `[F * I, H]`. b_in: `[F * I]` or None. w_out: `[H, I]`.
    """

    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    activation: Activation

    def hidden(self, x: Tensor) -> Tensor:
        """`[T, I]` of `[T, H]`."""
        return self.activation(F.linear(x.to(self.w_in.dtype), self.w_in, self.b_in))

    def __call__(self, x: Tensor, last: Tensor | None = None) -> Tensor:
        """What it says, `[T, H]` float32 of `[T, H]`, or would with another last matrix `[H, I]`."""
        matrix = (self.w_out if last is None else last).float()
        said = torch.empty(len(x), len(matrix))
        for part in token_blocks(len(x)):
            said[part] = self.hidden(x[part]).float() @ matrix.T
        return said

    def gates(self, x: Tensor) -> Tensor:
        """What the gate alone gives, `[T, I]`; the hidden values of a network without one."""
        size, alone = self.w_out.shape[1], replace(self.activation, gated=False)
        bias = None if self.b_in is None else self.b_in[:size]
        return alone(F.linear(x.to(self.w_in.dtype), self.w_in[:size], bias))


def token_blocks(count: int) -> Iterator[slice]:
    """Parts of so many tokens, `BLOCK` in each."""
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


def dense_of(ffn: Ffn) -> Dense:
    """A network's values in float32."""
    b_in = None if ffn.b_in is None else in_float32(ffn.b_in)
    return Dense(in_float32(ffn.w_in), b_in, in_float32(ffn.w_out), ffn.activation)


def in_float32(weight: Weight) -> Tensor:
    """All of a weight."""
    return weight.load().float()
