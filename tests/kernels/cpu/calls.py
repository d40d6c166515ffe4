"""The kernels for CPUs called without a runtime, on blocks made of tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moec.dialect import Activation, dequantize, pack
from moec.kernels.cpu.structures import BlockStructure, MatrixStructure, activation_structure

ISAS = ("plain", "avx2", "avx512", "avx512_bf16")
Place = Callable[[Tensor], Tensor]  # where a buffer lies in memory


@dataclass(frozen=True)
class Stack:
    """Matrices `[E, rows, columns]` as a kernel reads them. codes: uint8, with `scale` and maybe `zero`; else float32
    or bfloat16 in `data`, and in `bias`."""

    data: Tensor
    columns: int
    scale: Tensor | None = None
    zero: Tensor | None = None
    bias: Tensor | None = None
    bits: int = 32

    @classmethod
    def packed(cls, weight: Tensor, bits: int, group: int, zeros: bool, bias: Tensor | None = None) -> Stack:
        """Some codes of about these numbers; how they are rounded is not the subject."""
        grouped = weight.unflatten(-1, (-1, group))
        scale = (grouped.abs().amax(-1) * 2 / (2**bits - 1)).clamp(min=1e-6)
        middle = 2 ** (bits - 1)
        zero = (torch.arange(scale.numel()).reshape(scale.shape) % 3 + middle - 1).to(torch.uint8) if zeros else None
        offset = middle if zero is None else zero.unsqueeze(-1).float()
        codes = (grouped / scale.unsqueeze(-1) + offset).round().clamp(0, 2**bits - 1).to(torch.uint8)
        return cls(pack(codes.flatten(-2), bits), weight.shape[-1], scale.contiguous(), zero, bias, bits)

    def dense(self) -> Tensor:
        """The numbers that it stands for, in float32."""
        return self.data.float() if self.scale is None else dequantize(self.data, self.scale, self.zero, bits=self.bits)


@dataclass(frozen=True)
class Mixture:
    """Experts for a kernel."""

    first: Stack
    second: Stack
    activation: Activation = field(default_factory=Activation)
    score_before: bool = False
    left_out: bool = False

    @property
    def wide(self) -> tuple[Tensor | None, ...]:
        """Their tensors in float64, as the dialect takes them."""
        found = self.first.dense(), self.second.dense(), self.first.bias, self.second.bias
        return tuple(None if t is None else t.double() for t in found)


def here(library: ctypes.CDLL) -> list[str]:
    """The instruction sets of this processor that the library has."""
    return [name for name in ISAS if library.moec_cpu_isa(name.encode())]


def run(
    library: ctypes.CDLL,
    mixture: Mixture,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    isa: str = "",
    reversed_: bool = False,
    place: Place = lambda tensor: tensor.contiguous(),
) -> Tensor:
    """What the kernel makes of tokens `[T, H]`, rounded to bfloat16 where the matrices are.

    Raises ValueError with what it says."""
    given = x.bfloat16() if mixture.first.bits == 16 else x
    held = [place(t) for t in (given, ids, weights, torch.full_like(x, 7.0))]
    matrices = [_matrix(stack, place, held) for stack in (mixture.first, mixture.second)]
    activation = activation_structure(mixture.activation)
    sizes = (*ids.shape, mixture.first.data.shape[0], x.shape[1], mixture.second.columns)
    block = BlockStructure(
        *(t.data_ptr() for t in held[:4]), *sizes, *matrices, activation, mixture.score_before, mixture.left_out
    )
    wrong = library.moec_cpu_experts(ctypes.byref(block), isa.encode(), int(reversed_))
    if wrong:
        raise ValueError(wrong.decode())
    return held[3].clone()


def _matrix(stack: Stack, place: Place, held: list[Tensor]) -> MatrixStructure:
    parts = [None if t is None else place(t) for t in (stack.data, stack.scale, stack.zero, stack.bias)]
    held += [t for t in parts if t is not None]
    group = 0 if stack.scale is None else stack.columns // stack.scale.shape[-1]
    pointers = (None if t is None else t.data_ptr() for t in parts)
    return MatrixStructure(*pointers, stack.data.shape[1], stack.columns, group, stack.bits)
