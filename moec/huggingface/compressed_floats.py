"""Small floats in the compressed-tensors form, FP8 and NVFP4: read as the numbers that they stand for.

The tensors are said in `moec.huggingface.saving.float_tensors`. FP8 may have one scale for the whole weight, too. The
weights become plain ones, products in the dtype of their scales; let moec quantize them if they are to be small.
ModelOpt's form of the same numbers has a global scale that is the inverse of this one: it is told by its name
(`weight_scale_2`), see `moec.huggingface.formats.modelopt`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moec.dialect import dequantize_float
from moec.errors import MoecError
from moec.huggingface.checkpoint_format import are_scales
from moec.weights.lazy import Weight, rowwise, whole

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
    return fp8_numbers(name, stored[name], stored.get(name + SCALE))


def fp8_numbers(name: str, codes: Weight, scale: Weight | None) -> Weight:
    """What E4M3 codes `[..., out, in]` stand for, in the dtype of their scales: one, or one a row `[..., out, 1]`.
    Raises M205 where these do not fit."""
    rows = (*codes.shape[:-1], 1)
    if scale is None or not are_scales(scale) or (scale.shape != rows and math.prod(scale.shape) != 1):
        raise _misfit(name, codes, "none" if scale is None else list(scale.shape))
    if scale.shape == rows:
        return rowwise("fp8", lambda c, s: c.to(s.dtype) * s, codes, scale)
    return rowwise("fp8", lambda c: c.to(scale.dtype) * scale.load().reshape(()).to(c.device), codes)


def _from_nvfp4(base: str, stored: Mapping[str, Weight]) -> Weight:
    codes, scale, inverse = (stored.get(base + ending) for ending in (PACKED, SCALE, GLOBAL))
    assert inverse is not None
    if codes is None or not are_scales(inverse):
        raise _misfit(base, codes or inverse, "none" if scale is None else list(scale.shape))
    return nvfp4_numbers(base, codes, scale, whole("inverse", lambda one: 1 / one.float(), inverse))


def nvfp4_numbers(name: str, codes: Weight, scale: Weight | None, overall: Weight | None) -> Weight:
    """What E2M1 codes `[out, in/2]`, E4M3 scales `[out, in/16]` and one number for all stand for, in float32: their
    product. Raises M205 where they do not fit."""
    fits = overall is not None and are_scales(overall) and overall.shape in ((1,), ())
    if codes.dtype != torch.uint8 or len(codes.shape) != 2 or scale is None or overall is None or not fits:
        raise _misfit(name, codes, "none" if scale is None else list(scale.shape))
    out, half = codes.shape
    if scale.dtype != E4M3 or scale.shape != (out, half // 8) or half % 8:
        raise _misfit(name, codes, list(scale.shape))
    one = overall

    def numbers(values: Tensor, steps: Tensor) -> Tensor:
        product = one.load().reshape(()).to(values.device)
        return dequantize_float(values, steps.view(torch.uint8), product, format="nvfp4")

    return rowwise("nvfp4", numbers, codes, scale)


def _misfit(name: str, weight: Weight, scales: Any) -> MoecError:
    what = f"{name!r} of shape {list(weight.shape)} has scales {scales}, which do not fit it"
    return MoecError("M205", what, weight.origin, _AGAIN)
