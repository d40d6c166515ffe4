"""Is a kept capture still what the model is captured as? Asked where a compile fails, since its key may have missed
something: a number that a Python file reads from another one."""

from __future__ import annotations

import torch

from moec.errors import MoecError
from moec.files import kept
from moec.frontend.source import Source


def is_outdated(source: Source, dtype: torch.dtype, error: MoecError) -> bool:
    """Whether a compile that failed began with a kept capture that is another than one made now; it is then forgotten.

    Args:
        source: what was compiled. dtype: in which it was captured. error: what ended the compile; where that says
            nothing about the engine (a full disk, a missing runtime), nothing is looked at.
    """
    key = source.recalled_from
    if not key or not error.code.startswith(("M1", "M7")):
        return False
    with kept.unused():
        anew = source.capture(dtype)
    same = anew.text() == source.capture(dtype).text()
    source.recalled_from = key
    if not same:
        kept.remove(key)
    return not same
