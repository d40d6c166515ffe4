"""How models in memory were built, and whether they are still what was built."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_BUILT: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()


def remember(model: nn.Module, how: str) -> None:
    """Say how a model was built, as it is now."""
    _BUILT[model] = how, _structure(model)


def built_as(model: nn.Module) -> str:
    """How a model was built that is remembered, if nothing but numbers of its tensors is another since; empty
    for any other."""
    how, structure = _BUILT.get(model, ("", ""))
    return how if how and _structure(model) == structure else ""


def _structure(model: nn.Module) -> str:
    """Everything that its modules hold but tensors and other modules, as text: objects with their addresses."""
    said: dict[int, str] = {}
    lines = []
    for name, part in model.named_modules(remove_duplicate=False):
        held = {k: v for k, v in vars(part).items() if k not in ("_parameters", "_buffers", "_modules")}
        lines.append(f"{name} {type(part)} " + " ".join(f"{k}={_said(v, said)}" for k, v in held.items()))
    return "\n".join(lines)


def _said(value: Any, said: dict[int, str]) -> str:
    """Its `repr`; of a config, which all modules share, once, with what its own leaves out."""
    if id(value) not in said:
        said[id(value)] = repr(vars(value) if hasattr(value, "to_dict") else value)
    return said[id(value)]
