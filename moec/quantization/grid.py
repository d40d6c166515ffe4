"""The grid that a weight is rounded to: bits, groups, and whether it has a zero point."""

from __future__ import annotations

from dataclasses import dataclass, replace

from moec.quantization.small_floats import BLOCK, FORMATS, WHOLE, bits_of
from moec.registry import did_you_mean
from moec.weights.lazy import Weight
from moec.weights.widths import ExpertWidths

BITS, GROUPS, METHODS = (2, 3, 4, 8), (16, 32, 64, 128), ("rtn", "hqq", "gptq")
INTEGERS = "int"
_STORED = {3: 4}  # widths that no packed layout has, and the one whose bytes they take


@dataclass(frozen=True)
class Grid:
    """How a weight is to be quantized.

    Attributes:
        bits: 2, 3, 4 or 8; 3 has the error of 3 bits and the bytes of 4, no kernel storing it: it is there to be
            compared with.
        group: elements along `in` that share a scale; a power of two from 16 to 128. Small floats have their own, see
            `settled`.
        symmetric: the zero point is the middle of the stored width everywhere and not stored; else every group has its
            own.
        method: `rtn` rounds to nearest; `hqq` refines scales (and zero points) from there, see `encode`; `gptq` needs
            data, see `moec.quantization.gptq`.
        widths: the bits of each expert of a stack, where they differ; `bits` then says nothing.
        format: `int`, or small floats: `fp8` or `nvfp4`, see `moec.quantization.small_floats`.
        positive_scales: symmetric grids have no scale below or at 0, see `encode`; all others have none anyway.
    """

    bits: int
    group: int
    symmetric: bool = True
    method: str = "rtn"
    widths: tuple[int, ...] = ()
    format: str = INTEGERS
    positive_scales: bool = False

    def settled(self) -> Grid:
        """With the width and the groups that a format of small floats fixes: `fp8` has one scale a weight. `nvfp4` of 8
        bits is `fp8`."""
        if self.format == "nvfp4" and self.bits == 4:
            return replace(self, group=BLOCK)
        return (
            replace(self, bits=8, format="fp8", group=WHOLE)
            if self.format == "fp8" or (self.format == "nvfp4" and self.bits == 8)
            else self
        )

    def parts(self) -> list[tuple[Grid, tuple[int, ...] | None]]:
        """The grids of one width each that a stack is stored on, and the experts of each; None for all of them."""
        if not self.widths:
            return [(self, None)]
        return [(replace(self, bits=bits, widths=()), experts) for bits, experts in ExpertWidths(self.widths).parts]

    def of(self, e: int) -> Grid:
        """The grid of one expert of a stack."""
        return replace(self, bits=self.widths[e], widths=()) if self.widths else self

    @property
    def stored(self) -> int:
        """The width of the codes in memory: 2, 4 or 8."""
        return _STORED.get(self.bits, self.bits)

    @property
    def way_out(self) -> str:
        """The nearest name for a method or a format that there is not; empty where both are known."""
        for value, known in ((self.method, METHODS), (self.format, (INTEGERS, *FORMATS))):
            if value not in known:
                return did_you_mean(str(value), known)
        return ""

    @property
    def problem(self) -> str:
        """What of the settings themselves is not possible; empty when all is well."""
        groups = GROUPS if self.format not in FORMATS else (self.group,)
        for name, value, known in (
            ("bits", self.bits, BITS),
            ("group", self.group, groups),
            ("method", self.method, METHODS),
        ):
            if isinstance(value, bool) or value not in known:
                return f"{name}={value!r} is not one of {', '.join(map(str, known))}"
        for name in ("symmetric", "positive_scales"):
            if not isinstance(getattr(self, name), bool):
                return f"{name}={getattr(self, name)!r} is not true or false"
        if self.format not in (INTEGERS, *FORMATS):
            return f"format={self.format!r} is not one of {', '.join((INTEGERS, *FORMATS))}"
        plain = self.format == INTEGERS or (
            self.method == "rtn" and self.symmetric and self.bits == bits_of(self.format)
        )
        return (
            ""
            if plain
            else f"format={self.format} has {bits_of(self.format)} bits, no zero points, and no method but rtn"
        )

    def misfit(self, weight: Weight) -> str:
        """Why a weight cannot be put on the grid; empty when it can."""
        if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
            return f"its weight is {str(weight.dtype)[6:]} already"
        if self.group != WHOLE and weight.shape[-1] % self.group:
            return f"groups of {self.group} do not divide the {weight.shape[-1]} inputs of its weight"
        return ""

    def __str__(self) -> str:
        if self.format != INTEGERS:
            return f"{self.format}, {'one scale' if self.group == WHOLE else f'group {self.group}'}"
        wide = "" if self.stored == self.bits else f" in {self.stored}"
        bits = str(ExpertWidths(self.widths)) if self.widths else f"{self.bits} bit{wide}"
        signs = ", positive scales" if self.positive_scales and self.symmetric else ""
        return f"{bits}, group {self.group}, {'symmetric' if self.symmetric else 'zero points'}, {self.method}{signs}"
