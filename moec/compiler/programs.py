"""Programs for those who call moec from Python: captured from any model, and what one holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moec.compiler.open import open_source
from moec.frontend.export import named_inputs
from moec.frontend.from_exported import Dynamic
from moec.frontend.source import Source
from moec.program.program import Program
from moec.report.inspection import Inspection, inspect_program
from moec.startup import seldom_collected


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
    given: Any = inputs
    texts = isinstance(inputs, Sequence) and any(isinstance(value, str) for value in inputs)
    if isinstance(inputs, Mapping) or (isinstance(inputs, Sequence) and isinstance(model, nn.Module) and not texts):
        given = named_inputs(model, inputs)  # type: ignore[arg-type]  # by name already where it is no module
    return open_source(model, inputs=given, dynamic=dynamic, **opening).capture(dtype)


def inspect(model: str | Path | nn.Module | Source, **sources: Any) -> Inspection:
    """What a model holds: blocks, layouts, routing, total and active parameters, FLOPs. Loads no weights."""
    with seldom_collected():
        return inspect_program(open_source(model, **sources).capture())
