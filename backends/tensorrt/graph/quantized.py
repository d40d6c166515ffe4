"""Packed weights as `DequantizeLinear` of signed integers, which TensorRT folds into the product that reads them.

TensorRT wants a zero point of 0 and scales that are strictly positive, while moec's symmetric grids have negative
scales wherever a group's largest number is positive. Codes cannot simply be turned around: the lowest one, -8, has no
counterpart. So the magnitude goes into `DequantizeLinear` and the signs follow as a product, which is exact; where all
scales are positive there is none, and only then can TensorRT read packed bytes inside its product. Four bits are blocks
along the last axis; eight are rows `[out * groups, block]` with a scale each, since blocks of INT8 are not in
TensorRT's documentation; two are stored as four. Small floats are `small_floats`' business.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from moec.backends.onnx.emit import DOMAIN, Emitter, take_place
from moec.backends.onnx.floats import SmallFloats, read_floats
from moec.backends.onnx.packed import read_quantized
from moec.backends.onnx.tensors import WeightTensor
from moec.backends.tensorrt.graph.formats import lacking
from moec.backends.tensorrt.graph.small_floats import emit_floats, emit_rows, why_not_floats
from moec.backends.tensorrt.policy import BuildPlan
from moec.dialect import pack
from moec.program.dialect_call import DEQUANTIZE, DEQUANTIZE_FLOAT, DequantizeCall, DequantizeFloatCall
from moec.program.program import Program
from moec.quantization.small_floats import bits_of
from moec.targets.backend import Refusal
from moec.weights import lazy
from moec.weights.lazy import Weight
from moec.weights.weight import PackedWeight

BLOCKS = (64, 128)  # of four bits; what NVIDIA documents for weights alone
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Codes(WeightTensor):  # type: ignore[misc]  # onnx_ir is Any to mypy
    """Signed integers of 4 bits whose bytes come from a lazy uint8 weight `[..., K/2]`, low nibble first."""

    def __init__(self, weight: Weight, name: str) -> None:
        shape = ir.Shape((*weight.shape[:-1], 2 * weight.shape[-1]))
        read = lambda: ir.PackedTensor(weight.load().flatten().numpy(), ir.DataType.INT4, shape=shape, name=name)  # noqa: E731
        ir.LazyTensor.__init__(self, read, dtype=ir.DataType.INT4, shape=shape, name=name)
        self.weight = weight


def why_not(weight: PackedWeight) -> str:
    """Why TensorRT cannot read a packed weight, in a few words; empty when it can."""
    if weight.zero is not None:
        return "TensorRT has no zero points"
    if weight.bits not in (2, 4, 8):
        return f"there is no form for {weight.bits} bits"
    if weight.bits < 8 and weight.group not in BLOCKS:
        return f"TensorRT reads blocks of {' or '.join(map(str, BLOCKS))}, not of {weight.group}"
    return "" if weight.dtype in DTYPES else f"TensorRT does not scale in {str(weight.dtype)[6:]}"


def unreadable(program: Program, plan: BuildPlan) -> list[Refusal]:
    """The quantized weights of a program whose grid TensorRT, or a GPU of the plan, does not read."""
    found = []
    for node in program.nodes(DEQUANTIZE, DEQUANTIZE_FLOAT):
        call = DequantizeCall(node) if node.target is DEQUANTIZE else DequantizeFloatCall(node)
        reason, fix = _why_not_read(program, call, plan)
        if reason:
            what = f"TensorRT cannot read this quantized weight: {reason}"
            found.append(Refusal(what, str(next(iter(call.tensors().values()))), fix))
    return found


_COMPUTED = "it is computed"
_FIX = f"quantize with format=int, symmetric=True and group={'|'.join(map(str, BLOCKS))}"


def _why_not_read(program: Program, call: DequantizeCall | DequantizeFloatCall, plan: BuildPlan) -> tuple[str, str]:
    """The reason, empty when there is none, and the way out."""
    if isinstance(call, DequantizeCall):
        packed, scale, zero = (program.weight_of(a) for a in (call.packed, call.scale, call.zero))
        known = None if packed is None or scale is None else PackedWeight(packed, scale, zero, call.bits)
        return (_COMPUTED if known is None else why_not(known)), _FIX
    codes, scale, overall = (program.weight_of(a) for a in (call.codes, call.scale, call.overall))
    if codes is None or scale is None:
        return _COMPUTED, _FIX
    kind = call.format
    why = why_not_floats(SmallFloats(codes, scale, None, bits_of(kind), overall, kind, call.dtype))
    missing = lacking(kind, plan.edition, plan.architectures)
    return (why, f"quantize with format={kind}") if why or missing is None else (missing[0], f"{missing[1]}; or {_FIX}")


def emit_weight(emit: Emitter, weight: Weight | PackedWeight, role: str) -> ir.Value:
    """A weight as an initializer, or as what a packed one stands for."""
    if not isinstance(weight, PackedWeight):
        return emit.weight(weight, role)
    if isinstance(weight, SmallFloats):
        return emit_floats(emit, weight, role)
    signs = bool((weight.scale.load() < 0).any())
    size = lazy.rowwise("magnitude", lambda s: torch.where(s == 0, 1, s.abs()), weight.scale)
    value = _bytes(emit, weight, size, role) if weight.bits == 8 else _nibbles(emit, weight, size, role)
    return _signed(emit, weight, value, role) if signs else value


def _nibbles(emit: Emitter, weight: PackedWeight, size: Weight, role: str) -> ir.Value:
    def signed(packed: Tensor, scale: Tensor) -> Tensor:
        if weight.bits == 2:
            places = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
            packed = pack(
                ((packed.unsqueeze(-1) >> places) & 3).flatten(-2) + 6, 4
            )  # 2 is the middle of two bits, 8 that of four
        return _without_zeros(packed ^ 0x88, scale)  # from excess 8 to two's complement

    codes = emit.weight(lazy.rowwise("signed", signed, weight.packed, weight.scale), f"{role}.codes", Codes)
    return emit(
        "DequantizeLinear",
        codes,
        emit.weight(size, f"{role}.scales"),
        axis=len(weight.shape) - 1,
        block_size=weight.group,
    )


def _bytes(emit: Emitter, weight: PackedWeight, size: Weight, role: str) -> ir.Value:
    def signed(packed: Tensor, scale: Tensor) -> Tensor:
        return _without_zeros(packed ^ 0x80, scale).view(torch.int8).reshape(-1, weight.group)

    cut = lazy.rowwise(
        "signed", lambda p, s: signed(p, s).reshape(len(p), -1, weight.group), weight.packed, weight.scale
    )
    return emit_rows(emit, cut, size, weight.shape, role)


def _without_zeros(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes of 0 wherever the scale is 0 and 1 stands in for it."""
    empty = (scale == 0).repeat_interleave(codes.shape[-1] // scale.shape[-1], -1)
    return torch.where(empty, torch.zeros((), dtype=codes.dtype), codes)


def _signed(emit: Emitter, weight: PackedWeight, value: ir.Value, role: str) -> ir.Value:
    signs = lazy.rowwise("signs", lambda s: torch.where(s < 0, -1.0, 1.0).to(s.dtype).unsqueeze(-1), weight.scale)
    cut = emit("Reshape", value, emit.constant([*weight.scale.shape, weight.group]))
    return emit("Reshape", emit("Mul", cut, emit.weight(signs, f"{role}.signs")), emit.constant(list(weight.shape)))


SIGNS = "its scales have signs, which are a product of their own; quantize with positive_scales=True"
BYTES = "its 8-bit integers are in blocks, and products read one scale a row; format=fp8 has one for all"
FP4 = "products with activations of 16 bits or more do not read 4-bit floats; its bytes are saved, no time"


def unfolded(value: ir.Value, weight: Weight | PackedWeight) -> str:
    """Why TensorRT does not read what `emit_weight` gave inside the product, as far as TensorRT-RTX 1.7 shows; empty
    when it seems to.

    Nothing could be run, but plans have sizes. Where weights are read packed, a plan is little more than they are. Else
    a kernel of 140 kB or more lies beside them, which unpacks them; or small ones are constants of 16 bits a number.
    """
    if not isinstance(weight, PackedWeight):
        return ""
    if isinstance(weight, SmallFloats) and weight.overall is not None:
        return FP4
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Cast"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    codes = node.inputs[0] if node is not None else None
    in_parts = codes is not None and codes.shape is not None and codes.shape[-1] != weight.shape[-1]
    return SIGNS if node is not None and node.op_type == "Mul" else BYTES if in_parts else ""


def lower_quantized(model: ir.Model) -> list[dict[str, Any]]:
    """Replace every `moec::Dequantize` and `moec::DequantizeFloat` node of the main graph that is read, in place;
    weights stay lazy.

    Returns:
        One record a weight: `node`, `op`, `weight`, `kind`, `bits`, `block`, `bytes`, and `unfolded`, why TensorRT will
            not read it packed.
    """
    kinds, found = ("Dequantize", "DequantizeFloat"), []
    for node in [n for n in list(model.graph) if n.domain == DOMAIN and n.op_type in kinds and n.outputs[0].uses()]:
        weight, emit = read_quantized(node) or read_floats(node), Emitter(model.graph, node)
        assert weight is not None, "refused before: see `unreadable`"
        name = str(node.inputs[0].name if node.inputs[0] is not None else emit.name)
        value = emit_weight(emit, weight, "weight")
        sizes = {
            "kind": weight.kind,
            "bits": weight.bits,
            "block": weight.group,
            "bytes": weight.size_bytes,
            "unfolded": unfolded(value, weight),
        }
        take_place(value, node.outputs[0])
        model.graph.remove(node, safe=True)
        found.append({"node": emit.name, "op": "DequantizeLinear", "weight": name, **sizes})
    return found
