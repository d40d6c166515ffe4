"""Sizes that a model rounds to whole numbers, as a capacity of `int(factor * tokens)` is.

Python's own `int` gives a plain number, so that torch.export, which runs the model, captures the one of the sample: the
program is right at that number of tokens alone. Where it reads the model's bytecode instead (`strict`), the number
stays a size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from moec.startup import swapped


@contextmanager
def rounded() -> Iterator[list[Any]]:
    """Within, the sizes that Python's `int` makes plain numbers of are noted in a list."""
    noted: list[Any] = []
    original: Any = torch.SymFloat.__int__

    def note(size: Any) -> int:
        noted.append(size)
        return original(size)  # type: ignore[no-any-return]

    with swapped(torch.SymFloat, "__int__", note):
        yield noted
