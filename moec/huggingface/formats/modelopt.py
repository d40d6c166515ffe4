"""Checkpoints in ModelOpt's form, as TensorRT-LLM, SGLang and vLLM load them: FP8 and NVFP4, read as the numbers that
they stand for.

In NVFP4 a linear layer's `weight` is uint8 `[out, in/2]`, two numbers a byte, `weight_scale` E4M3 `[out, in/16]`, and
`weight_scale_2` one float32, the largest number over 6 x 448: all three are multiplied. The compressed-tensors form of
the same codes has the inverse, `weight_global_scale`, and calls the codes `weight_packed`: names tell the two apart. In
FP8 `weight` is E4M3 and `weight_scale` one float32, or one for each row. What servers round besides (activations by
`input_scale`, caches by `k_scale` and `v_scale`) moec keeps as it is.
Spec: https://github.com/NVIDIA/Model-Optimizer, modelopt/torch/export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moec.errors import MoecError
from moec.huggingface.checkpoint_format import CheckpointFormat, are_scales
from moec.huggingface.compressed_floats import E4M3, GLOBAL, PACKED, SCALE, fp8_numbers, nvfp4_numbers
from moec.weights.lazy import Weight, whole

METHOD, FILE = "modelopt", "hf_quant_config.json"
OVERALL = "_scale_2"
MIXED, NVFP4, NVFP4_AND_ACTIVATIONS = "MIXED_PRECISION", "W4A16_NVFP4", "NVFP4"
FP8, FP8_OF_TENSORS = "FP8_PER_CHANNEL_PER_TOKEN", "FP8"
ALGORITHMS = (FP8_OF_TENSORS, FP8, NVFP4_AND_ACTIVATIONS, NVFP4)
_OF_ACTIVATIONS = (".input_scale", ".k_scale", ".v_scale")
_AGAIN = "download the files again"


class Modelopt(CheckpointFormat):
    """FP8 and NVFP4 as ModelOpt writes them; see this module."""

    methods = (METHOD,)

    def why_not(self, config: Mapping[str, Any]) -> str:
        given = config.get("quantization", config)  # an older file nests all of it
        kinds = [given, *(given.get("quantized_layers") or {}).values()]
        named = [(str(kind.get("quant_algo")).upper(), kind) for kind in kinds]
        if named[0][0] == MIXED:
            named = named[1:]
        for name, kind in named:
            if name not in ALGORITHMS:
                return f"its quant_algo is {name!r}; of this method moec reads {', '.join(ALGORITHMS)}"
            if "NVFP4" in name and kind.get("group_size") not in (None, 16):
                return f"its group_size is {kind['group_size']!r}; moec reads NVFP4 in groups of 16"
        return "" if named else "it has no quantized_layers"

    def decode(self, stored: Mapping[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
        return decode(stored)


def decode(stored: Mapping[str, Weight]) -> dict[str, Weight]:
    """The checkpoint's tensors with every weight in small floats as float32 numbers, and without scales of activations.

    Raises:
        MoecError: M205 when tensors are missing or do not fit each other, or have the names of another form; M206 for
            tensors that no linear layer has.
    """
    foreign = next((name for name in stored if name.endswith((f"weight{PACKED}", f"weight{GLOBAL}"))), None)
    if foreign is not None:
        what = f"config.json says {METHOD}, but {foreign!r} is a name of the compressed-tensors form"
        raise MoecError("M205", what, stored[foreign].origin, _AGAIN)
    weights = [name for name in stored if name.endswith(".weight")]
    nvfp4 = [name for name in weights if stored[name].dtype == torch.uint8 or name + OVERALL in stored]
    fp8 = [name for name in weights if stored[name].dtype == E4M3]
    if not nvfp4 and not fp8:
        what = f"config.json says {METHOD}, but no weight is in small floats"
        raise MoecError("M205", what, "model.safetensors", _AGAIN)
    spent = {name + ending for name in (*nvfp4, *fp8) for ending in ("", SCALE, OVERALL)}
    plain = {n: w for n, w in stored.items() if n not in spent and not n.endswith(_OF_ACTIVATIONS)}
    _refuse_others(plain)
    return {
        **plain,
        **{name: _fp8(name, stored) for name in fp8},
        **{name: _nvfp4(name, stored) for name in nvfp4},
    }


def _refuse_others(plain: Mapping[str, Weight]) -> None:
    """Raise M206 for what is left over and is not plain: stacks of experts, factors of inputs."""
    for name, weight in plain.items():
        if name.endswith((SCALE, OVERALL)) or weight.dtype in (torch.uint8, E4M3):
            what = f"{name!r} is no part of a linear layer's weight in FP8 or NVFP4"
            raise MoecError("M206", what, weight.origin, "use the unquantized checkpoint and let moec quantize it")


def _fp8(name: str, stored: Mapping[str, Weight]) -> Weight:
    scale = stored.get(name + SCALE)
    if scale is not None and are_scales(scale):  # else it is refused
        column = scale.shape == stored[name].shape[:1]
        scale = whole("scales", lambda own: own.float().reshape(-1, 1) if column else own.float(), scale)
    return fp8_numbers(name, stored[name], scale)


def _nvfp4(name: str, stored: Mapping[str, Weight]) -> Weight:
    overall = stored.get(name + OVERALL)
    if overall is not None and are_scales(overall):  # else it is refused
        overall = whole("overall", lambda one: one.float(), overall)
    return nvfp4_numbers(name, stored[name], stored.get(name + SCALE), overall)
