"""Small floats in the compressed-tensors form, FP8 and NVFP4: read as the numbers that they stand for.

The tensors are said in `moec.huggingface.saving.float_tensors`. FP8 may have one scale for the whole weight, too. The
weights become plain ones, products in the dtype of their scales; let moec quantize them if they are to be small.
Another writer's form of the same numbers has a global scale that is the inverse of this one: it is told by its name
(`weight_scale_2`), and not read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moec.dialect import dequantize_float
from moec.errors import MoecError
from moec.weights.lazy import Weight, rowwise

FORMS = {"fp8": "naive-quantized", "nvfp4": "nvfp4-pack-quantized"}
FP8_FORMS = ("naive-quantized", "float-quantized")  # of which the latter's writers round activations as well
PACKED, SCALE, GLOBAL = "_packed", "_scale", "_global_scale"
E4M3 = torch.float8_e4m3fn
_AGAIN = "download the files again"


def why_not_floats(name: str, form: str, weights: Mapping[str, Any]) -> str:
    """Why a group of small floats cannot be read; empty when it can."""
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    if form == FORMS["nvfp4"]:
        fits = bits == 4 and strategy in ("tensor_group", None) and weights.get("group_size") == 16
        read = "4, with one for 16 numbers"
    else:
        fits, read = bits == 8 and strategy in ("channel", "tensor"), "8, with one a channel or tensor"
    return "" if fits else f"{name} has {bits!r} bits, one scale a {strategy}; moec reads {read}"


def decode_floats(stored: Mapping[str, Weight]) -> dict[str, Weight]:
    """The checkpoint's tensors with every weight in small floats as the numbers that it stands for: FP8 in the dtype of
    its scales, NVFP4 in float32.

    Raises:
        MoecError: M205 when tensors are missing or do not fit each other.
    """
    fp8 = [name for name, weight in stored.items() if weight.dtype == E4M3 and not name.endswith(SCALE)]
    nvfp4 = [name.removesuffix(GLOBAL) for name in stored if name.endswith(f"weight{GLOBAL}")]
    spent = {base + ending for base in (*fp8, *nvfp4) for ending in (PACKED, SCALE, GLOBAL)}
    if not fp8 and not nvfp4:
        what, where = "config.json says that weights are small floats, but no tensor is one", "model.safetensors"
        raise MoecError("M205", what, where, _AGAIN)
    plain = {name: weight for name, weight in stored.items() if name not in {*spent, *fp8}}
    return {
        **plain,
        **{name: _from_fp8(name, stored) for name in fp8},
        **{base: _from_nvfp4(base, stored) for base in nvfp4},
    }


def _from_fp8(name: str, stored: Mapping[str, Weight]) -> Weight:
    codes, scale = stored[name], stored.get(name + SCALE)
    rows = (*codes.shape[:-1], 1)
    if scale is None or (scale.shape != rows and math.prod(scale.shape) != 1):
        raise _misfit(name, codes, "none" if scale is None else list(scale.shape))
    if scale.shape == rows:
        return rowwise("fp8", lambda c, s: c.to(s.dtype) * s, codes, scale)
    return rowwise("fp8", lambda c: c.to(scale.dtype) * scale.load().reshape(()).to(c.device), codes)


def _from_nvfp4(base: str, stored: Mapping[str, Weight]) -> Weight:
    codes, scale, inverse = (stored.get(base + ending) for ending in (PACKED, SCALE, GLOBAL))
    assert inverse is not None
    if codes is None or codes.dtype != torch.uint8 or scale is None or inverse.shape not in ((1,), ()):
        raise _misfit(base, codes or inverse, "none" if scale is None else list(scale.shape))
    out, half = codes.shape
    if scale.dtype != E4M3 or scale.shape != (out, half // 8) or half % 8:
        raise _misfit(base, codes, list(scale.shape))

    def numbers(values: Tensor, steps: Tensor) -> Tensor:
        overall = (1 / inverse.load().float()).reshape(()).to(values.device)
        return dequantize_float(values, steps.view(torch.uint8), overall, format="nvfp4")

    return rowwise("nvfp4", numbers, codes, scale)


def _misfit(name: str, weight: Weight, scales: Any) -> MoecError:
    what = f"{name!r} of shape {list(weight.shape)} has scales {scales}, which do not fit it"
    return MoecError("M205", what, weight.origin, _AGAIN)
