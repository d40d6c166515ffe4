"""Packed weights that are filled matrix by matrix, as they are made; each width of a stack of experts has its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moec.dialect import dequantize, pack
from moec.quantization.grid import Grid
from moec.quantization.rounding import PackedParts
from moec.weights.lazy import Weight, concat, from_tensor, rowwise
from moec.weights.remembered import forms
from moec.weights.weight import PackedWeight
from moec.weights.widths import ExpertWidths, taken

Codes = tuple[Tensor, Tensor, Tensor | None]  # integers, scales, zero points
PARTS = ("packed", "scale", "zero")


def as_packed(codes: Codes, grid: Grid) -> Codes:
    """The same with the integers packed, as they are stored."""
    return pack(codes[0], grid.stored), codes[1], codes[2]


def value_of(codes: Codes, grid: Grid) -> Tensor:
    """The matrix that packed codes stand for."""
    return dequantize(*codes, bits=grid.stored)


class PackedResult:
    """A packed weight that is filled expert by expert, or at once: one part for each width.

    Args:
        weight: the unquantized one, `[E, out, in]` or `[out, in]`.
        grid: that its numbers are to be on.
    """

    def __init__(self, weight: Weight, grid: Grid) -> None:
        self._parts = [_Part(weight, own, experts) for own, experts in grid.parts()]
        self._places = {e: (part, at) for part in self._parts for at, e in enumerate(part.experts or ())}

    def fill(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take the tensors of an earlier run; False, and none is taken, where names, shapes or dtypes are others."""
        own = self.tensors()
        if forms(own) != forms(tensors):
            return False
        for name, value in own.items():
            value.copy_(tensors[name])
        return True

    def tensors(self) -> dict[str, Tensor]:
        """What is filled, by name, as `tensors_of` has it."""
        return {f"{at}.{name}": value for at, part in enumerate(self._parts) for name, value in part.tensors().items()}

    def put(self, codes: Codes, e: int | None = None) -> bool:
        """Fill expert e's matrix, or the whole weight, with packed codes; False, and nothing is filled, where their
        shapes or dtypes are others."""
        part, at = self._place(e)
        return part.put(codes, at)

    def value(self, e: int) -> Tensor:
        """Expert e's matrix as the grid has it."""
        part, at = self._place(e)
        return part.value(at)

    def packed(self, label: str) -> PackedParts:
        """The weight as it is filled now. label: of the data that it was fitted to, for the origin."""
        found = tuple(part.packed(label) for part in self._parts)
        return found if self._places else found[0]

    def _place(self, e: int | None) -> tuple[_Part, Any]:
        if e is None:
            return self._parts[0], slice(None)
        return self._places.get(e, (self._parts[0], e))


class _Part:
    """The experts of one width, all of them when `experts` is None."""

    def __init__(self, weight: Weight, grid: Grid, experts: tuple[int, ...] | None) -> None:
        *leading, width = weight.shape
        leading = leading if experts is None else [len(experts), *leading[1:]]
        groups = width // grid.group
        with torch.inference_mode(False):  # these outlive the run
            self._packed = torch.empty(*leading, width * grid.stored // 8, dtype=torch.uint8)
            self._scale = torch.empty(*leading, groups, dtype=weight.dtype)
            self._zero = None if grid.symmetric else torch.empty(*leading, groups, dtype=torch.uint8)
        self._weight = weight if experts is None else taken(weight, experts)
        self._grid, self._origin, self.experts = (
            grid,
            weight.origin if experts is None else f"{weight.origin}{list(experts)}",
            experts,
        )

    def tensors(self) -> dict[str, Tensor]:
        found = {"packed": self._packed, "scale": self._scale}
        return found if self._zero is None else {**found, "zero": self._zero}

    def put(self, codes: Codes, at: Any) -> bool:
        given = {name: part for name, part in zip(PARTS, codes, strict=True) if part is not None}
        own = {name: part[at] for name, part in self.tensors().items()}
        if forms(own) != forms(given):
            return False
        for name, part in own.items():
            part.copy_(given[name])
        return True

    def value(self, at: int) -> Tensor:
        zero = None if self._zero is None else self._zero[at]
        return value_of((self._packed[at], self._scale[at], zero), self._grid)

    def packed(self, label: str) -> PackedWeight:
        def part(value: Tensor, name: str) -> Weight:
            data = f", {label}" if self._grid.method == "gptq" else ""  # others look at no data
            made = from_tensor(value, f"{name} of [{self._grid}{data}]({self._origin})")
            return replace(made, inputs=(self._weight,))

        zero = None if self._zero is None else part(self._zero, "zero")
        return PackedWeight(part(self._packed, "packed"), part(self._scale, "scale"), zero, self._grid.stored)


def unpacked(packed: PackedParts, grid: Grid) -> Weight:
    """The weight that a packed one stands for, read row by row."""
    if isinstance(packed, PackedWeight):
        return rowwise("dequantize", partial(torch.ops.moec.dequantize, bits=grid.stored), *packed.parts())
    parts = [unpacked(part, own) for part, (own, _) in zip(packed, grid.parts(), strict=True)]
    return taken(concat(parts, 0), ExpertWidths(grid.widths).order)


def tensors_of(packed: PackedParts) -> dict[str, Tensor]:
    """The tensors of a result by name, as `PackedResult.tensors` has them."""
    parts = (packed,) if isinstance(packed, PackedWeight) else packed
    return {f"{at}.{n}": w.load() for at, p in enumerate(parts) for n, w in zip(PARTS, p.parts(), strict=False)}
