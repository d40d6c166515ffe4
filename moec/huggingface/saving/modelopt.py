"""Small floats in ModelOpt's form, which TensorRT-LLM, Dynamo, SGLang and vLLM load: the program's codes and scales.

What the tensors are called and hold is said in `moec.huggingface.formats.modelopt`. NVFP4 is the form's `W4A16_NVFP4`:
the program rounds no activations, and their scales, which `NVFP4` asks for, are not known. FP8 is
`FP8_PER_CHANNEL_PER_TOKEN`, the program's one scale written once for each row: servers join matrices without making
another scale of several, and find the scales of activations themselves. Experts have no such kernel there, so theirs
are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from moec.errors import MoecError
from moec.huggingface.compressed_floats import SCALE
from moec.huggingface.formats.modelopt import FP8, METHOD, MIXED, NVFP4, OVERALL
from moec.huggingface.saving.float_tensors import as_e4m3, check_common
from moec.huggingface.saving.schemes import EXPERT, Scheme, check_fused, schemes_of, tables_of
from moec.version import __version__
from moec.weights.lazy import Weight, whole
from moec.weights.weight import FloatCodes, PackedWeight

_SAID: dict[str, dict[str, Any]] = {
    "fp8": {"quant_algo": FP8},
    "nvfp4": {"quant_algo": NVFP4, "group_size": 16},
}
_NUMBERS: dict[str, dict[str, Any]] = {  # what config.json says of the numbers of a module
    "fp8": {
        "input_activations": {"dynamic": False, "num_bits": 8, "type": "float"},
        "weights": {"dynamic": False, "num_bits": 8, "type": "float", "strategy": "channel"},
    },
    "nvfp4": {"weights": {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}},
}
_EXPERTS = (
    "write them as NVFP4, rules={'*.experts.*': {'bits': 4, 'format': 'nvfp4'}}, or --hf-format compressed-tensors"
)


def in_modelopt_form(config: Any, stored: Mapping[str, Weight], where: str) -> tuple[Any, dict[str, Weight], str]:
    """A config that says how its weights are stored, the tensors of the files, and the text of `hf_quant_config.json`.

    Raises:
        MoecError: M206 when no matrix is in small floats, when one is in integers, when experts are in FP8, and when
            modules that servers compute as one are stored differently.
    """
    tables = tables_of(stored)
    modules = schemes_of(stored, tables)
    _check(stored, modules, tables, where)
    check_fused(modules, where)
    check_common(stored, where)
    found: dict[str, Weight] = {}
    for name, weight in stored.items():
        floats = isinstance(weight.coded, FloatCodes) and name not in tables
        found |= _tensors(name, weight.coded) if floats else {name: weight}  # type: ignore[arg-type]
    beside = {"producer": {"name": "moec", "version": __version__}, "quantization": _quantization(modules)}
    config.quantization_config = _in_config(beside)
    return config, found, json.dumps(beside, indent=4) + "\n"


def _check(
    stored: Mapping[str, Weight], modules: Mapping[str, Scheme | None], tables: frozenset[str], where: str
) -> None:
    integers = next((n for n, w in stored.items() if isinstance(w.coded, PackedWeight) and n not in tables), None)
    experts = next((n for n, s in modules.items() if s is not None and s.format == "fp8" and EXPERT.match(n)), None)
    what = fix = ""
    if integers is not None:
        what = f"{integers} is in integers, which moec does not write there"
        fix = "quantize with format=nvfp4 or fp8 (the head too, or lm_head=16), or write --hf-format compressed-tensors"
    elif experts is not None:
        what, fix = (
            f"{experts} is in FP8, for which servers want scales of activations that moec does not know",
            _EXPERTS,
        )
    elif not any(modules.values()):
        what, fix = "no matrix of it is in FP8 or NVFP4", 'write --pass "quantize(bits=4, format=nvfp4)"'
    if what:
        raise MoecError("M206", f"cannot save the program in ModelOpt's form: {what}", where, fix)


def _tensors(name: str, coded: FloatCodes) -> dict[str, Weight]:
    """The tensors of a weight `[out, in]` by their names in the files."""
    if coded.format == "fp8":
        rows = coded.codes.shape[0]
        return {
            name: as_e4m3(coded.codes),
            name + SCALE: whole(f"repeat[{rows}]", lambda one: one.float().reshape(1).repeat(rows), coded.scale),
        }
    assert coded.overall is not None
    overall = whole("overall", lambda one: one.float(), coded.overall)
    return {name: coded.codes, name + SCALE: as_e4m3(coded.scale), name + OVERALL: overall}


def _quantization(modules: Mapping[str, Scheme | None]) -> dict[str, Any]:
    """What `hf_quant_config.json` says: one algorithm and what is left out, or the algorithm of each module."""
    packed = {name: _SAID[scheme.format] for name, scheme in modules.items() if scheme is not None}
    kinds = {said["quant_algo"]: said for said in packed.values()}
    if len(kinds) == 1:
        (only,) = kinds.values()
        left = [name for name, scheme in modules.items() if scheme is None]
        return {**only, "kv_cache_quant_algo": None, "exclude_modules": _patterns(left, [*packed])}
    return {"quant_algo": MIXED, "kv_cache_quant_algo": None, "quantized_layers": packed}


def _in_config(beside: Mapping[str, Any]) -> dict[str, Any]:
    """The same as `quantization_config` of config.json."""
    said = beside["quantization"]
    layers: dict[str, Any] = said.get("quantized_layers", {})
    groups: dict[str, Any] = {}
    for kind, own in _SAID.items():
        names = sorted(name for name, layer in layers.items() if layer == own)
        if names or (own["quant_algo"] == said["quant_algo"] == NVFP4):
            groups[f"group_{len(groups)}"] = {**_NUMBERS[kind], "targets": names or ["Linear"]}
    return {
        **({"config_groups": groups} if groups else {}),
        **({"quantized_layers": layers} if layers else {}),
        "ignore": said.get("exclude_modules", []),
        "quant_algo": said["quant_algo"],
        "producer": beside["producer"],
        "quant_method": METHOD,
    }


def _patterns(names: list[str], others: list[str]) -> list[str]:
    """Names of modules, or the start of a name and `*` where no other module's name starts so; experts of a layer are
    one."""
    found = set()
    for name in names:
        experts = EXPERT.match(name)
        parts = name.split(".")
        starts = [experts[1]] if experts else [".".join(parts[:end]) for end in range(1, len(parts))]
        free = next((start for start in starts if not any(other.startswith(start) for other in others)), None)
        found.add(name if free is None else f"{free}*")
    return sorted(found)
