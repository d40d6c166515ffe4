"""The smaller of two sizes, as a size: of sizes that are symbols, Python's `min` makes a branch where none is meant."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from types import ModuleType
from typing import Any

import torch
from torch import nn

_NAMES = ("min", "max")


@contextmanager
def sizes_compared_without_branches(model: nn.Module) -> Iterator[None]:
    """Within it, `min` and `max` in the code of a model's modules keep sizes that are symbols.

    `scores.topk(min(2048, scores.shape[-1]))` is right for texts of every length. Python's `min` asks which of the two
    is smaller, and torch.export then knows texts of fewer tokens only, or only of more.
    """
    with ExitStack() as stack:
        for module in _modules(model):
            for name in _NAMES:
                if name not in vars(module):
                    setattr(module, name, _of_sizes(name))
                    stack.callback(delattr, module, name)
        yield


def _modules(model: nn.Module) -> list[ModuleType]:
    """Where the classes of a model are written."""
    names = dict.fromkeys(type(module).__module__ for module in model.modules())
    return [sys.modules[name] for name in names if name in sys.modules and not name.startswith("torch.")]


def _of_sizes(name: str) -> Any:
    plain, symbolic = getattr(builtins, name), getattr(torch, f"sym_{name}")

    def compared(*values: Any, **options: Any) -> Any:
        if options or not any(isinstance(value, torch.SymInt) for value in values):
            return plain(*values, **options)
        return reduce(symbolic, values)

    return compared
