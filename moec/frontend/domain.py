"""Which values an input may take, and samples of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moec.program.decoder_signature import PAST
from moec.program.program import Input

Kind = Literal["token", "mask", "padding", "position", "type", "box", "state", "number"]


@dataclass(frozen=True)
class Domain:
    """Which values an input may take, so that samples of it make sense.

    Attributes:
        kind: `token` ids, an attention `mask` of ones with padding on the right, one with `padding` on either side,
            `position` ids counting up, `type` ids, a `box` (left, top, right, bottom), a `state` of earlier tokens
            (zeros where there are none), or a plain `number`.
        high: exclusive upper bound of integer values.
        end: the token that every row ends with, and has nowhere else; None where rows end anyhow.
        step: elements by which each row of a mask is shorter than the one before, and each image as well.
    """

    kind: Kind
    high: int = 2
    end: int | None = None
    step: int = 1


def sample_input(spec: Input, domain: Domain | None, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """One random input. Without a domain: normal floats, and integers below 2."""
    shape = spec.resolve(sizes)
    kind = domain.kind if domain else "number"
    if kind in ("mask", "padding"):
        return _mask(shape, kind == "padding", domain.step if domain else 1).to(spec.dtype)
    if kind == "position":
        return torch.arange(shape[-1]).expand(shape).to(spec.dtype).clone()
    if kind == "state" and not sizes.get(PAST):
        return torch.zeros(shape, dtype=spec.dtype)
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    high = sizes[PAST] + 2 if kind == "state" else domain.high if domain else 2  # a whole number counts tokens
    drawn = torch.randint(0, high, shape, generator=generator)
    if kind == "box":
        drawn = torch.cat([drawn[..., :2].minimum(drawn[..., 2:]), drawn[..., :2].maximum(drawn[..., 2:])], -1)
    if domain is not None and domain.end is not None:
        drawn = ended(drawn, domain)
    return drawn.to(spec.dtype)


def _mask(shape: Sequence[int], on_either_side: bool, step: int) -> Tensor:
    """Ones, and zeros at the end of every row but the first, a different amount in each; on the left in every second
    one where they may stand `on_either_side`. An image, `[batch, height, width]`, is padded below and on the right."""
    mask = torch.ones(shape)
    for row in range(1, shape[0]):
        if on_either_side and row % 2:
            mask[row, : min(row * step, shape[-1] - 1)] = 0
        else:
            for axis, size in enumerate(shape[1:]):
                mask[row].narrow(axis, max(1, size - row * step), min(size - 1, row * step)).zero_()
    return mask


def ended(tokens: Tensor, domain: Domain) -> Tensor:
    """Token ids `[batch, length]` whose rows end with the domain's end token and have it nowhere else."""
    assert domain.end is not None
    tokens = torch.where(tokens == domain.end, (domain.end + 1) % domain.high, tokens)
    tokens[..., -1] = domain.end
    return tokens
