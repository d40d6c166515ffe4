"""Checkpoints in GPTQ's form, as AutoGPTQ, GPTQModel and auto-round write it: the same integers, packed along the
inputs.

A linear layer's `weight` is replaced by `qweight` (int32 `[in*bits/32, out]`, lowest bits first), `qzeros` (int32
`[groups, out*bits/32]`), `scales` `[groups, out]` and `g_idx` `[in]`, the group of each input. Turned around and seen
as bytes, the first is what `moec::dequantize` reads. The first version of the form (`checkpoint_format` "gptq",
auto-round's "auto_round:auto_gptq") stores zero points less one. Rules (`dynamic`) are GPTQModel's: regular expressions
that the start of a layer's name has to match, with what is different there; the first that matches decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.checkpoint_format import CheckpointFormat, are_scales
from moec.huggingface.formats.compressed_tensors import BITS, as_bytes, in_short_groups
from moec.weights.lazy import Weight, decoded, rowwise, transpose, whole
from moec.weights.weight import PackedWeight

WEIGHT, ZEROS, SCALES, ORDER = ".qweight", ".qzeros", ".scales", ".g_idx"
# whether zero points are stored less one
_LAYOUTS = {
    "gptq": True,
    "gptq_v2": False,
    "auto_round:auto_gptq": True,
    "auto_round:gptqmodel": False,
    "auto_round": False,
}
_WAY_OUT = "use the unquantized checkpoint, or one that was quantized without act-order (desc_act=false)"


class Gptq(CheckpointFormat):
    """Integers packed along the inputs; see this module."""

    methods = ("gptq", "auto-round")

    def why_not(self, config: Mapping[str, Any]) -> str:
        if config.get("bits") not in BITS:
            return f"it has {config.get('bits')!r} bits; moec reads {', '.join(map(str, BITS))}"
        layout = _layout(config)
        if layout not in _LAYOUTS:
            return f"its integers are packed as {layout!r}; moec reads {', '.join(_LAYOUTS)}"
        for rule in _rules(config):
            try:
                re.compile(_pattern(rule))
            except re.error as error:
                return f"its rule {rule!r} is no regular expression: {error}"
        rounded = config.get("act_bits", 16)
        return "" if rounded is None or int(rounded) >= 16 else f"activations are quantized too, to {rounded} bits"

    def decode(self, stored: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
        return decode(stored, _LAYOUTS[_layout(config)], partial(_symmetric, config))


def _rules(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("dynamic")
    return found if isinstance(found, Mapping) else {}


def _pattern(rule: str) -> str:
    return rule.removeprefix("+:").removeprefix("-:")


def _symmetric(config: Mapping[str, Any], base: str) -> bool:
    """Whether a layer's zero points are all the middle, by the rules or by what is said of most layers."""
    said = next((value for rule, value in _rules(config).items() if re.match(_pattern(rule), base)), None)
    own = said.get("sym") if isinstance(said, Mapping) else None
    return bool(config.get("sym", False) if own is None else own)


def _layout(config: Mapping[str, Any]) -> str:
    given = (
        config.get("packing_format")
        if config.get("quant_method") == "auto-round"
        else config.get("checkpoint_format", "gptq")
    )
    return str(given)


def decode(
    stored: Mapping[str, Weight], less_one: bool = True, symmetric: Callable[[str], bool] = lambda _: False
) -> dict[str, Weight]:
    """The checkpoint's tensors with every packed weight under its own name, decoded when it is read.

    Widths and groups are those of the tensors' shapes, so layers may differ.

    Args:
        less_one: zero points are stored less one.
        symmetric: whether all zero points of a layer are the middle, so that none need be kept; checked when the
            scales are read.

    Raises:
        MoecError: M205 when tensors are missing or do not fit each other, M206 when inputs are reordered (act-order).
    """
    packed = [n.removesuffix(WEIGHT) for n in stored if n.endswith(WEIGHT)]
    if not packed:
        raise MoecError(
            "M205",
            f"config.json says that it is quantized, but no tensor is called …{WEIGHT[1:]}",
            "model.safetensors",
            "download the files again",
        )
    spent = {base + ending for base in packed for ending in (WEIGHT, ZEROS, SCALES, ORDER)}
    plain = {n: w for n, w in stored.items() if n not in spent}
    return {**plain, **{f"{base}.weight": decoded(_coded(base, stored, less_one, symmetric(base))) for base in packed}}


def _coded(base: str, stored: Mapping[str, Weight], less_one: bool, symmetric: bool) -> PackedWeight:
    if base + ZEROS not in stored or base + SCALES not in stored:
        raise MoecError(
            "M205",
            f"{base + WEIGHT!r} has no scales or no zero points beside it",
            stored[base + WEIGHT].origin,
            "download the files again",
        )
    words, scales, zeros = stored[base + WEIGHT], stored[base + SCALES], stored[base + ZEROS]
    bits, width = _sizes(base, words, scales, zeros)
    if base + ORDER in stored:
        _check_order(stored[base + ORDER], base + ORDER, width, width // scales.shape[0])
    codes = rowwise("bytes", as_bytes, transpose(words, 0, 1))
    turned = transpose(scales, 0, 1)
    points = whole(f"zeros[{bits}]", lambda t: unpacked_columns(t, bits, less_one), zeros)
    if symmetric:
        return in_short_groups(
            codes, rowwise("centred", lambda s, z: _centred(s, z, bits, base), turned, points), None, bits
        )
    return in_short_groups(codes, turned, points, bits)


def _sizes(base: str, words: Weight, scales: Weight, zeros: Weight) -> tuple[int, int]:
    """Bits and inputs, from what the shapes say of each other."""
    groups, out = scales.shape if len(scales.shape) == 2 else (0, 0)
    bits = next((b for b in BITS if groups and zeros.shape == (groups, -(-out * b // 32))), 0)
    width = words.shape[0] * 32 // bits if bits else 0
    if (
        not bits
        or words.shape[1:] != (out,)
        or words.dtype != torch.int32
        or zeros.dtype != torch.int32
        or not are_scales(scales)
        or width % groups
    ):
        kind = str(scales.dtype)[6:]
        shapes = f"{list(words.shape)}, scales {kind} {list(scales.shape)}, zero points {list(zeros.shape)}"
        raise MoecError("M205", f"{base + WEIGHT!r} does not fit: {shapes}", words.origin, "download the files again")
    return bits, width


def _check_order(weight: Weight, name: str, width: int, group: int) -> None:
    """Raise M205 unless each input has a group, and M206 unless these are of neighbours, in their order."""
    if weight.shape != (width,) or weight.dtype not in (torch.int32, torch.int64):
        what = f"{name!r} is {str(weight.dtype)[6:]} {list(weight.shape)}, no group for each of {width} inputs"
        raise MoecError("M205", what, weight.origin, "download the files again")
    order = weight.load()
    if not torch.equal(order.to(torch.int64), torch.arange(len(order)) // group):
        raise MoecError(
            "M206",
            "its inputs are reordered by importance (act-order), which packed kernels do not read",
            name,
            _WAY_OUT,
        )


def _centred(scales: Tensor, zeros: Tensor, bits: int, name: str) -> Tensor:
    if scales.device.type != "meta" and bool((zeros != 2 ** (bits - 1)).any()):
        raise MoecError(
            "M205",
            "config.json says that the grid is symmetric, the zero points say otherwise",
            name + ZEROS,
            "set sym=false in config.json",
        )
    return scales


def unpacked_columns(words: Tensor, bits: int, less_one: bool) -> Tensor:
    """Zero points packed along the last dimension, int32 `[groups, out*bits/32]`, as uint8 `[out, groups]`.

    One is added to whole words, as their writers took it from whole words: what was borrowed comes back.
    """
    one = sum(1 << at for at in range(0, 32, bits))
    full = (words.to(torch.int64) & 0xFFFFFFFF) + (one if less_one else 0)
    shifts = torch.arange(0, 32, bits, dtype=torch.int64, device=words.device)
    numbers = (full.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return numbers.flatten(1).to(torch.uint8).t().contiguous()
