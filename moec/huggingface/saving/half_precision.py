"""What numbers became in the 16 bits that another engine's form has for them, counted while they are written."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_FULL = torch.finfo(torch.float16).tiny  # below it, 16 bits hold fewer digits


@dataclass
class Rounding:
    """What numbers became on their way into a file.

    Attributes:
        scales: number of scales. steps: by how much of a step of its grid a number moved at most, where its scale is
            no smaller than `6.1e-5`. small: scales below that.
        floats: matrices of floats that lost digits.
        lost: tensors with numbers that are too large for 16 bits. faint: matrices whose scales are so small that
            numbers moved by more than half a step of the matrix's coarsest grid.
    """

    scales: int = 0
    steps: float = 0.0
    small: int = 0
    floats: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    faint: set[str] = field(default_factory=set)

    def half(self, name: str, bits: int, scale: Tensor, symmetric: bool = True) -> Tensor:
        """Scales in 16 bits. `symmetric`: codes are at most half of their range away from zero, else all of it."""
        found = scale.to(torch.float16)
        if scale.device.type == "meta":
            return found
        exact, kept = scale.double(), found.double()
        full = exact.abs() >= _FULL
        moved = torch.where(full, (kept / torch.where(full, exact, 1) - 1).abs(), 0)
        self.scales += scale.numel()
        self.small += int((~full & (exact != kept)).sum())
        if not bool(kept.isfinite().all()):
            self.lost.add(name)
        elif scale.numel():
            self.steps = max(self.steps, float(moved.max()) * _reach(bits, symmetric))
        return found

    def half_of_matrix(self, name: str, bits: int, scale: Tensor, symmetric: bool = True) -> Tensor:
        """`half` of all scales of a matrix, which is `faint` where 16 bits hold none of them well."""
        found = self.half(name, bits, scale, symmetric)
        if scale.device.type != "meta" and scale.numel():
            exact, kept = scale.double(), found.double()
            moved = float((kept - exact).abs().max()) * _reach(bits, symmetric)
            if moved > float(exact.abs().max()) / 2:
                self.faint.add(name)
        return found

    def cast(self, name: str, dtype: torch.dtype, values: Tensor) -> Tensor:
        """Floats in the dtype that the file has for them."""
        found = values.to(dtype)
        if values.device.type != "meta":
            if not bool(found.isfinite().all()):
                self.lost.add(name)
            elif not torch.equal(found.to(values.dtype), values):
                self.floats.add(name)
        return found

    def said(self) -> list[str]:
        """A line on the scales, none where there are none."""
        if not self.scales:
            return []
        if not self.steps and not self.small:
            return ["codes and scales are the program's own, bit for bit"]
        few = f"; {self.small} of {self.scales} are below 6.1e-5, where they keep fewer digits" if self.small else ""
        moved = f"by which a number moves at most {self.steps:.2g} of a step{few}"
        return [f"codes are the program's own; scales are rounded to 16 bits, {moved} (not with --precision fp16)"]


def _reach(bits: int, symmetric: bool) -> int:
    """How many steps a code is away from zero at most."""
    return 2 ** (bits - 1) if symmetric else 2**bits - 1
