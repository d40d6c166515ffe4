"""Checkpoints in the compressed-tensors format, as llm-compressor and vLLM write and read them: integers with scales,
read as they lie.

In `pack-quantized` a linear layer's `weight` is replaced by `weight_packed` (int32 `[out, in*bits/32]`, lowest bits
first, offset by half of the range), `weight_scale` `[out, in/group]`, `weight_shape` and, on asymmetric grids,
`weight_zero_point` (int32 `[out*bits/32, in/group]`). Seen as bytes, the first is what `moec::dequantize` reads;
nothing is quantized anew. Spec: https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.checkpoint_format import CheckpointFormat, are_scales
from moec.huggingface.compressed_floats import FORMS, FP8_FORMS, decode_floats, why_not_floats
from moec.huggingface.compressed_floats import PACKED as PACKED
from moec.huggingface.compressed_floats import SCALE as SCALE
from moec.weights.lazy import Weight, cast, columns, decoded, rowwise, whole
from moec.weights.weight import PackedWeight

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
ZERO, SHAPE, ORDER = "_zero_point", "_shape", "_g_idx"
BITS = (2, 4, 8)
STRATEGIES = ("group", "channel")  # a scale for every so many inputs, or for each row
LONGEST = 128  # of the groups that are kept as they are: runtimes have no kernels for longer ones
_WAY_OUT = "use the unquantized checkpoint, or one of weights alone (W4A16, W8A16)"


class CompressedTensors(CheckpointFormat):
    """The forms of compressed-tensors that quantize weights alone: integers, and small floats."""

    methods = (METHOD,)

    def why_not(self, config: Mapping[str, Any]) -> str:
        return why_not(config)

    def decode(self, stored: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
        kinds = {(group.get("weights") or {}).get("type", "int") for group in config["config_groups"].values()}
        stored = decode_floats(stored) if "float" in kinds else stored
        return decode(stored) if "int" in kinds else dict(stored)


def why_not(config: Mapping[str, Any]) -> str:
    """Why a `quantization_config` of this method cannot be read; empty when it can."""
    for name in ("kv_cache_scheme", "transform_config", "sparsity_config"):
        given = config.get(name)
        if given and not (isinstance(given, Mapping) and given.get("format") == "dense"):
            return f"it has a {name}"
    groups = config.get("config_groups") or {}
    if not groups:
        return "it has no config_groups"
    return next(
        (
            reason
            for name, group in groups.items()
            if (reason := _why_not_group(name, group, str(config.get("format"))))
        ),
        "",
    )


def _why_not_group(name: str, group: Any, default: str) -> str:
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        return f"{name} does not say how its weights are quantized"
    kind, weights = group.get("format") or default, group["weights"]
    floats = weights.get("type") == "float" and kind in (*FP8_FORMS, FORMS["nvfp4"])
    if kind != FORMAT and not floats:
        known = (FORMAT, *(f"{form} of floats" for form in (*FP8_FORMS, FORMS["nvfp4"])))
        return f"the format of {name} is {kind!r}; of this method moec reads {', '.join(map(repr, known))}"
    if group.get("input_activations") or group.get("output_activations"):
        return f"{name} quantizes activations too"
    if floats:
        return why_not_floats(name, kind, weights)
    if weights.get("type", "int") != "int" or weights.get("num_bits") not in BITS:
        return (
            f"{name} has {weights.get('num_bits')!r} bits of type {weights.get('type', 'int')!r}; moec reads "
            f"{', '.join(map(str, BITS))} bits of type 'int'"
        )
    if weights.get("strategy", "group") not in (None, *STRATEGIES):
        return f"{name} has a scale a {weights['strategy']}; moec reads one a {' or a '.join(STRATEGIES)}"
    return (
        ""
        if weights.get("actorder") not in ("group", "dynamic")
        else f"{name} reorders inputs by importance (actorder)"
    )


def decode(stored: Mapping[str, Weight]) -> dict[str, Weight]:
    """The checkpoint's tensors with every packed weight under its own name, decoded when it is read.

    Widths and groups are those of the tensors' shapes, so layers may differ. Scales for groups longer than 128, or for
    whole rows, are repeated; that changes no number.

    Raises:
        MoecError: M205 when tensors are missing or do not fit each other.
    """
    packed = [n.removesuffix(PACKED) for n in stored if n.endswith(f"weight{PACKED}")]
    if not packed:
        raise MoecError(
            "M205",
            f"config.json says {METHOD}, but no tensor is called …weight{PACKED}",
            "model.safetensors",
            "download the files again",
        )
    spent = {base + ending for base in packed for ending in (PACKED, SCALE, ZERO, SHAPE, ORDER)}
    return {
        **{n: w for n, w in stored.items() if n not in spent},
        **{base: decoded(_coded(base, stored)) for base in packed},
    }


def _coded(base: str, stored: Mapping[str, Weight]) -> PackedWeight:
    if base + ORDER in stored:
        raise MoecError("M206", "its inputs are reordered by importance (act-order)", base + ORDER, _WAY_OUT)
    if base + SCALE not in stored or base + SHAPE not in stored:
        raise MoecError(
            "M205",
            f"{base + PACKED!r} has no scale or no shape beside it",
            stored[base + PACKED].origin,
            "download the files again",
        )
    packed, scale, zero = stored[base + PACKED], stored[base + SCALE], stored.get(base + ZERO)
    out, width = (int(n) for n in stored[base + SHAPE].load())
    bits = next((b for b in BITS if packed.shape == (out, -(-width * b // 32))), 0)
    if (
        not bits
        or packed.dtype != torch.int32
        or not are_scales(scale)
        or scale.shape[:1] != (out,)
        or len(scale.shape) != 2
        or width % scale.shape[1]
    ):
        kind = str(scale.dtype)[6:]
        shapes = f"{list(packed.shape)}, scales {kind} {list(scale.shape)} and shape {[out, width]}"
        raise MoecError("M205", f"{base + PACKED!r} does not fit: {shapes}", packed.origin, "download the files again")
    if zero is not None and (zero.dtype != torch.int32 or zero.shape != (-(-out * bits // 32), scale.shape[1])):
        what = f"{base + ZERO!r} is {str(zero.dtype)[6:]} {list(zero.shape)}, which does not fit {list(scale.shape)}"
        raise MoecError("M205", what, zero.origin, "download the files again")
    codes = columns(rowwise("bytes", as_bytes, packed), 0, width * bits // 8)
    zeros = None if zero is None else whole("zeros", lambda t: unpacked_rows(t, bits, out), zero)
    return in_short_groups(codes, scale, zeros, bits)


def in_short_groups(packed: Weight, scale: Weight, zero: Weight | None, bits: int) -> PackedWeight:
    """The same numbers with a scale (and zero point) for every 128 inputs at least, or for the longest group that
    divides them."""
    width = packed.shape[-1] * 8 // bits
    group = width // scale.shape[-1]
    short = next((g for g in (LONGEST, 64, 32, 16) if group > LONGEST and group % g == 0), group)

    def repeat(part: Weight) -> Weight:
        times = group // short
        return part if times == 1 else rowwise(f"repeat[{times}]", lambda t: t.repeat_interleave(times, -1), part)

    return PackedWeight(packed, repeat(scale), None if zero is None else repeat(zero), bits)


def as_bytes(words: Tensor) -> Tensor:
    """int32 `[…, n]` as uint8 `[…, 4 n]`, lowest byte first."""
    if words.device.type == "meta":
        return words.new_empty((*words.shape[:-1], 4 * words.shape[-1]), dtype=torch.uint8)
    return words.contiguous().view(torch.uint8)


def unpacked_rows(words: Tensor, bits: int, out: int) -> Tensor:
    """Unsigned numbers that are packed along the leading dimension, int32 `[out*bits/32, n]`, as uint8 `[out, n]`."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    numbers = (words.unsqueeze(1) >> shifts[:, None]) & (2**bits - 1)
    return numbers.flatten(0, 1)[:out].to(torch.uint8)


def in_float32(weight: Weight) -> Tensor:
    """A weight's values: integers times scales in float32, which is exact for scales of 16 bits; other dtypes as they
    are stored."""
    return (cast(weight, torch.float32) if weight.dtype.is_floating_point else weight).load()
