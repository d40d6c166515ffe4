"""A quantized program with plain weights again, each of which knows the codes that it is decoded from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from moec.errors import MoecError
from moec.program.dialect_call import DEQUANTIZE, DEQUANTIZE_FLOAT, DequantizeCall, DequantizeFloatCall
from moec.program.program import Program
from moec.recognition.weight_roles import PACKED
from moec.weights.lazy import Weight, decoded
from moec.weights.weight import FloatCodes, PackedWeight


def is_quantized(program: Program) -> bool:
    """Whether any weight of a program stands behind `moec::dequantize` or `moec::dequantize_float`."""
    return bool(program.nodes(DEQUANTIZE, DEQUANTIZE_FLOAT))


def refuse_floats(stored: Mapping[str, Weight], form: str, where: str) -> None:
    """Raise M206 for weights in small floats, in a form that has none."""
    name = next((name for name, weight in stored.items() if isinstance(weight.coded, FloatCodes)), None)
    if name is not None:
        what = f"cannot save the program in {form}: {name} is in small floats (fp8, nvfp4), which it does not have"
        raise MoecError("M206", what, where, "quantize with format=int, or write --hf-format compressed-tensors")


def with_plain_weights(program: Program) -> Program:
    """A copy in which every weight is read by its own name again; those that are packed know their codes
    (`Weight.coded`)."""
    plain = program.clone()
    for node in plain.nodes(DEQUANTIZE, DEQUANTIZE_FLOAT):
        codes, weight = _decoded(plain, node)
        name = str(codes.target).removesuffix(PACKED)
        with plain.graph.inserting_before(node):
            node.replace_all_uses_with(plain.read_weight(plain.add_weight(name, weight)))
    plain.finish()
    return plain


def _decoded(program: Program, node: fx.Node) -> tuple[fx.Node, Weight]:
    """The node that reads a call's codes, and the weight that they stand for."""
    if node.target == DEQUANTIZE_FLOAT:
        floats = DequantizeFloatCall(node)
        codes, scale, overall = (program.weight_of(a) for a in (floats.codes, floats.scale, floats.overall))
        assert codes is not None and scale is not None
        return floats.codes, decoded(FloatCodes(codes, scale, overall, floats.dtype, floats.format))
    call = DequantizeCall(node)
    packed, scale, zero = (program.weight_of(a) for a in (call.packed, call.scale, call.zero))
    assert packed is not None and scale is not None
    return call.packed, decoded(PackedWeight(packed, scale, zero, call.bits))
