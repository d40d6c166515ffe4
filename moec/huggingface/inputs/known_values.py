"""What a model computes of values that every call has, such as the grid of an image: computed once, at the capture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

_MADE_OF_NUMBERS = (torch.arange, torch.linspace, torch.tensor, torch.as_tensor)
_FILLED_LATER = (torch.empty, torch.zeros, torch.ones, torch.full)  # of whole numbers: offsets and lengths


class KnownValues(TorchFunctionMode):
    """Within it, whatever is made of tensors with values alone is made with values, in the midst of a capture.

    torch.export follows sizes, not values, so `for t, h, w in grid.tolist()` ends it. Where a user has fixed the grid,
    nothing in that line depends on an input. Positions, windows and lengths that follow from it become constants of
    the graph.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        symbols = any(isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool) for leaf in leaves)
        known = all(map(_has_values, tensors)) if tensors else _is_of_numbers(func, kwargs)
        if symbols or not known:
            return func(*args, **kwargs)
        with _disable_current_modes():
            return func(*args, **kwargs)


def _has_values(value: Tensor) -> bool:
    """Whether a tensor is one as Python makes it, in memory: none of those that a capture puts in its place."""
    return type(value) is Tensor and value.device.type == "cpu"


def _is_of_numbers(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a function that is given no tensor makes one whose values follow from what it is given."""
    dtype, here = kwargs.get("dtype"), torch.device(kwargs.get("device") or "cpu").type == "cpu"
    filled = func in _FILLED_LATER and dtype is not None and not (dtype.is_floating_point or dtype.is_complex)
    return here and (func in _MADE_OF_NUMBERS or filled)
