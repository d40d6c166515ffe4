"""Quantized weights in GPTQ's form, which vLLM, GPTQModel and TensorRT Edge-LLM load: the same integers, packed along
the inputs, with scales in float16. What the tensors are called and hold is said in `moec.huggingface.formats.gptq`.

Nothing is rounded anew but scales, which have 16 bits there. Symmetric grids are written in the form's first version,
zero points less one, which all readers take. A checkpoint with zero points is in the second (`gptq_v2`), which has them
as they are: of the first, a zero point of 0 borrows from its neighbour, and GPTQModel reads such a file only from
itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moec.errors import MoecError
from moec.huggingface.formats.gptq import ORDER, SCALES, WEIGHT, ZEROS
from moec.huggingface.saving.compressed_tensors import as_words
from moec.huggingface.saving.gptq_config import quantization_config
from moec.huggingface.saving.half_precision import Rounding
from moec.huggingface.saving.plain_weights import refuse_floats
from moec.huggingface.saving.schemes import EXPERT, FUSED, check_fused, most_common, schemes_of, tables_of
from moec.weights.lazy import Weight, rowwise, transpose, whole
from moec.weights.weight import PackedWeight


def in_gptq_form(
    config: Any, stored: Mapping[str, Weight], where: str, rounding: Rounding
) -> tuple[Any, dict[str, Weight]]:
    """A config that says how its weights are packed, and the tensors of the files.

    Args:
        stored: by name in the files; embeddings stay plain. rounding: counts what becomes of scales, when they are
            read.

    Raises:
        MoecError: M206 when no matrix is packed, when modules that servers compute as one are stored differently, or
            when a matrix's sizes do not fill the form's words.
    """
    refuse_floats(stored, "GPTQ's form", where)
    tables = tables_of(stored)
    modules = schemes_of(stored, tables)
    check_fused(modules, where)
    first = most_common(modules)
    if first is None:
        what, fix = "no matrix of it is quantized", 'write --pass "quantize(bits=4)", or --hf-format compressed-tensors'
        raise MoecError("M206", f"cannot save the program in GPTQ's form: {what}", where, fix)
    found: dict[str, Weight] = {}
    for name, weight in stored.items():
        if not isinstance(weight.coded, PackedWeight) or name in tables:
            found[name] = weight
            continue
        require_words(name, weight.coded, where)
        found |= _packed(name, weight.coded, all(s.symmetric for s in modules.values() if s is not None), rounding)
    config.quantization_config = quantization_config(modules, first)
    return config, found


def require_words(name: str, coded: PackedWeight, where: str) -> None:
    """Raise M206 for a matrix `[out, in]` whose numbers, or whose groups', are no whole words of 32 bits."""
    shape, groups = coded.shape, coded.scale.shape[-1]
    what = ""
    if len(shape) != 2 or not name.endswith(".weight"):
        what = f"{name} {list(shape)} is no matrix of a linear layer"
    elif bad := [size for size in shape if size * coded.bits % 32]:
        words = f"{32 // coded.bits} numbers of {coded.bits} bits make a word"
        what = f"{name} {list(shape)} has a side of {bad[0]}, and {words}"
    elif shape[1] % groups:
        what = f"{name} {list(shape)} has {groups} groups in a row, which they do not divide"
    if what:
        fix = f"leave it as it is: quantize(…, {_left(name)})"
        raise MoecError("M206", f"cannot save the program in GPTQ's form: {what}", where, fix)


def require_kept(rounding: Rounding) -> None:
    """Raise M203 where 16 bits did not hold the scales of a matrix, once it was written."""
    for names, what in (
        (rounding.lost, "has scales that are larger than 16 bits hold (65504)"),
        (rounding.faint, "has scales so small that 16 bits move its numbers by more than half a step"),
    ):
        if names:
            name = min(names)
            fix = f"leave it as it is, quantize(…, {_left(name)}), or write --hf-format compressed-tensors"
            raise MoecError("M203", f"{name} {what}", name, fix)


def _left(name: str) -> str:
    """The option of `quantize` that leaves a matrix as it is, with those that servers compute as one with it."""
    module = name.removesuffix(".weight")
    path, _, leaf = module.rpartition(".")
    if leaf == "lm_head":
        return "lm_head=16"
    pattern = leaf
    if EXPERT.match(name):
        pattern = "experts.*"
    elif any(leaf in parts for parts in FUSED.values()):
        pattern = f"{path.rpartition('.')[2]}.*"
    return f"rules={{'*.{pattern}': 16}}"


def _packed(name: str, coded: PackedWeight, less_one: bool, rounding: Rounding) -> dict[str, Weight]:
    base, (out, width), groups = name.removesuffix(".weight"), coded.shape, coded.scale.shape[-1]
    half = partial(_scales, name, coded.bits, coded.zero is None, rounding)
    return {
        base + WEIGHT: transpose(rowwise("words", as_words, coded.packed), 0, 1),
        base + ZEROS: _middles(groups, out, coded.bits, less_one) if coded.zero is None else _zeros(coded),
        base + SCALES: whole("half", half, coded.scale),
        base + ORDER: _order(width, width // groups),
    }


def _scales(name: str, bits: int, symmetric: bool, rounding: Rounding, scale: Tensor) -> Tensor:
    """`[out, groups]` as float16 `[groups, out]`."""
    return rounding.half_of_matrix(name, bits, scale, symmetric).t().contiguous()


def _zeros(coded: PackedWeight) -> Weight:
    def pack_columns(numbers: Tensor) -> Tensor:
        """uint8 `[out, groups]` packed along `out` as int32 `[groups, out*bits/32]`, lowest bits first."""
        shifts = torch.arange(0, 32, coded.bits, device=numbers.device)
        words = numbers.t().to(torch.int64).reshape(numbers.shape[1], -1, len(shifts))
        return (words << shifts).sum(2).to(torch.int32)

    assert coded.zero is not None
    return whole(f"columns[{coded.bits}]", pack_columns, coded.zero)


def _middles(groups: int, out: int, bits: int, less_one: bool) -> Weight:
    """The zero points of a symmetric grid, int32 `[groups, out*bits/32]`, made when they are read."""
    word = sum((2 ** (bits - 1) - less_one) << at for at in range(0, 32, bits))
    value, columns = word - 2**32 if word >= 2**31 else word, out * bits // 32
    text = f"full[{groups},{columns}]({value})"
    read = lambda a, b: torch.full((b - a, columns), value, dtype=torch.int32)  # noqa: E731
    return Weight((groups, columns), torch.int32, text, read)


def _order(width: int, group: int) -> Weight:
    """The group of each input, int32 `[in]`, made when it is read."""
    read = lambda a, b: (torch.arange(a, b) // group).to(torch.int32)  # noqa: E731
    return Weight((width,), torch.int32, f"groups[{width},{group}]", read)
