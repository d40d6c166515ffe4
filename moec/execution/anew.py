"""Models that change themselves while they run: a rotary table that grows with the text, a flag that one short text
sets for good.

What such a model says of an input depends on the inputs before it. An engine has no memory, so it can equal only a
model that has seen nothing yet. So a model is looked at after every run; once it has changed, each further input gets a
copy of what it was at first.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moec.errors import MoecError

Call = Callable[..., dict[str, Tensor]]

_OWN = set(nn.Module().__dict__) - {"training"}  # torch's own bookkeeping; buffers are looked at by name
_DEEPEST = 5  # containers in containers
_WHOLE = 4096  # elements of a tensor that is compared by its bytes; of a larger one, by a sum over them
_WEIGHTS = 2**24  # elements from which on a buffer holds weights: it is shared by copies, and not looked at


class CalledAnew:
    """Calls a model as if it had never run before.

    Args:
        model: any module in eval mode. It is run as it is until a run changes it.
        call: makes of a module the function of inputs by name that is asked for.

    Attributes:
        changes: whether a run has changed the model.
        watched: whether it is looked at after each run; not where runs are timed.
    """

    def __init__(self, model: nn.Module, call: Callable[[Any], Call]) -> None:
        self._call, self._of, self._model, self._before = call(model), call, model, state_of(model)
        self._first = copied(model)
        self.changes, self.watched = False, True

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The model's outputs. Raises M206 for a model that changes itself and cannot be copied."""
        if self.changes:
            return self._of(self._another())(**inputs)
        found = self._call(**inputs)
        self.changes = self.watched and state_of(self._model) != self._before
        return found

    @property
    def pristine(self) -> nn.Module:
        """The model as it was before its first call, where it could be copied."""
        return self._model if self._first is None else self._first

    def _another(self) -> nn.Module:
        another = None if self._first is None else copied(self._first)
        if another is None:
            what = f"{type(self._model).__name__} changes itself while it runs, and cannot be copied to undo that"
            raise MoecError("M206", what, "forward", "keep nothing of one call for the next: compute it in forward")
        return another


def copied(model: nn.Module) -> nn.Module | None:
    """A copy that shares the parameters and nothing else; None where there is none to be had."""
    try:
        weights = (*model.parameters(), *(b for b in model.buffers() if b.numel() >= _WEIGHTS))
        return copy.deepcopy(model, {id(w): w for w in weights})
    except Exception:  # a module may hold anything: locks, files, tensors with a history
        return None


def state_of(model: nn.Module) -> dict[str, Any]:
    """What a forward can keep from one call to the next: attributes, buffers, small parameters, by name."""
    seen: dict[int, Any] = {}
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if name not in _OWN:
                found[f"{path}.{name}"] = _mark(value, seen)
        for name, value in (*module._buffers.items(), *module._parameters.items()):
            if name in module._buffers or (value is not None and value.numel() <= _WHOLE):
                found[f"{path}.{name}"] = _mark(value, seen)
    return found


def _mark(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """Something that is equal as long as a value is."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value if value == value else "nan"
    if id(value) in seen or depth > _DEEPEST:
        return seen.get(id(value), "…")
    seen[id(value)] = "…"  # an object may hold itself
    seen[id(value)] = found = _mark_of_object(value, seen, depth + 1)
    return found


def _mark_of_object(value: Any, seen: dict[int, Any], depth: int) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), _content(value)
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, hash(value.tobytes())
    if isinstance(value, Mapping):
        return [(str(k), _mark(v, seen, depth)) for k, v in value.items()]
    if isinstance(value, list | tuple | deque):
        return [_mark(v, seen, depth) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, nn.Module) or callable(value) or not hasattr(value, "__dict__"):
        return type(value).__name__ if isinstance(value, nn.Module) else id(value)
    return type(value).__name__, [(k, _mark(v, seen, depth)) for k, v in vars(value).items()]


def _content(value: Tensor) -> Any:
    if value.device.type == "meta" or not 0 < value.numel() < _WEIGHTS or value.is_sparse or value.is_quantized:
        return None
    flat = value.detach().reshape(-1)
    flat = (torch.view_as_real(flat) if flat.is_complex() else flat).contiguous().view(torch.uint8)
    return flat.numpy(force=True).tobytes() if value.numel() <= _WHOLE else int(flat.sum(dtype=torch.int64))
