"""Lazy weights: a shape, a dtype and a way to read rows, so that a program never holds what it does not compute with.

A weight is read by blocks of its leading dimension. All expressions that compilation needs (stacking experts, joining
gate and up, transposing, casting, copying) commute with that slicing or cut it into pieces, so a backend can write the
experts of a 47 B model with one block in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec.dialect import dequantize, dequantize_float
from moec.weights.weight import FloatCodes, PackedWeight
from moec.weights.weight import Weight as Weight


def _keeping(weight: Weight, sources: Sequence[Weight], move: Callable[[list[Weight]], Weight]) -> Weight:
    """The weight with the codes of its sources, put through the same movement of rows; without where they do not fit
    each other."""
    codes: list[Any] = [w.coded for w in sources if w.coded is not None]
    kinds = {type(c) for c in codes}
    if len(codes) != len(sources) or len(kinds) != 1:
        return weight
    return replace(weight, coded=kinds.pop().joined(codes, move))


def from_tensor(tensor: Tensor, name: str) -> Weight:
    """A weight that is in memory already; `name` is its origin's text."""
    value = tensor.detach()
    read = lambda a, b: value[a:b] if value.dim() else value  # noqa: E731
    return Weight(tuple(value.shape), value.dtype, name, read, by_rows=True)


@lru_cache(maxsize=64)
def _open(path: str, _version: tuple[int, int]) -> Any:  # safetensors has no public type for a handle
    from safetensors import safe_open

    return safe_open(path, framework="pt")  # type: ignore[no-untyped-call]


def from_file(path: str | Path, name: str) -> Weight:
    """The tensor `name` of a safetensors file, memory-mapped: reading rows touches only their pages.

    Spec: https://huggingface.co/docs/safetensors. Raises whatever safetensors raises on a broken file.
    """
    version = Path(path).stat().st_ino, Path(path).stat().st_mtime_ns  # a file that was replaced is opened anew
    view = _open(str(path), version).get_slice(name)
    shape, dtype = tuple(view.get_shape()), _SAFETENSORS_DTYPES[view.get_dtype()]

    def read(start: int, stop: int) -> Tensor:
        handle = _open(str(path), version)
        return handle.get_slice(name)[start:stop] if shape else handle.get_tensor(name)

    return Weight(shape, dtype, f"{Path(path).name}:{name}", read, by_rows=True)


_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def rowwise(text: str, function: Callable[..., Tensor], *inputs: Weight) -> Weight:
    """A function of weights that commutes with slicing their common leading dimension.

    The result's shape and dtype are found by running `function` on meta tensors.
    """
    probe = function(*(w.meta() for w in inputs))
    origin = f"{text}({', '.join(w.origin for w in inputs)})"
    read = lambda a, b: function(*(w.read(a, b) for w in inputs))  # noqa: E731
    return Weight(tuple(probe.shape), probe.dtype, origin, read, inputs=inputs, by_rows=all(w.by_rows for w in inputs))


def rearranged(text: str, function: Callable[[Tensor], Tensor], weight: Weight) -> Weight:
    """`rowwise` of a function that only moves rows, so that it may be applied to a weight's codes as well."""
    return _keeping(rowwise(text, function, weight), [weight], lambda parts: rowwise(text, function, parts[0]))


def decoded(coded: PackedWeight | FloatCodes) -> Weight:
    """The weight that codes stand for; that of integers has the dtype of their scales."""
    if isinstance(coded, PackedWeight):
        function, text = partial(dequantize, bits=coded.bits), f"decoded[{coded.bits}]"
    else:
        function, text = partial(dequantize_float, format=coded.format, dtype=coded.dtype), f"decoded[{coded.format}]"
    return replace(rowwise(text, function, *coded.parts()), coded=coded)


def whole(text: str, function: Callable[..., Tensor], *inputs: Weight) -> Weight:
    """Any function of weights: reading a part of the result computes all of it."""
    probe = function(*(w.meta() for w in inputs))
    origin = f"{text}({', '.join(w.origin for w in inputs)})"

    def read(start: int, stop: int) -> Tensor:
        value = function(*(w.load() for w in inputs))
        return value[start:stop] if value.dim() else value

    return Weight(tuple(probe.shape), probe.dtype, origin, read, atomic=True, inputs=inputs)


def stack(weights: Sequence[Weight]) -> Weight:
    """`torch.stack(weights)`: one row a weight."""
    first = weights[0]
    same = all(w is first for w in weights)
    text = f"{first.origin} x {len(weights)}" if same else ", ".join(w.origin for w in weights)
    read = lambda a, b: torch.stack([w.load() for w in weights[a:b]]) if b > a else first.load()[None][:0]  # noqa: E731
    members = tuple(weights)
    stacked = Weight(
        (len(weights), *first.shape), first.dtype, f"stack({text})", read, inputs=members, member=members.__getitem__
    )
    return _keeping(stacked, weights, stack)


def concat(weights: Sequence[Weight], dim: int) -> Weight:
    """`torch.cat(weights, dim)`; `dim` 0 reads only the pieces that a block touches."""
    if dim != 0:
        joined = rowwise(f"concat[{dim}]", lambda *parts: torch.cat(parts, dim), *weights)
        joined = replace(joined, member=_joined_members(weights, dim % len(joined.shape)))
        last = dim % len(joined.shape) == len(joined.shape) - 1
        return joined if last else _keeping(joined, weights, lambda parts: concat(parts, dim))
    starts = [0]
    for w in weights:
        starts.append(starts[-1] + w.shape[0])

    def read(start: int, stop: int) -> Tensor:
        parts = [
            w.read(max(start - at, 0), min(stop - at, w.shape[0]))
            for w, at in zip(weights, starts, strict=False)
            if start < at + w.shape[0] and stop > at
        ]
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    origin = f"concat({', '.join(w.origin for w in weights)})"
    shape, by_rows = (starts[-1], *weights[0].shape[1:]), all(w.by_rows for w in weights)
    joined = Weight(shape, weights[0].dtype, origin, read, inputs=tuple(weights), by_rows=by_rows)
    return joined if len(joined.shape) < 2 else _keeping(joined, weights, lambda parts: concat(parts, 0))


def _joined_members(weights: Sequence[Weight], dim: int) -> Callable[[int], Weight] | None:
    """The members of stacks that are joined within their matrices."""
    members = [w.member for w in weights if w.member is not None]
    return (lambda e: concat([one(e) for one in members], dim - 1)) if len(members) == len(weights) else None


def select(weight: Weight, index: int) -> Weight:
    """`weight[index]`: one expert of a stack."""

    def read(start: int, stop: int) -> Tensor:
        row = weight.read(index, index + 1)[0]
        return row[start:stop] if row.dim() else row

    one = Weight(weight.shape[1:], weight.dtype, f"{weight.origin}[{index}]", read, inputs=(weight,))
    if weight.member is not None:  # read alone, but traced by the stack
        alone = weight.member(index)
        one = replace(one, read=alone.read, atomic=alone.atomic, by_rows=alone.by_rows, member=alone.member)
    return one if len(one.shape) < 2 else _keeping(one, [weight], lambda parts: select(parts[0], index))


def rows(weight: Weight, start: int, stop: int) -> Weight:
    """`weight[start:stop]`."""
    shape = (stop - start, *weight.shape[1:])
    read = lambda a, b: weight.read(start + a, start + b)  # noqa: E731
    some = Weight(
        shape, weight.dtype, f"{weight.origin}[{start}:{stop}]", read, inputs=(weight,), by_rows=weight.by_rows
    )
    return _keeping(some, [weight], lambda parts: rows(parts[0], start, stop))


def take(weight: Weight, indices: Sequence[int]) -> Weight:
    """`weight[indices]`: some experts of a stack, in this order; neighbours are read together."""
    wanted = list(indices)

    def read(start: int, stop: int) -> Tensor:
        part = wanted[start:stop]
        if weight.atomic or not part:
            return weight.load()[part] if part else weight.read(0, 0)
        firsts = [k for k, e in enumerate(part) if k == 0 or part[k - 1] + 1 != e]
        return torch.cat(
            [weight.read(part[a], part[b - 1] + 1) for a, b in zip(firsts, [*firsts[1:], len(part)], strict=True)]
        )

    shape = (len(wanted), *weight.shape[1:])
    some = Weight(shape, weight.dtype, f"{weight.origin}{wanted}", read, weight.atomic, inputs=(weight,))
    return _keeping(some, [weight], lambda parts: take(parts[0], wanted))


def merged(weight: Weight) -> Weight:
    """`weight.flatten(0, 1)`: `[A, B, …]` as `[A * B, …]`, still read by rows."""
    count, inner, *rest = weight.shape

    def read(start: int, stop: int) -> Tensor:
        first = start // inner
        part = weight.read(first, max(first, -(-stop // inner))).reshape(-1, *rest)
        return part[start - first * inner : stop - first * inner]

    shape = (count * inner, *rest)
    return Weight(shape, weight.dtype, f"merged({weight.origin})", read, weight.atomic, inputs=(weight,))


def unmerged(weight: Weight, count: int) -> Weight:
    """`weight.unflatten(0, (count, -1))`: `[A * B, …]` as `[A, B, …]`, still read by rows."""
    inner, rest = weight.shape[0] // count, weight.shape[1:]

    def read(start: int, stop: int) -> Tensor:
        return weight.read(start * inner, stop * inner).reshape(stop - start, inner, *rest)

    shape = (count, inner, *rest)
    return Weight(shape, weight.dtype, f"unmerged[{count}]({weight.origin})", read, weight.atomic, inputs=(weight,))


def columns(weight: Weight, start: int, stop: int) -> Weight:
    """`weight[..., start:stop]`, contiguous: the shard of a matrix along its inputs."""
    return rowwise(f"columns[{start}:{stop}]", lambda t: t[..., start:stop].contiguous(), weight)


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Weight:
    """`torch.zeros(shape)`, made when it is read."""
    return Weight(shape, dtype, f"zeros{list(shape)}", lambda a, b: torch.zeros((b - a, *shape[1:]), dtype=dtype))


def transpose(weight: Weight, dim0: int, dim1: int) -> Weight:
    """`weight.transpose(dim0, dim1)`, contiguous. Moving the leading dimension reads the source once for every block of
    the result."""
    dim0, dim1 = sorted((dim0 % len(weight.shape), dim1 % len(weight.shape)))
    text = f"transpose[{dim0},{dim1}]"
    if dim0 != 0:
        return rowwise(text, lambda t: t.transpose(dim0, dim1).contiguous(), weight)
    shape = list(weight.shape)
    shape[0], shape[dim1] = shape[dim1], shape[0]

    def read(start: int, stop: int) -> Tensor:
        block = torch.empty([stop - start, *shape[1:]], dtype=weight.dtype)
        at = 0
        for part in weight.blocks():  # one block of the source and one of the result in memory
            block.narrow(dim1, at, len(part)).copy_(part.narrow(dim1, start, stop - start).transpose(0, dim1))
            at += len(part)
        return block

    return Weight(tuple(shape), weight.dtype, f"{text}({weight.origin})", read, inputs=(weight,))


def cast(weight: Weight, dtype: torch.dtype) -> Weight:
    """The weight in another dtype; itself when it has that dtype already."""
    if weight.dtype == dtype:
        return weight
    changed = rowwise(f"cast[{str(dtype)[6:]}]", lambda t: t.to(dtype), weight)
    if isinstance(weight.coded, FloatCodes):
        return decoded(replace(weight.coded, dtype=dtype))
    return changed if weight.coded is None else decoded(replace(weight.coded, scale=cast(weight.coded.scale, dtype)))


def scale(weight: Weight, factor: float) -> Weight:
    """`weight * factor`; exact in every binary float format when `factor` is a power of two and nothing over- or
    underflows."""
    return weight if factor == 1.0 else rowwise(f"scale[{factor:g}]", lambda t: t * factor, weight)
