"""`len(tensor)` in a model's code, as a size that may differ."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def open_lengths(model: nn.Module) -> Iterator[None]:
    """Within, `len(x)` of a tensor is `x.shape[0]` in the files that hold a model's classes.

    Python makes a plain number of what `len` returns, which fixes that size for good: an RT-DETR would take one batch
    size only. The name is looked up in a file before it is looked up in Python, so it is put there.
    """
    files = {type(module).__module__ for module in model.modules()}
    spaces = [vars(sys.modules[name]) for name in files if name in sys.modules and not name.startswith("torch.")]
    spaces = [space for space in spaces if "len" not in space]
    for space in spaces:
        space["len"] = _length
    try:
        yield
    finally:
        for space in spaces:
            del space["len"]


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.dim() else builtins.len(value)
