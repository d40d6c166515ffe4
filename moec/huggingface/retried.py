"""A capture that is tried in another way where one fails; a refusal's way out is one that was tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from moec.errors import MoecError
from moec.huggingface.operators.attention import ATTENTION
from moec.program.program import Program

_REPORT = "this version of transformers is not supported; report it"


def captured_somehow(capture: Callable[..., Program], may_leave_attention: bool) -> Program:
    """The first capture that works, of those that may.

    Args:
        capture: takes a `device` for the model's tensors, an `attention` of transformers' own, and whether that
            attention is left to the model, `own_attention`.
        may_leave_attention: whether an engine does without moec's operator for it; one with a cache does not.

    Raises:
        MoecError: what the last of them said.
    """
    try:
        return capture()
    except MoecError as error:
        if "lifted_tensor" in error.where:  # x[:, [-2]] makes a tensor on x's device, where meta keeps no values
            return capture(device="cpu")
        in_attention = error.code == "M206" and error.where == ATTENTION  # which our operator cannot honour
        if in_attention and may_leave_attention:
            return captured_somehow(partial(capture, own_attention=True), False)
        if error.code != "M207" and not in_attention:
            raise
        return capture(attention="eager")


@contextmanager
def explained(explain: Callable[[MoecError], MoecError]) -> Iterator[None]:
    """Raise what the block raises, as `explain` puts it."""
    try:
        yield
    except MoecError as error:
        better = explain(error)
        if better is error:
            raise
        raise better from error


def without_cache(error: MoecError, capture: Callable[[], Any]) -> MoecError:
    """The refusal of a capture with a cache; where `capture`, which has none, works, that is the way out."""
    try:
        capture()
    except MoecError as other:
        same = other.what == error.what
        what = f"{error.what}, with a cache and without" if same else f"{error.what}; with --no-cache, {other.what}"
        return MoecError(error.code, what, other.where, _REPORT if "--no-cache" in other.fix else other.fix)
    fix = "compile its forward alone: pass --no-cache, with which it was captured just now"
    return MoecError(error.code, error.what, error.where, fix)
