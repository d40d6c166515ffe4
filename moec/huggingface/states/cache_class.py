"""The class of cache that a model insists on: `DynamicCache`, or one of its own that keeps states beside the layers.

MiniMax's keeps the states of its lightning attention in a list. Here they are those of the layers, as everywhere else.
"""

from __future__ import annotations

import inspect
import typing
from functools import cache
from typing import Any

from torch import Tensor, nn


def cache_class(model: nn.Module) -> Any:
    """The class whose instances a model's parts take as `past_key_values`."""
    from transformers.cache_utils import DynamicCache

    modules: list[Any] = [type(module) for module in model.modules()]
    kinds = (kind for module in modules for kind in _asked_for(module))
    return next((_with_states_in_layers(kind) for kind in kinds if kind is not DynamicCache), DynamicCache)


@cache
def _asked_for(kind: type) -> tuple[type, ...]:
    """The subclasses of `DynamicCache` that a module's forward names."""
    from transformers.cache_utils import DynamicCache

    forward = inspect.unwrap(getattr(kind, "forward", None) or object)
    named = getattr(forward, "__annotations__", {}).get("past_key_values")
    found = typing.get_args(named) or (named,)
    return tuple(each for each in found if isinstance(each, type) and issubclass(each, DynamicCache))


@cache
def _with_states_in_layers(kind: Any) -> Any:
    if not hasattr(kind, "get_linear_cache"):
        return kind

    class InLayers(kind):  # type: ignore[misc]
        def get_linear_cache(self, layer_idx: int) -> Tensor | None:
            found: Tensor | None = self.get_recurrent_state(layer_idx)
            return found

        def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
            self.update_recurrent_state(linear_cache, layer_idx)

    return InLayers
