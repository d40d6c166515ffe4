"""Refusals of a capture that say a way out which was tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moec.errors import MoecError


@contextmanager
def refused_with(better: Callable[[MoecError], MoecError | None]) -> Iterator[None]:
    """Within, an error is raised as the one that `better` makes of it; as it is where that makes none, or the same."""
    try:
        yield
    except MoecError as error:
        found = better(error)
        if found is None or found is error:
            raise
        raise found from error


def without_cache(error: MoecError, attempt: Callable[[], Any]) -> MoecError:
    """The refusal of a decoder with a cache: the way out is `--no-cache`, where `attempt` captured it so; else both
    reasons are said."""
    try:
        attempt()
    except MoecError as other:
        what = f"{error.what}; with --no-cache, {other.what}"
        return MoecError(error.code, what, other.where, other.fix)
    fix = "compile its forward alone: pass --no-cache, with which it was captured just now"
    return MoecError(error.code, error.what, error.where, fix)
