"""Whether an operator of moec's is what stands in a transformers model: shown by value, on a small instance or on drawn
numbers, before it takes the place of anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moec.errors import MoecError

TOLERANCE = 1e-5  # of the spread
UNSUPPORTED = "this version of transformers is not supported; report it"
REPORT = "compile another model; report this one"
_SUGGESTED = "does not compute what its parts suggest"


def modules_like(model: nn.Module, parts: Sequence[str], call: Sequence[str] | None = None) -> dict[str, Any]:
    """The modules that have these attributes, by their paths; with a `call`, those whose forward has these
    parameters."""
    found = {path: module for path, module in model.named_modules() if all(hasattr(module, part) for part in parts)}
    if call is None:
        return found
    return {path: m for path, m in found.items() if list(inspect.signature(m.forward).parameters) == [*call]}


def one_of_each(found: Mapping[str, Any]) -> dict[str, Any]:
    """The first module of each class and config, by its path: what a small copy of it shows is so of the others."""
    firsts: dict[tuple[type, int], tuple[str, Any]] = {}
    for path, module in found.items():
        firsts.setdefault((type(module), id(module.config)), (path, module))
    return dict(firsts.values())


def draw(module: nn.Module, generator: torch.Generator, scale: float = 0.3) -> None:
    """Fill a module's parameters with random numbers, in place."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def small_instance(
    module: nn.Module, config: Any, sizes: Mapping[str, Any], generator: torch.Generator, *arguments: Any
) -> Any:
    """A module of the same class, in float32 and with drawn numbers, of a copy of a config with other sizes.

    Args:
        arguments: what the class takes behind the config.
    """
    changed = deepcopy(config)
    for name, value in sizes.items():
        setattr(changed, name, value)
    made = type(module)(changed, *arguments).float().eval()
    draw(made, generator)
    return made


def apart(found: Tensor | None, wanted: Tensor) -> float:
    """The largest difference over the spread of what is wanted; infinite for nothing, or for another shape."""
    if found is None or found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.std(correction=0)) if wanted.numel() else 0.0


def require_same(difference: float, path: str, module: nn.Module, what: str = _SUGGESTED, fix: str = REPORT) -> None:
    """Raise M206 where a difference that `apart` found is more than rounding, or no number.

    Args:
        path: of the module. what: is said of its class.
    """
    if not difference <= TOLERANCE:
        said = f"{type(module).__name__} {what} (relative difference {difference:.1e})"
        raise MoecError("M206", said, path, fix)


def take_over(
    found: Mapping[str, Any], method: str, function: Callable[..., Any], difference: Callable[[Any], float]
) -> int:
    """Let a function be a method of modules, in place, where it says what theirs says; returns how many they are. All
    are compared before one is changed.

    Args:
        found: modules by path. function: takes the module first.
        difference: how far apart what both say of a module is, see `apart`.

    Raises:
        MoecError: M206 when one computes something else.
    """
    for path, module in found.items():
        require_same(difference(module), path, module)
    for module in found.values():
        setattr(module, method, MethodType(function, module))
    return len(found)


def require_choice(same: bool, path: str, module: nn.Module, what: str) -> None:
    """Raise M206 where a module does not choose the same `what` (tokens, blocks)."""
    if not same:
        said = f"{type(module).__name__} does not choose the {what} that its parts suggest"
        raise MoecError("M206", said, path, REPORT)


def require_proven(
    path: str, module: nn.Module, functions: Mapping[str, Callable[..., Any]], difference: Callable[..., float]
) -> None:
    """Raise M206 unless each of these functions of a module's file computes what moec's operator does.

    Args:
        difference: of a function, without what transformers wraps around it.
    """
    for function in functions.values():
        what = f"computes something else than its {function.__name__} suggests"
        require_same(difference(inspect.unwrap(function)), path, module, what, UNSUPPORTED)
