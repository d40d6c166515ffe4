"""Is a kept capture still what the model is captured as? Its key may have missed something: a number that a Python file
reads from another one. So it is asked where a compile fails, and a proof that compares with the graph makes it anew."""

from __future__ import annotations

import torch

from moec.errors import MoecError
from moec.files import kept
from moec.frontend.source import Source
from moec.program.program import Program
from moec.weights.difference import first_difference


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
    same = _are_same(anew, source.capture(dtype))
    source.recalled_from = key
    if not same:
        kept.remove(key)
    return not same


def made_now(source: Source, captured: Program, dtype: torch.dtype) -> Program:
    """The captured program, made now where it was recalled: for a proof that has nothing else to compare with. A kept
    one that is another is forgotten."""
    key = source.recalled_from
    if not key:
        return captured
    with kept.unused():
        anew = source.capture(dtype)
    if not _are_same(anew, captured):
        kept.remove(key)
    return anew


def _are_same(anew: Program, recalled: Program) -> bool:
    """Whether two captures are one graph with equal constants, which its text has by name only. What the model learnt
    is not looked at: a recalled capture has it from the model that is opened now."""
    constants = anew.original.fixed & anew.weights.keys() & recalled.weights.keys()
    return anew.text() == recalled.text() and not any(
        first_difference(anew.weights[name], recalled.weights[name]) for name in sorted(constants)
    )
