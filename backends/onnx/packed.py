"""Packed weights: a `moec::Dequantize` node read back as the lazy tensors that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch.nn import functional as F

from moec.backends.onnx.tensors import weight_of
from moec.dialect import pack
from moec.weights import Weight, rowwise


@dataclass(frozen=True)
class Quantized:
    """A lazy weight `[..., out, in]` that is packed, as `moec::dequantize` defines it.

    Attributes:
        packed: uint8 `[..., out, in * bits / 8]`.
        scale: `[..., out, in / block]`.
        zero: uint8 like scale, or None for the symmetric grid.
        bits: 2, 4 or 8.
    """

    packed: Weight
    scale: Weight
    zero: Weight | None
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it stands for."""
        return (*self.packed.shape[:-1], self.packed.shape[-1] * 8 // self.bits)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight that it stands for."""
        return self.scale.dtype

    @property
    def block(self) -> int:
        """Elements along `in` that share a scale."""
        return self.shape[-1] // self.scale.shape[-1]

    @property
    def size_bytes(self) -> int:
        """What it takes in a file."""
        zeros = 0 if self.zero is None else packed_zeros(self.zero, self.bits).size_bytes
        return self.packed.size_bytes + self.scale.size_bytes + zeros

    @property
    def kind(self) -> str:
        """`4 bits in blocks of 64, symmetric`, for reports."""
        return f"{self.bits} bits in blocks of {self.block}, {'symmetric' if self.zero is None else 'with zero points'}"

    def each(self, function: Callable[[Weight], Weight]) -> Quantized:
        """The same function of all parts: one that selects or moves whole rows."""
        return Quantized(function(self.packed), function(self.scale), None if self.zero is None else function(self.zero), self.bits)


def read_quantized(node: ir.Node | None) -> Quantized | None:
    """What a node stands for if it is a `moec::Dequantize` of weights, else None."""
    if node is None or node.domain != "moec" or node.op_type != "Dequantize":
        return None
    packed, scale, zero = (weight_of(v) for v in (*node.inputs, None)[:3])
    return None if packed is None or scale is None else Quantized(packed, scale, zero, node.attributes.get_int("bits"))


def packed_zeros(zero: Weight, bits: int) -> Weight:
    """Zero points `[..., out, blocks]` packed along the blocks, as the kernels read them; the last byte of a row is filled up."""
    return rowwise(f"pack[{bits}]", lambda t: pack(F.pad(t, (0, -t.shape[-1] % (8 // bits))), bits), zero)
