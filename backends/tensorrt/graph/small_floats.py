"""Weights in small floats as `DequantizeLinear`, in the forms that TensorRT reads inside its products.

`fp8`: E4M3 with one scale for the whole weight, or one for every row of a matrix. `nvfp4`: two of them, as NVIDIA's own
exporter writes it. The inner one makes E4M3 scales and the float32 number for the whole weight to scales, the outer one
E2M1 codes in blocks of 16 and these to the weight, in float32; a cast follows where the engine computes in 16 bits. The
numbers are those of `moec::dequantize_float`, bit by bit.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from moec.backends.onnx.emit import Emitter
from moec.backends.onnx.floats import SmallFloats
from moec.backends.onnx.tensors import DTYPES, WeightTensor
from moec.weights import lazy
from moec.weights.lazy import Weight

OPSET = 23  # the first that has E2M1
SCALES = (torch.float32, torch.float16, torch.bfloat16)


class E4m3(WeightTensor):  # type: ignore[misc]  # onnx_ir is Any to mypy
    """Numbers of 8 bits whose bytes come from a lazy uint8 weight."""

    def __init__(self, weight: Weight, name: str) -> None:
        dtype = ir.DataType.FLOAT8E4M3FN
        read = lambda: ir.Tensor(weight.load().numpy().view(dtype.numpy()), dtype=dtype, name=name)  # noqa: E731
        ir.LazyTensor.__init__(self, read, dtype=dtype, shape=ir.Shape(weight.shape), name=name)
        self.weight = weight


class E2m1(WeightTensor):  # type: ignore[misc]
    """Numbers of 4 bits whose bytes come from a lazy uint8 weight `[..., K/2]`, the first in the low half."""

    def __init__(self, weight: Weight, name: str) -> None:
        shape = ir.Shape((*weight.shape[:-1], 2 * weight.shape[-1]))
        read = lambda: ir.PackedTensor(weight.load().flatten().numpy(), ir.DataType.FLOAT4E2M1, shape=shape, name=name)  # noqa: E731
        ir.LazyTensor.__init__(self, read, dtype=ir.DataType.FLOAT4E2M1, shape=shape, name=name)
        self.weight = weight


def why_not_floats(weight: SmallFloats) -> str:
    """Why TensorRT cannot read a weight in small floats, in a few words; empty when it can. GPUs are `formats`'
    business."""
    scale = weight.scale.dtype if weight.overall is None else weight.overall.dtype
    if scale not in SCALES or weight.dtype not in SCALES:
        return f"TensorRT does not scale in {str(scale if scale not in SCALES else weight.dtype)[6:]}"
    if weight.overall is not None and weight.overall.shape:
        return "TensorRT has one number for a whole weight of nvfp4, not one for each matrix of a stack"
    if weight.overall is None and weight.scale.shape and weight.scale.shape[-1] != 1:
        return f"TensorRT has one scale for a whole weight of fp8, or one for each row, not blocks of {weight.group}"
    return ""


def emit_floats(emit: Emitter, weight: SmallFloats, role: str) -> ir.Value:
    """What a weight stands for, in its dtype."""
    if weight.overall is None:
        value, made = _fp8(emit, weight, role), weight.scale.dtype
    else:
        value, made = _nvfp4(emit, weight, weight.overall, role), weight.overall.dtype
    return emit.cast(value, DTYPES[made], DTYPES[weight.dtype])


def _fp8(emit: Emitter, weight: SmallFloats, role: str) -> ir.Value:
    if not weight.scale.shape:
        return emit(
            "DequantizeLinear",
            emit.weight(weight.packed, f"{role}.codes", E4m3),
            emit.weight(weight.scale, f"{role}.scale"),
        )
    cut = lazy.rowwise("cut", lambda t: t.reshape(len(t), -1, weight.group), weight.packed)
    return emit_rows(emit, cut, weight.scale, weight.shape, role, E4m3)


def _nvfp4(emit: Emitter, weight: SmallFloats, overall: Weight, role: str) -> ir.Value:
    steps = emit(
        "DequantizeLinear", emit.weight(weight.scale, f"{role}.scales", E4m3), emit.weight(overall, f"{role}.overall")
    )
    codes = emit.weight(weight.packed, f"{role}.codes", E2m1)
    return emit("DequantizeLinear", codes, steps, axis=len(weight.shape) - 1, block_size=weight.group)


def emit_rows(
    emit: Emitter,
    codes: Weight,
    scale: Weight,
    shape: tuple[int, ...],
    role: str,
    kind: type[WeightTensor] = WeightTensor,
) -> ir.Value:
    """A weight with one scale along a single axis, which is all that TensorRT has besides blocks: codes as a matrix
    with a scale a row.

    Args:
        codes: `[A, B, block]`, whose first two dimensions become one.
        scale: `A * B` of them in any shape `[A, …]`.
        shape: of the weight.
    """
    rows = lazy.merged(codes)
    scales = lazy.merged(lazy.rowwise("flat", lambda s: s.reshape(len(s), -1), scale))
    value = emit(
        "DequantizeLinear", emit.weight(rows, f"{role}.codes", kind), emit.weight(scales, f"{role}.scales"), axis=0
    )
    return value if rows.shape == shape else emit("Reshape", value, emit.constant(list(shape)))
