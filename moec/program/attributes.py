"""Tensors under dotted names of a module that is otherwise empty."""

from __future__ import annotations

from torch import Tensor, nn


def attach(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor under a dotted name, creating the modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if isinstance(value, nn.Parameter):
        module.register_parameter(leaf, value)
    else:
        module.register_buffer(leaf, value)


def detach(module: nn.Module, name: str) -> None:
    """Remove what `attach` put there."""
    *path, leaf = name.split(".")
    for part in path:
        module = getattr(module, part)
    delattr(module, leaf)
