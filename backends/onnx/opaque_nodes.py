"""Translations of torch operators to ONNX nodes that torch.onnx lacks: moec's dialect, as opaque nodes of domain
`moec`.

torch.onnx looks a node's schema up in onnx's registry, so the opaque operators are registered there first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import takewhile
from typing import Any

import torch

from moec.backends.onnx.emit import DOMAIN
from moec.backends.onnx.tensors import DTYPES

# inputs whose type is not that of the others
_KINDS = {"ids": "I", "mask": "M", "packed": "Q", "zero": "Q", "codes": "Q", "overall": "O"}
_WIDE = {"state": "W", "decay": "W", "rate": "W"}  # of moec::linear_attention, in float32 beside tokens in half


@cache
def translations() -> dict[Any, Callable[..., Any]]:
    """torch operator -> function that emits its opaque node, for torch.onnx's `custom_translation_table`."""
    from onnxscript import values

    opset = values.Opset(DOMAIN, 1)
    _register("Experts", torch.ops.moec.experts.default)
    _register("Moe", torch.ops.moec.moe.default)
    _register("Attention", torch.ops.moec.attention.default)
    _register("LinearAttention", torch.ops.moec.linear_attention.default, _WIDE)
    _register("SelectiveScan", torch.ops.moec.selective_scan.default, {"state": "W"})
    _register("CausalConv", torch.ops.moec.causal_conv.default)
    _register("Dequantize", torch.ops.moec.dequantize.default)
    _register("DequantizeFloat", torch.ops.moec.dequantize_float.default, {"scale": "S"})

    def emit_experts(x, ids, weights, w_in, w_out, b_in=None, b_out=None, **rule):  # type: ignore[no-untyped-def]
        return opset.Experts(
            x, ids, weights, w_in, w_out, b_in, b_out, **_attributes(torch.ops.moec.experts.default, rule)
        )

    def emit_moe(x, router_weight, router_bias, selection_bias, w_in, w_out, b_in=None, b_out=None, **rule):  # type: ignore[no-untyped-def]
        return opset.Moe(
            x,
            router_weight,
            router_bias,
            selection_bias,
            w_in,
            w_out,
            b_in,
            b_out,
            **_attributes(torch.ops.moec.moe.default, rule),
        )

    def emit_attention(query, key, value, mask=None, sinks=None, **rule):  # type: ignore[no-untyped-def]
        return opset.Attention(query, key, value, mask, sinks, **_attributes(torch.ops.moec.attention.default, rule))

    def emit_linear_attention(query, key, value, state, decay=None, rate=None, **rule):  # type: ignore[no-untyped-def]
        attributes = _attributes(torch.ops.moec.linear_attention.default, rule)
        return opset.LinearAttention(query, key, value, state, decay, rate, **attributes)

    def emit_selective_scan(x, delta, a, b, c, state):  # type: ignore[no-untyped-def]
        return opset.SelectiveScan(x, delta, a, b, c, state)

    def emit_causal_conv(x, window, weight, bias=None, **rule):  # type: ignore[no-untyped-def]
        return opset.CausalConv(x, window, weight, bias, **_attributes(torch.ops.moec.causal_conv.default, rule))

    def emit_dequantize(packed, scale, zero=None, **rule):  # type: ignore[no-untyped-def]
        return opset.Dequantize(packed, scale, zero, **_attributes(torch.ops.moec.dequantize.default, rule))

    def emit_dequantize_float(codes, scale, overall=None, *, format, dtype=None):  # type: ignore[no-untyped-def]
        return opset.DequantizeFloat(codes, scale, overall, format=format, dtype=int(DTYPES.get(dtype, dtype or 0)))

    ops = torch.ops.moec
    return {
        ops.experts.default: emit_experts,
        ops.moe.default: emit_moe,
        ops.attention.default: emit_attention,
        ops.linear_attention.default: emit_linear_attention,
        ops.selective_scan.default: emit_selective_scan,
        ops.causal_conv.default: emit_causal_conv,
        ops.dequantize.default: emit_dequantize,
        ops.dequantize_float.default: emit_dequantize_float,
    }


def _attributes(op: torch._ops.OpOverload, rule: dict[str, Any]) -> dict[str, Any]:
    """Every keyword argument, defaults put in (the exported graph drops them); ONNX has no boolean attributes."""
    given = {a.name: rule.get(a.name, a.default_value) for a in op._schema.arguments if a.kwarg_only}
    return {k: int(v) if isinstance(v, bool) else v for k, v in given.items()}


def _register(name: str, op: torch._ops.OpOverload, own: Mapping[str, str] | None = None) -> None:
    """Register an operator's schema with onnx: inputs and attributes are read off the torch operator's own schema.

    Inputs are optional from the first on that torch lets be None. `own`: types of inputs that differ from `_KINDS`.
    """
    import onnx.defs as defs

    if defs.has(name, 1, DOMAIN):
        return
    option, types_of = defs.OpSchema.FormalParameterOption, {**_KINDS, **(own or {})}
    tensors = {a.name: isinstance(a.type, torch.OptionalType) for a in op._schema.arguments if not a.kwarg_only}
    required = list(takewhile(lambda n: not tensors[n], tensors))
    optional = [n for n in tensors if n not in required]
    single = [defs.OpSchema.FormalParameter(n, types_of.get(n, "T"), "") for n in required]
    maybe = [defs.OpSchema.FormalParameter(n, types_of.get(n, "T"), "", param_option=option.Optional) for n in optional]
    kinds = {"str": defs.OpSchema.AttrType.STRING, "float": defs.OpSchema.AttrType.FLOAT}
    attributes = [
        defs.OpSchema.Attribute(a.name, kinds.get(str(a.type), defs.OpSchema.AttrType.INT), "", required=False)
        for a in op._schema.arguments if a.kwarg_only
    ]  # fmt: skip
    floats = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
    numbers = {
        "I": ["tensor(int64)"],
        "M": [*floats, "tensor(bool)"],
        "Q": ["tensor(uint8)"],
        "S": [*floats, "tensor(uint8)"],
        "O": floats,
        "W": floats,
    }
    allowed = {"T": floats, **numbers}
    types = [
        (kind, allowed[kind], "") for kind in dict.fromkeys(["T", *(types_of[n] for n in tensors if n in types_of)])
    ]
    defs.register_schema(
        defs.OpSchema(
            name,
            DOMAIN,
            1,
            "",
            inputs=single + maybe,
            outputs=[defs.OpSchema.FormalParameter(f"y{n or ''}", "T", "") for n in range(len(op._schema.returns))],
            type_constraints=types,
            attributes=attributes,
        )
    )
