"""At which sizes of its tokens a module may take another branch, seen by watching it in eager PyTorch: its sizes are
numbers that note what they are held against."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_COMPARED = ("lt", "le", "gt", "ge", "eq", "ne")
_MADE = ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "floordiv", "mod")
_CUT = ("floordiv", "mod")  # whose steps are as wide as the other number
_HELD = {getattr(Tensor, name) for name in (*_COMPARED, *(f"__{name}__" for name in _COMPARED))}
_HELD |= {getattr(torch, name) for name in _COMPARED}


class SizesAsked(TorchFunctionMode):
    """Within, sizes of tensors note the numbers that Python code holds them against.

    The last dimension of a matrix is none of tokens and notes nothing. `len` gives a plain number: there, all whole
    numbers that its caller has by name are noted. Where whole numbers in a tensor (places, counts) are held against a
    number, as many rows may be what it is about.

    Attributes:
        found: how many times as large a size would have to be to reach a number, by that number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[float, Fraction] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Size):
            of_tokens = max(1, len(result) - 1)
            return torch.Size([_Whole.of(s, self) if k < of_tokens else s for k, s in enumerate(result)])
        if func is Tensor.numel or (func is Tensor.size and _is_of_tokens(*args, **(kwargs or {}))):
            return _Whole.of(result, self)
        if func in _HELD and len(args) == 2 and _counts(args[0]) and isinstance(args[1], int):
            self.note(len(args[0]), args[1])
        if func is Tensor.__len__:
            for number in _beside(sys._getframe()):
                self.note(result, number)
        return result

    def note(self, size: float, number: float) -> None:
        """A size was held against a number."""
        if size > 0 and number > 0 and math.isfinite(number):
            self.found.setdefault(float(number), Fraction(number) / Fraction(size))


def sizes_around(count: int, batch: int, factor: Fraction) -> set[tuple[int, int]]:
    """Tokens and batches on both sides of where a size would be so many times as large as it is for these."""

    def around(size: int) -> range:
        return range(max(1, math.floor(size * factor) - 1), math.floor(size * factor) + 3)

    return {(n, batch) for n in around(count)} | {(count, n) for n in around(batch)}


def _is_of_tokens(tensor: Tensor, dim: int | None = None) -> bool:
    return dim is not None and (tensor.dim() == 1 or dim % tensor.dim() < tensor.dim() - 1)


def _counts(value: Any) -> bool:
    """Whether a tensor may say where its rows stand."""
    return isinstance(value, Tensor) and value.dtype in (torch.int64, torch.int32) and value.dim() > 0


def _beside(frame: Any) -> set[int]:
    """The whole numbers in the code, the variables and the `self` of the function that called PyTorch from a frame."""
    while frame.f_globals.get("__name__") in (__name__, "torch._tensor", "torch.overrides"):
        frame = frame.f_back
    own = frame.f_locals.get("self")
    kept = [vars(kind) for kind in type(own).__mro__] + [getattr(own, "__dict__", {})]
    given = (*frame.f_code.co_consts, *frame.f_locals.values(), *(value for names in kept for value in names.values()))
    return {n for n in given if isinstance(n, int) and not isinstance(n, bool)}


class _Noting:
    """A number that comes from a size; so is what is computed from it."""

    asked: SizesAsked

    @classmethod
    def of(cls, value: Any, asked: SizesAsked) -> Any:
        """The same number, noting."""
        kind = _Whole if isinstance(value, int) else _Broken
        made = kind(value)
        made.asked = asked
        return made


class _Whole(_Noting, int):
    pass


class _Broken(_Noting, float):
    pass


def _method(plain: type, name: str) -> Callable[[Any, Any], Any]:
    own = getattr(plain, f"__{name}__")

    def method(self: Any, other: Any) -> Any:
        result = own(self, other)
        if result is NotImplemented and isinstance(other, float):  # a whole number with one that is none
            result = getattr(float, f"__{name}__")(float(self), other)
        if isinstance(other, int | float) and not isinstance(other, _Noting) and name in (*_COMPARED, *_CUT):
            self.asked.note(plain(self), other)
        return self.of(result, self.asked) if name in _MADE and result is not NotImplemented else result

    return method


for _kind, _plain in ((_Whole, int), (_Broken, float)):
    for _name in (*_COMPARED, *_MADE):
        setattr(_kind, f"__{_name}__", _method(_plain, _name))
    _kind.__hash__ = _plain.__hash__  # type: ignore[method-assign]
