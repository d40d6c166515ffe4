"""What a config says that its checkpoint is stored in, where that is not the type of its sizes' count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moec.planning.formats import FORMATS

_USUAL = {"awq": "int4-g128-zero", "gptq": "int4-g128-zero"}  # in 4 bits, with groups of 128 and zero points
_ALGORITHMS = ("quant_algo", "moe_quant_algo", "quant_method", "format")
_FORMATS = ("nvfp4", "mxfp4", "mxfp8", "fp8")  # the longer names first


def stored(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """A note on the formats of a quantized checkpoint, and how to count it in them; empty for one that is not."""
    inner = raw.get("text_config")
    given = raw.get("quantization_config") or (isinstance(inner, dict) and inner.get("quantization_config"))
    if not isinstance(given, dict):
        return ()
    names = list(dict.fromkeys(_named(given)))
    known = sorted((name for name in names if name in FORMATS), key=lambda name: FORMATS[name].bits)
    if not known:
        return (
            f"the checkpoint is quantized ({given.get('quant_method', 'by no named method')}), which is not counted",
        )
    return (f"the checkpoint is in {' and '.join(names)}: try --format {known[0]}",)


def _named(given: Mapping[str, Any]) -> Iterator[str]:
    layers = given.get("quantized_layers")
    each = layers.values() if isinstance(layers, dict) else ()
    for part in (given, *(layer for layer in each if isinstance(layer, dict))):
        for key in _ALGORITHMS:
            word = str(part.get(key, "")).lower()
            found = next((name for name in _FORMATS if name in word), "")
            if found:
                yield found
            elif word in _USUAL and given.get("bits") in (None, 4):
                yield _USUAL[word]
    groups = given.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and (name := _of_group(weights)):
            yield name


def _of_group(weights: Mapping[str, Any]) -> str:
    """The format of a group of compressed-tensors, by bits, type and the numbers of a scale."""
    bits, kind, size = int(weights.get("num_bits") or 0), weights.get("type", "int"), weights.get("group_size")
    if kind == "float":
        return "fp8" if bits == 8 else {16: "nvfp4", 32: "mxfp4"}.get(int(size or 0), "") if bits == 4 else ""
    return {4: "int4", 8: "int8", 2: "int2"}.get(bits, "")
