"""A transformers model that is in memory already."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from moec.frontend.in_memory import state_hash
from moec.huggingface.reading import skeleton
from moec.program.program import META
from moec.weights.lazy import Weight, cast, from_tensor


class Loaded:
    """The user's own `PreTrainedModel`; it is read, never changed."""

    def __init__(self, model: Any) -> None:
        self.template = model

    @property
    def size_bytes(self) -> int:
        """Bytes of the parameters and buffers that a checkpoint would hold."""
        unique = {id(t): t for t in self.template.state_dict(keep_vars=True).values()}
        return sum(t.nbytes for t in unique.values())

    def hashes(self) -> dict[str, str]:
        """Of the weights, there being no files."""
        return state_hash(self.template.state_dict())

    def captured(self, dtype: torch.dtype) -> tuple[Any, dict[str, Weight]]:
        """A private copy on the meta device and its weights in `dtype`, which stay the user's tensors until they are
        read."""
        saved = self.template.state_dict(keep_vars=True)
        fixed = {id(t) for t in skeleton.kept_in_float32(self.template, dtype)}
        want = {n: _dtype(t, torch.float32 if id(t) in fixed else dtype) for n, t in saved.items()}
        on_meta = {id(t): _meta(t, want[n]) for n, t in saved.items()}
        model = _copy(self.template, on_meta)
        shared: dict[int, Weight] = {}
        weights = {
            n: shared.setdefault(id(t), cast(from_tensor(t.detach().cpu(), n), want[n])) for n, t in saved.items()
        }
        return model, weights

    def loaded(self) -> Any:
        """A copy in float32 that shares every tensor that is in float32, with transformers' own experts."""
        saved = self.template.state_dict(keep_vars=True)
        model = _copy(self.template, {id(t): _as_float32(t) for t in saved.values()})
        if model._can_set_experts_implementation():
            model.set_experts_implementation("eager")
        return model


def _copy(model: nn.Module, replacements: dict[int, Tensor]) -> Any:
    """A deep copy in which the tensors of these ids are replaced; none of them is copied."""
    return copy.deepcopy(model, dict(replacements)).eval()


def _dtype(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if value.is_floating_point() else value.dtype


def _meta(value: Tensor, dtype: torch.dtype) -> Tensor:
    empty = torch.empty(value.shape, dtype=dtype, device=META)
    return nn.Parameter(empty, requires_grad=False) if isinstance(value, nn.Parameter) else empty


def _as_float32(value: Tensor) -> Tensor:
    if not value.is_floating_point() or value.dtype == torch.float32:
        return value
    wide = value.detach().float()
    return nn.Parameter(wide, requires_grad=False) if isinstance(value, nn.Parameter) else wide
