"""A model without its weights: parameters on the meta device, computed buffers real, names and dtypes as
`from_pretrained` makes them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from moec.program.program import META
from moec.weights.lazy import Weight, from_tensor


def build(model_class: Any, config: Any, dtype: torch.dtype) -> Any:
    """A `PreTrainedModel` of this class and config in `dtype`; its rotary tables and other computed buffers hold real
    values."""
    from transformers.initialization import no_init_weights

    # so nothing but the largest one is ever allocated, and never touched
    with no_init_weights(), registering(_on_meta), _HugeOnMeta():
        model = model_class._from_config(deepcopy(config), dtype=dtype)
    for value in kept_in_float32(model, dtype):
        value.data = value.data.to(torch.float32)
    return model.eval()


def kept_in_float32(model: Any, dtype: torch.dtype) -> list[Tensor]:
    """Parameters and saved buffers that the architecture wants in float32 whatever the model's dtype."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return []
    pattern: re.Pattern[str] = build_glob_alternation(list(plan))[0]
    saved = model.state_dict(keep_vars=True)
    return [value for name, value in saved.items() if value.is_floating_point() and pattern.search(name)]


class _HugeOnMeta(TorchFunctionMode):
    """Uninitialised tensors of more than a gibibyte are on the meta device from the start: the system may refuse even
    address space for the experts of a layer of DeepSeek-V3 (28 GiB)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            sizes = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            if math.prod(int(size) for size in sizes) > 2**28:
                kwargs["device"] = META
        return func(*args, **kwargs)


def _on_meta(value: nn.Parameter | None) -> nn.Parameter | None:
    if value is None or value.device == META:
        return value
    return nn.Parameter(value.detach().to(META), requires_grad=False)


@contextmanager
def registering(change: Callable[[nn.Parameter | None], nn.Parameter | None]) -> Iterator[None]:
    """Each parameter that a module registers in the block goes through `change` first."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        original(module, name, change(value))

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def take_buffers(model: nn.Module, weights: dict[str, Weight]) -> None:
    """Move every buffer, and every tensor that hangs on a module as a plain attribute, to the meta device; values
    become weights."""
    for path, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
        for name, value in {**module._buffers, **plain}.items():
            if value is None:
                continue
            full = f"{path}.{name}" if path else name
            if value.device != META:
                weights.setdefault(full, from_tensor(value.detach().cpu(), full))
            vars(module).pop(name, None)
            module._buffers[name] = value.to(META)


def tie(model: Any, weights: dict[str, Weight]) -> None:
    """Tie what the config ties, as `from_pretrained` does: not when the checkpoint holds two different tensors."""
    for target, source in list(model.all_tied_weights_keys.items()):
        if target in weights and source in weights and _equal(weights[target], weights[source]):
            del weights[target]
    model.tie_weights(missing_keys=set(model.state_dict()) - set(weights), recompute_mapping=False)
    share(model, weights)


def share(model: nn.Module, weights: dict[str, Weight]) -> None:
    """Give names that stand for one tensor one weight object."""
    names: dict[int, list[str]] = {}
    for name, value in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        names.setdefault(id(value), []).append(name)
    for group in names.values():
        found = next((weights[n] for n in group if n in weights), None)
        if found is not None:
            weights.update(dict.fromkeys(group, found))


def _equal(a: Weight, b: Weight) -> bool:
    return a.shape == b.shape and all(torch.equal(x, y) for x, y in zip(a.blocks(), b.blocks(), strict=True))
