"""A quantized program with plain weights again, each of which knows the integers that it is decoded from."""

from __future__ import annotations

from moec.errors import MoecError
from moec.program.dialect_call import DEQUANTIZE, DEQUANTIZE_FLOAT, DequantizeCall
from moec.program.program import Program
from moec.recognition.weight_roles import PACKED
from moec.weights.lazy import decoded
from moec.weights.weight import PackedWeight


def is_quantized(program: Program) -> bool:
    """Whether any weight of a program stands behind `moec::dequantize`."""
    return bool(program.nodes(DEQUANTIZE))


def refuse_floats(program: Program) -> None:
    """Raise M206 for weights in small floats, which are not written."""
    if program.nodes(DEQUANTIZE_FLOAT):
        raise MoecError(
            "M206",
            "cannot save the program as a quantized checkpoint: its weights are small floats (fp8, nvfp4); "
            "moec writes integers of 2, 4 and 8 bits",
            program.source,
            "quantize with format=int",
        )


def with_plain_weights(program: Program) -> Program:
    """A copy in which every weight is read by its own name again; those that are packed know their codes
    (`Weight.coded`)."""
    plain = program.clone()
    for node in plain.nodes(DEQUANTIZE):
        call = DequantizeCall(node)
        packed, scale, zero = (plain.weight_of(a) for a in (call.packed, call.scale, call.zero))
        assert packed is not None and scale is not None
        name = str(call.packed.target).removesuffix(PACKED)
        with plain.graph.inserting_before(node):
            node.replace_all_uses_with(
                plain.read_weight(plain.add_weight(name, decoded(PackedWeight(packed, scale, zero, call.bits))))
            )
    plain.finish()
    return plain
