"""In which of the forms that `moec probe` times an engine on this machine's processor computes with a tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moec.planning.formats import Format
from moec.planning.shape import Shape, Tensor

FULL = "fp32"  # the form of what is held in float32
COMPUTED_IN_FULL = ("fp32", "bf16", "fp16")
# format -> form of matrices and of experts; without rounding, 8 and 2 bits have no kernel and are unpacked at load
_EXACT = {"int8": (FULL, FULL), "int4": ("int4", "int4"), "int2": (FULL, "int4")}
_ROUNDED = {"int8": ("int8 rounded", "int8 rounded"), "int4": ("int4 rounded", "int4 rounded")}
BITS = {FULL: 32, "int4": 4, "int4 rounded": 4, "int8 rounded": 8}  # that a form holds a number in
_COUNTED = ("attention", "dense FFN", "shared experts", "other", "output head")


def forms_of(format: Format, rounded: bool) -> tuple[str, str] | None:
    """The forms of matrices and of experts in a format; None for a format that no engine here computes in."""
    if format.name in COMPUTED_IN_FULL:
        return FULL, FULL
    return _forms(format.name, rounded)


def _forms(name: str, rounded: bool) -> tuple[str, str] | None:
    return (_ROUNDED if rounded else _EXACT).get(name)


def head_form(matrices: str) -> str:
    """The form of the output head beside matrices of a form: one of 4 bits has 8, see `quantize`."""
    return FULL if matrices in (FULL, "int4") else "int8 rounded"


@dataclass(frozen=True)
class Forms:
    """The forms of a model's tensors: as a format says it, or each as a pass has packed it.

    Attributes:
        format: of what no pass has packed; not asked where one has: what a pass leaves is held in float32.
        rounded: whether activations are rounded to 8 bits (the target's `accuracy=int8`).
        packed: whether a pass has packed any of the model.
    """

    format: Format
    rounded: bool
    packed: bool

    def of(self, tensor: Tensor) -> str | None:
        """The form of one tensor; None where no engine here computes in what it is packed in."""
        if self.packed:
            return self._packed(tensor) if tensor.codes else FULL
        found = forms_of(self.format, self.rounded)
        if found is None:
            return None
        return head_form(found[0]) if tensor.part == "output head" else found[tensor.part == "routed experts"]

    def _packed(self, tensor: Tensor) -> str | None:
        found = _forms(f"int{tensor.bits}", self.rounded)
        return found and found[tensor.part == "routed experts"]

    def known(self, shape: Shape, measured: Iterable[str]) -> bool:
        """Whether all forms that a model has were measured. Experts have to have one: no operator was timed that
        computes with several widths."""
        matrices = {self.of(t) for t in shape.tensors if t.part in _COUNTED and len(t.shape) == 2}
        return matrices | self._experts(shape) <= set(measured) and len(self._experts(shape)) <= 1

    def of_experts(self, shape: Shape) -> str:
        """The form of a model's experts, where `known`."""
        return next((form for form in self._experts(shape) if form), FULL)

    def _experts(self, shape: Shape) -> set[str | None]:
        return {self.of(t) for t in shape.tensors if t.part == "routed experts" and len(t.shape) > 1}


@dataclass(frozen=True)
class HeldPacked:
    """How wide an engine here holds the integers that a pass has packed, see `Format.packed`."""

    rounded: bool

    def width(self, tensor: Tensor) -> int:
        """Bits of a number: those of its form, else those that it is packed in.

        Experts of 2 and of 4 bits in one block have no form, and are held in 4 where nothing may be rounded. With some
        of 8 they are products that may all be unpacked: more is then counted than they take, never less.
        """
        found = _forms(f"int{tensor.bits}", self.rounded)
        if found:
            return BITS[found[tensor.part == "routed experts"]]
        if self.rounded or not tensor.bits:
            return tensor.bits
        return BITS["int4"] if tensor.bits < BITS["int4"] else BITS[FULL]
