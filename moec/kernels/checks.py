"""What the kernels take, checked from shapes and dtypes alone, and ids on request: never a wild read, never a guess."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moec.dialect import Activation, Routing
from moec.dialect.experts import check_ids
from moec.errors import MoecError
from moec.kernels.packed import ExpertCodes
from moec.kernels.starting import interpreting, is_recording

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST = (
    2**31 - 2**16
    # what the kernels count in 32 bits: pairs, tokens, elements of one expert; a block's lanes beyond the last are
    # counted too
)
__all__ = ["DTYPES", "LARGEST", "check_experts", "check_ids", "check_route", "check_router", "check_shapes"]


def check_route(logits: Tensor, bias: Tensor | None, rule: Routing) -> None:
    """Raise M212 unless the tensors fit the router's kernel, M203 unless the rule fits the number of experts."""
    _on_one_device("moec::route", logits=logits, bias=bias)
    _of_dtype("moec::route", DTYPES, logits=logits, bias=bias)
    experts = logits.shape[-1] if logits.dim() else 0
    _demand(
        bias is None or bias.shape == (experts,),
        lambda: f"bias has shape {_of(bias)}, logits have {experts} experts",
        "moec::route",
    )
    _demand(logits.numel() <= LARGEST * max(experts, 1), "more tokens than 32 bits count", "moec::route")
    _check_rule(experts, rule)


def check_router(x: Tensor, weight: Tensor, bias: Tensor | None, selection_bias: Tensor | None, rule: Routing) -> None:
    """Raise M212 unless tokens and router fit together and are what the kernels take, M203 unless the rule fits."""
    where, tensors = (
        "moec::moe",
        {"x": x, "router_weight": weight, "router_bias": bias, "selection_bias": selection_bias},
    )
    _on_one_device(where, **tensors)
    _of_dtype(where, DTYPES, **tensors)
    _demand(
        x.dim() > 0 and weight.dim() == 2 and weight.shape[1] == x.shape[-1],
        lambda: f"router_weight is {_of(weight)}, x {_of(x)}",
        where,
    )
    for name in ("router_bias", "selection_bias"):
        given = tensors[name]
        if given is not None and given.shape != weight.shape[:1]:
            raise _refused(f"{name} is {_of(given)}, not {[weight.shape[0]]}", where)
    _demand(
        max(weight.numel(), x.numel() // max(x.shape[-1], 1)) <= LARGEST,
        "more tokens, or a larger router, than 32 bits count",
        where,
    )
    _check_rule(weight.shape[0], rule)


def _check_rule(experts: int, rule: Routing) -> None:
    limits = (
        1 <= rule.top_groups <= rule.groups
        and experts % rule.groups == 0
        and (rule.group_score == "max" or experts // rule.groups >= 2)
    )
    if not (1 <= rule.top_k <= experts and limits):
        raise MoecError(
            "M203",
            f"{rule} cannot choose among {experts} experts",
            "moec::route",
            "pass a rule whose top_k and groups fit the logits",
        )


def check_experts(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor | ExpertCodes,
    w_out: Tensor | ExpertCodes,
    b_in: Tensor | None,
    b_out: Tensor | None,
    rule: Activation,
) -> None:
    """Raise M212 unless these are on one device, of dtypes that the kernels have, and of shapes that fit
    together."""
    where = "moec::experts"
    parts = {"w_in": w_in, "w_out": w_out}
    plain = {k: w for k, w in parts.items() if isinstance(w, Tensor)}
    packed = {
        f"{k}.{n}": t
        for k, w in parts.items()
        if isinstance(w, ExpertCodes)
        for n, t in (("values", w.values), ("scale", w.scale), ("zero", w.zero))
    }
    _on_one_device(where, x=x, ids=ids, weights=weights, b_in=b_in, b_out=b_out, **plain, **packed)
    _of_dtype(where, DTYPES, x=x)
    _of_dtype(where, (x.dtype,), **plain)
    _of_dtype(where, DTYPES, weights=weights, b_in=b_in, b_out=b_out)
    _of_dtype(where, (torch.int64,), ids=ids)
    for name, weight in parts.items():
        if isinstance(weight, ExpertCodes):
            _check_packed(weight, f"{where}, {name}")
    _demand(not (rule.cap or rule.up_cap), "the kernels have no soft caps between an expert's matrices", where)
    check_shapes(x, ids, weights, w_in, w_out, b_in, b_out, rule)


def check_shapes(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    w_in: Tensor | ExpertCodes,
    w_out: Tensor | ExpertCodes,
    b_in: Tensor | None,
    b_out: Tensor | None,
    rule: Activation,
) -> None:
    """Raise M212 unless these are of shapes that fit together."""
    where = "moec::experts"
    _demand(x.dim() > 0 and ids.dim() > 0 and ids.shape[-1] > 0, lambda: f"x is {_of(x)}, ids {_of(ids)}", where)
    _demand(
        len(w_in.shape) == 3 and len(w_out.shape) == 3,
        lambda: f"matrices have shapes {_of(w_in)} and {_of(w_out)}, not [E, F*I, H] and [E, H, I]",
        where,
    )
    experts, inner, hidden = w_in.shape[0], w_out.shape[2], x.shape[-1]
    _demand(
        min(experts, inner, hidden) > 0,
        lambda: f"matrices have shapes {_of(w_in)} and {_of(w_out)}: nothing to multiply",
        where,
    )
    factor = rule.rows_per_neuron
    _demand(
        tuple(w_in.shape) == (experts, factor * inner, hidden),
        lambda: f"w_in is {_of(w_in)}, not {[experts, factor * inner, hidden]} (F = {factor})",
        where,
    )
    _demand(
        tuple(w_out.shape) == (experts, hidden, inner),
        lambda: f"w_out is {_of(w_out)}, not {[experts, hidden, inner]}",
        where,
    )
    _demand(
        b_in is None or b_in.shape == (experts, factor * inner),
        lambda: f"b_in is {_of(b_in)}, not {[experts, factor * inner]}",
        where,
    )
    _demand(
        b_out is None or b_out.shape == (experts, hidden),
        lambda: f"b_out is {_of(b_out)}, not {[experts, hidden]}",
        where,
    )
    _demand(
        ids.shape == weights.shape and ids.shape[:-1] == x.shape[:-1],
        lambda: f"x {_of(x)}, ids {_of(ids)} and weights {_of(weights)} don't fit",
        where,
    )
    _demand(
        ids.numel() <= LARGEST and factor * inner * hidden <= LARGEST,
        "more pairs or more weights an expert than 32 bits count",
        where,
    )
    for name, w in {"w_in": w_in, "w_out": w_out}.items():
        values = w if isinstance(w, Tensor) else w.values
        if values.shape[2] * values.stride(2) > LARGEST:
            reach = f"{name}'s rows reach further than 32 bits count: strides {list(values.stride())}"
            raise _refused(reach, where)


def _check_packed(weight: ExpertCodes, where: str) -> None:
    integers = weight.format != "fp8"
    _demand(
        weight.values.dtype == (torch.uint8 if integers else torch.float8_e4m3fn),
        lambda: f"packed values are {weight.values.dtype}, not uint8 or FP8",
        where,
    )
    _demand(not integers or weight.bits in (4, 8), lambda: f"{weight.bits} bits, not 4 or 8", where)
    experts, rows, depth = weight.shape
    wanted = (experts, -(-rows // weight.rows), -(-depth // weight.group))
    _of_dtype(where, DTYPES, scale=weight.scale)
    _demand(tuple(weight.scale.shape) == wanted, lambda: f"scales are {_of(weight.scale)}, not {list(wanted)}", where)
    zero = weight.zero
    _demand(
        zero is None or (integers and zero.shape == weight.scale.shape and zero.dtype == torch.uint8),
        lambda: f"zero points are {_of(zero)}",
        where,
    )
    dense = weight.scale.is_contiguous() and (zero is None or zero.is_contiguous())
    _demand(dense, "scales or zero points are not contiguous", where)
    _demand(
        weight.format != "int4" or weight.group % 2 == 0, lambda: f"groups of {weight.group} end inside a byte", where
    )


def _on_one_device(where: str, **tensors: Tensor | None) -> None:
    given = {name: t for name, t in tensors.items() if t is not None}
    devices = {t.device for t in given.values()}
    _demand(
        len(devices) == 1,
        lambda: "tensors are on different devices: " + ", ".join(f"{n} on {t.device}" for n, t in given.items()),
        where,
    )
    device = devices.pop()
    sparse = {name: t.layout for name, t in given.items() if t.layout != torch.strided}
    _demand(
        not sparse,
        lambda: ", ".join(f"{n} is {layout}" for n, layout in sparse.items()) + ": not a dense tensor",
        where,
    )
    _demand(
        device.type == "cuda" or interpreting() or is_recording(),
        lambda: f"the tensors are on {device}, and the kernels run on CUDA",
        where,
    )


def _of_dtype(where: str, allowed: tuple[torch.dtype, ...], **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in allowed:
            names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
            raise _refused(f"{name} is {tensor.dtype}, not {names}", where)


def _demand(holds: bool, what: str | Callable[[], str], where: str) -> None:
    """Raise M212 unless it holds. What is wrong is put into words only then: this runs at each call of each block."""
    if not holds:
        raise _refused(what if isinstance(what, str) else what(), where)


def _refused(what: str, where: str) -> MoecError:
    return MoecError("M212", what, where, "pass tensors as moec::experts and moec::route describe them, on one device")


def _of(tensor: Tensor | ExpertCodes | None) -> str:
    return str(None if tensor is None else list(tensor.shape))
