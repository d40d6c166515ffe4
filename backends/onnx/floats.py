"""Weights in small floats: a `moec::DequantizeFloat` node read back as lazy tensors, and the refusal by targets that
have no lowering for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir
import torch

from moec.backends.onnx.emit import DOMAIN
from moec.backends.onnx.tensors import DTYPES, weight_of
from moec.program.dialect_call import DEQUANTIZE_FLOAT, DequantizeFloatCall
from moec.program.program import Program
from moec.quantization.small_floats import bits_of
from moec.targets.backend import Refusal
from moec.weights.lazy import Weight
from moec.weights.weight import PackedWeight


@dataclass(frozen=True)
class SmallFloats(PackedWeight):
    """A lazy weight `[..., out, in]` in small floats, as `moec::dequantize_float` defines it; `packed` are its codes,
    and `zero` is None.

    Attributes:
        overall: `nvfp4` only, one number for the weight.
        format: `fp8` or `nvfp4`.
        rounded: the dtype of the weight that it stands for; computed in the scales' (`fp8`) or that of `overall`.
    """

    overall: Weight | None
    format: str
    rounded: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight that it stands for."""
        return self.rounded

    @property
    def group(self) -> int:
        """Elements along `in` that share a scale; of one scale for all, all of them."""
        return self.shape[-1] // (self.scale.shape[-1] if self.scale.shape else 1)

    @property
    def size_bytes(self) -> int:
        """What it takes in a file."""
        return sum(part.size_bytes for part in self.parts())

    @property
    def kind(self) -> str:
        """`fp8, one scale`, for reports."""
        return f"{self.format}, {f'blocks of {self.group}' if self.scale.shape else 'one scale'}"

    def parts(self) -> list[Weight]:
        """Codes, scales, and the number for all if there is one."""
        return [self.packed, self.scale] + ([] if self.overall is None else [self.overall])

    def each(self, function: Callable[[Weight], Weight]) -> SmallFloats:
        """The same function of codes and scales: one that selects or moves whole rows."""
        scale = function(self.scale) if self.scale.shape else self.scale
        return SmallFloats(function(self.packed), scale, None, self.bits, self.overall, self.format, self.rounded)


def read_floats(node: ir.Node | None) -> SmallFloats | None:
    """What a node stands for if it is a `moec::DequantizeFloat` of weights, else None."""
    if node is None or node.domain != DOMAIN or node.op_type != "DequantizeFloat":
        return None
    codes, scale, overall = (weight_of(v) for v in (*node.inputs, None)[:3])
    if codes is None or scale is None:
        return None
    format_, number = node.attributes.get_string("format"), node.attributes.get_int("dtype", 0)
    computed = scale.dtype if overall is None else overall.dtype
    rounded = next((ours for ours, theirs in DTYPES.items() if int(theirs) == number), computed)
    return SmallFloats(codes, scale, None, bits_of(format_), overall, format_, rounded)


def refuse_floats(program: Program, runtime: str, accepted: str) -> list[Refusal]:
    """One refusal for each weight behind `moec::dequantize_float`.

    Args:
        runtime: its name, for the reason.
        accepted: what it takes, as options of `quantize`.
    """
    found = []
    for call in (DequantizeFloatCall(node) for node in program.nodes(DEQUANTIZE_FLOAT)):
        reason = f"moec does not lower {call.format} weights to {runtime}; only PyTorch and TensorRT run them"
        found.append(Refusal(reason, str(call.codes), f"quantize with {accepted}"))
    return found
