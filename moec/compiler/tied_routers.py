"""Why an engine may differ where nothing is wrong with it: rows of a router that are equal. The logits of these experts
tie for every token, and each implementation of a top-k takes the one that it likes. Of tokens that tie, see
`moec.compiler.tied_tokens`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from moec.compiler.tied_tokens import tied_tokens
from moec.errors import MoecError
from moec.frontend.source import Source
from moec.program.moe_call import moe_nodes
from moec.program.program import Program
from moec.recognition.router_place import RouterPlace, find_router
from moec.recognition.router_region import NotARouter

_PLACES = "or let what scores them see where a token stands (positions), so that no two are equal; and compile again"
_FIX = "or make the rows differ: add noise of 1e-3 of their spread to one, and compile again"


@contextmanager
def explained_by_ties(program: Program, source: Source) -> Iterator[None]:
    """Raise what the block raises; an engine that is not equal (M101) with a word on routers of the program whose
    logits tie, or on its choices among tokens that do."""
    try:
        yield
    except MoecError as error:
        tied, fix = "", _FIX
        if error.code == "M101":
            with suppress(Exception):  # what went wrong is the engine, whatever becomes of its explanation
                tied = next(filter(None, map(_tied, _routers(program))), "")
                if not tied:
                    tied, fix = tied_tokens(program, source), _PLACES
        if not tied:
            raise
        raise MoecError("M101", f"{error.what}; {tied}", error.where, f"{error.fix}; {fix}") from error


def _routers(program: Program) -> Iterator[RouterPlace]:
    for block in moe_nodes(program):
        with suppress(NotARouter):
            yield find_router(program, block)


def _tied(router: RouterPlace) -> str:
    """What to say of equal rows; empty where there are none, where all experts are chosen anyway, or where groups of
    experts share a row each, of which all are taken (`upcycle` with a granularity)."""
    if router.top_k >= router.experts:
        return ""
    rows = router.weight.load().double()
    if router.bias is not None:
        rows = torch.cat([rows, router.bias.load().double().reshape(-1, 1)], 1)
    places = torch.unique(rows, dim=0, return_inverse=True)[1].tolist()  # type: ignore[no-untyped-call]
    alike = {places.count(place) for place in places}
    if len(alike) == 1 and router.top_k % alike.pop() == 0:
        return ""
    pair = next(((places.index(n), k) for k, n in enumerate(places) if places.index(n) < k), None)
    if pair is None:
        return ""
    return (
        f"rows {pair[0]} and {pair[1]} of the router {router.stored} are equal, so that their logits tie for every "
        "token, and which of the two experts is taken is nobody's choice"
    )
