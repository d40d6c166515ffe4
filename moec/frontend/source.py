"""Where a model comes from: something that can be captured, and run untouched in eager PyTorch to compare with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moec.execution.engine import Engine
from moec.program.decoder_signature import PAST
from moec.program.program import Input, Program

Kind = Literal["token", "mask", "padding", "position", "type", "number"]


@dataclass(frozen=True)
class Domain:
    """Which values an input may take, so that samples of it make sense.

    Attributes:
        kind: `token` ids, an attention `mask` of ones with padding on the right, one with `padding` on either side,
            `position` ids counting up, `type` ids, or a plain `number`.
        high: exclusive upper bound of integer values.
    """

    kind: Kind
    high: int = 2


class Source(ABC):
    """A model as the user named it.

    Attributes:
        text: how it was named.
        inputs: its inputs with their dynamic dimensions.
        domains: which values each input may take, by name.
        hashes: SHA-256 of the files that it was read from, by path relative to the model's folder.
        size_bytes: bytes of its weights.
    """

    text: str
    inputs: tuple[Input, ...]
    domains: dict[str, Domain]
    hashes: dict[str, str]
    size_bytes: int

    @property
    def loaded_bytes(self) -> int:
        """Memory that the reference takes; more than `size_bytes` where it has to be decoded."""
        return self.size_bytes

    @abstractmethod
    def reference(self) -> Engine:
        """The untouched model in eager PyTorch, weights loaded. Never the captured, patched or rewritten one."""

    @abstractmethod
    def capture(self, dtype: torch.dtype = torch.float32) -> Program:
        """The model as a Program, floating weights converted to `dtype` lazily."""

    def sample(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random valid inputs of these sizes; every mask has padding in all rows but the first where there is room for
        it."""
        generator = torch.Generator().manual_seed(seed)
        sizes = {PAST: 0, **sizes}
        return {i.name: sample_input(i, self.domains.get(i.name), sizes, generator) for i in self.inputs}


def sample_input(spec: Input, domain: Domain | None, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """One random input. Without a domain: normal floats, and integers below 2."""
    shape = spec.resolve(sizes)
    kind = domain.kind if domain else "number"
    if kind in ("mask", "padding"):
        mask = torch.ones(shape, dtype=spec.dtype)
        for row in range(1, shape[0]):  # a different amount in each row
            if kind == "padding" and row % 2:
                mask[row, : min(row, shape[-1] - 1)] = 0
            else:
                mask[row, max(1, shape[-1] - row) :] = 0
        return mask
    if kind == "position":
        return torch.arange(shape[-1]).expand(shape).to(spec.dtype).clone()
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    return torch.randint(0, domain.high if domain else 2, shape, generator=generator).to(spec.dtype)
