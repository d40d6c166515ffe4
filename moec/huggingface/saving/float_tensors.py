"""Small floats in the compressed-tensors form: the program's own codes and scales.

FP8 is `weight` in E4M3 with `weight_scale` `[out, 1]`: the program has one scale a weight, which is written once for
each row, so that servers which join matrices need not make another one of several. NVFP4 is `weight_packed`, two
numbers a byte, `weight_scale` in E4M3, one for 16 numbers, and `weight_global_scale` `[1]`, by which the form divides
where the program multiplies: its inverse, in float32. Activations stay as they are in both.
Spec: https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moec.errors import MoecError
from moec.huggingface.compressed_floats import E4M3, GLOBAL, PACKED, SCALE
from moec.huggingface.saving.schemes import FUSED, Scheme
from moec.weights.lazy import Weight, rowwise, whole
from moec.weights.weight import FloatCodes

_TOGETHER = (*FUSED.values(), ("w1", "w3"))  # the latter in an expert of Mixtral


def float_tensors(name: str, coded: FloatCodes) -> dict[str, Weight]:
    """The tensors of a weight `[out, in]` by their names in the files."""
    if coded.format == "fp8":
        rows = coded.codes.shape[0]
        scale = whole(f"repeat[{rows}]", lambda one: one.reshape(1, 1).repeat(rows, 1), coded.scale)
        return {name: as_e4m3(coded.codes), name + SCALE: scale}
    assert coded.overall is not None
    inverse = whole("inverse", lambda one: (1 / one.float()).reshape(1), coded.overall)
    return {name + PACKED: coded.codes, name + SCALE: as_e4m3(coded.scale), name + GLOBAL: inverse}


def as_e4m3(codes: Weight) -> Weight:
    """Bytes as the numbers of E4M3 that they are."""
    return rowwise("e4m3", lambda part: part.view(E4M3), codes)


def weights_entry(scheme: Scheme) -> dict[str, Any]:
    """What config.json says of the numbers of a module in small floats."""
    own = (
        {"strategy": "channel", "group_size": None}
        if scheme.format == "fp8"
        else {"strategy": "tensor_group", "group_size": scheme.group_size, "scale_dtype": "torch.float8_e4m3fn"}
    )
    return {
        "num_bits": scheme.num_bits,
        "symmetric": True,
        "type": "float",
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        **own,
    }


def check_common(stored: Mapping[str, Weight], where: str) -> None:
    """Raise M206 when weights in `nvfp4` that servers compute as one have several numbers for the whole weight, of
    which servers take the largest for all."""
    overall: dict[tuple[str, int], dict[int, Weight]] = {}
    for name, weight in stored.items():
        path, _, leaf = name.removesuffix(".weight").rpartition(".")
        for one, parts in enumerate(_TOGETHER):
            if leaf in parts and isinstance(weight.coded, FloatCodes) and weight.coded.overall is not None:
                overall.setdefault((path, one), {})[id(weight.coded.overall)] = weight.coded.overall
    for (path, one), numbers in overall.items():
        if len(numbers) > 1 and len({float(number.load()) for number in numbers.values()}) > 1:
            what = f"{', '.join(_TOGETHER[one])} of {path}, which servers compute as one, have several global scales"
            fix = "quantize them in one pass, and alike"
            raise MoecError("M206", f"cannot save the program as a quantized checkpoint: {what}", where, fix)
