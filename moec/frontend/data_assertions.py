"""Assertions on numbers that come out of a model's data, such as how many tokens an expert got.

An engine cannot check them. Most are what torch notes of its own operators (a count is not negative), and hold always;
any other is the model's, and a capture that loses it is refused.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from moec.errors import MoecError

_COUNTS = ("nonzero", "where", "masked_select", "_unique2")  # as many as the first argument has elements, at most
_READ = ("_local_scalar_dense", "item")
_ON_TENSORS = (torch.ops.aten._assert_async.msg, torch.ops.aten._assert_async.default)
_MOST = 2**63 - 1


def always(exported: ExportedProgram, expression: Any, sizes: set[sympy.Symbol]) -> bool:
    """Whether an expression is true whatever the data: by what its operators can give, not by what was asserted.

    Args:
        sizes: the symbols that are sizes of inputs.
    """
    ranges = {s: _natural(exported, s) if s not in sizes else ValueRanges(0, _MOST) for s in expression.free_symbols}
    found = bound_sympy(expression, ranges)
    return bool(found.is_bool and found.is_singleton() and found.lower == sympy.true)


def _natural(exported: ExportedProgram, symbol: sympy.Symbol) -> Any:
    """What a number out of data can be, by the operator that gives it."""
    origin = next((n for n in exported.graph.nodes if symbol in n.meta.get("unbacked_bindings", {})), None)
    name = getattr(getattr(origin, "target", None), "_opname", "")
    argument = origin.args[0] if origin is not None and origin.args else None
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    if name in _READ and isinstance(value, Tensor):
        return _of_dtype(value.dtype)
    count = value.numel() if name in _COUNTS and isinstance(value, Tensor) else None
    return ValueRanges(0, count if isinstance(count, int) else _MOST)


def _of_dtype(dtype: torch.dtype) -> Any:
    if dtype == torch.bool:
        return ValueRanges(0, 1)
    if dtype.is_floating_point:
        return ValueRanges(-sympy.oo, sympy.oo)
    return ValueRanges(torch.iinfo(dtype).min, torch.iinfo(dtype).max)


def refuse_on_tensors(exported: ExportedProgram) -> None:
    """Raise M207 where the model asserts something of a tensor's values."""
    asserted = next((n for n in exported.graph.nodes if n.target in _ON_TENSORS), None)
    if asserted is not None:
        raise refused(str(asserted.args[1]) if len(asserted.args) > 1 else "a tensor")


def refused(assertion: str) -> MoecError:
    """The error for an assertion that no engine could check, M207."""
    what = f"the model asserts something of its data, which an engine cannot check: {assertion[:300]}"
    return MoecError("M207", what, "capture", "check it before the model is called, and leave it out of forward")
