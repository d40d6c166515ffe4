"""Rotary tables that grow with the text (`rope_type: dynamic`), without the state that transformers keeps in them.

transformers computes the table anew when a text is longer than any before, and back to the first one when it is short
again: a branch on data, and a memory. For a model that has seen nothing yet the table is a function of the longest
position alone (https://www.reddit.com/r/LocalLLaMA/comments/14mrgpr), and that is what an engine computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def grow_without_memory(model: nn.Module) -> int:
    """Give every dynamic rotary embedding of a captured copy a forward without memory, in place; returns how many."""
    found = [module for module in model.modules() if _is_dynamic(module)]
    for module in found:
        module.forward = MethodType(_stateless(inspect.unwrap(type(module).forward)), module)
    return len(found)


def _is_dynamic(module: nn.Module) -> bool:
    """Whether transformers would update this module's table by its branch on the length."""
    kinds = getattr(module, "rope_type", None)
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any("dynamic" in str(kind) for kind in kinds) and hasattr(type(module).forward, "__wrapped__")


def _stateless(rotate: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        named = {} if layer_type is None else {"layer_type": layer_type}
        kind = self.rope_type if layer_type is None else self.rope_type[layer_type]
        if "dynamic" not in kind:
            return rotate(self, x, position_ids, **named)
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        self.__dict__[name] = _table(self, kind, x.device, position_ids, layer_type)  # before the buffer of this name
        try:
            return rotate(self, x, position_ids, **named)
        finally:
            del self.__dict__[name]

    return forward


def _table(module: Any, kind: str, device: torch.device, position_ids: Tensor, layer_type: str | None) -> Tensor:
    """The frequencies `[head size / 2]` for texts as long as the longest here."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    prefix, named = ("", {}) if layer_type is None else (f"{layer_type}_", {"layer_type": layer_type})
    length = torch.max(position_ids) + 1
    grown, _ = ROPE_INIT_FUNCTIONS[kind](module.config, device, seq_len=length, **named)
    first = getattr(module, f"{prefix}original_inv_freq").to(device)
    longest = getattr(module, f"{prefix}max_seq_len_cached", module.max_seq_len_cached)
    return torch.where(length > longest, grown, first)
