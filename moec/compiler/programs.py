"""Programs for those who call moec from Python: captured from any model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moec.compiler.open import open_source
from moec.errors import MoecError
from moec.frontend.export import Dynamic
from moec.frontend.source import Source
from moec.program.program import Program


def capture(
    model: str | Path | nn.Module | Source,
    inputs: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    dynamic: Dynamic | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    **opening: Any,
) -> Program:
    """Capture a model as a Program; it is run only on shapes, never on data, and it is not changed.

    Args:
        model: an `nn.Module`, or whatever `moec.compile` takes: a Hugging Face folder, `file.py:callable`, a `.pt2`.
        inputs: sample inputs by name, or in the order of `forward`'s parameters. A model of the transformers library
            needs none. It gets a cache of keys and values, as from its folder, if it generates text and these are
            its tokens and mask; `cache=False` leaves that out.
        dynamic: input name -> a name or None for each dimension, e.g. `{"input_ids": ("batch", "sequence")}`.
            Dimensions of equal names are equal. By default the first dimension is `batch`, and of integers the second
            is `sequence`.
        dtype: of the program's floating weights.
        opening: what else `moec.open_source` takes.

    Raises:
        MoecError: M207 when torch.export cannot make one graph of it, with the reason; else see `moec.open_source`.
    """
    in_order = isinstance(inputs, Sequence) and all(isinstance(value, Tensor) for value in inputs)
    if in_order and isinstance(model, nn.Module):
        inputs = _by_name(model, inputs)  # type: ignore[arg-type]  # they are tensors
    _require_tensors(inputs)
    given: Any = inputs
    return open_source(model, inputs=given, dynamic=dynamic, **opening).capture(dtype)


def _by_name(model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    names = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return dict(zip(names, inputs, strict=False))


def _require_tensors(inputs: Any) -> None:
    """Raise M207 for a sample that is no tensor."""
    named = inputs.items() if isinstance(inputs, Mapping) else ()
    other = next(((name, value) for name, value in named if not isinstance(value, Tensor)), None)
    if other is not None:
        what = f"input {other[0]!r} is a {type(other[1]).__name__}, not a tensor"
        raise MoecError("M207", what, "capture", "pass tensors only; fix other arguments in a wrapper")
